"""The server answers as OpenAI's protocol says, whole and streamed, and refuses what is wrong with the right words."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy

pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")

from live_server import LiveServer, Reply

from llamalite.model import Model
from llamalite.server import settings as server_settings
from llamalite.server.settings import ServerSettings

USER = [{"role": "user", "content": "tell me a story"}]
CHAT = "/v1/chat/completions"
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("server") / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=2048)


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[LiveServer]:
    with LiveServer({"toy": path}, n_threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_threads=1) as loaded:
        yield loaded


def asked(**fields: Any) -> dict[str, Any]:
    return {"messages": USER, "temperature": 0, "max_tokens": 8} | fields


def text_of(reply: Reply) -> str:
    assert reply.status == 200, reply.text
    return str(reply.body["choices"][0]["message"]["content"])


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_what_the_model_answers(server: LiveServer, model: Model) -> None:
    want = model.generate(USER, temperature=0, max_tokens=8)
    reply = server.post(CHAT, asked())
    assert text_of(reply) == want.text
    body = reply.body
    assert body["object"] == "chat.completion"
    assert body["model"] == "toy"
    assert body["choices"][0]["finish_reason"] == "length"
    n_prompt = want.totals.n_prompt
    assert body["usage"]["prompt_tokens"] == n_prompt
    assert body["usage"]["total_tokens"] == n_prompt + 8
    assert body["timings"]["prompt_n"] + body["timings"]["cache_n"] == n_prompt
    assert server.post(CHAT, asked()).body["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1


def test_a_stream_says_the_same_piece_by_piece(server: LiveServer) -> None:
    whole = text_of(server.post(CHAT, asked()))
    reply = server.post(CHAT, asked(stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = reply.events()
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_completion_continues_texts_and_token_ids(server: LiveServer, model: Model) -> None:
    want = model.generate("once upon", temperature=0, max_tokens=5)
    ids = model.prompt_tokens("once upon")
    for prompt in ("once upon", ids):
        reply = server.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 5})
        assert reply.body["choices"][0]["text"] == want.text
    two = server.post("/v1/completions", {"prompt": ["once upon", ids], "temperature": 0, "max_tokens": 5, "n": 2})
    assert [choice["index"] for choice in two.body["choices"]] == [0, 1, 2, 3]
    assert two.body["usage"]["prompt_tokens"] == 4 * len(ids)
    streamed = server.post(
        "/v1/completions", {"prompt": "once upon", "temperature": 0, "max_tokens": 5, "stream": True}
    )
    assert "".join(event["choices"][0]["text"] for event in streamed.events()[:-1]) == want.text


def test_echo_scores_the_prompt_as_the_model_does(server: LiveServer, model: Model) -> None:
    ids = model.prompt_tokens("once upon a time there was a story")
    body = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    logprobs = server.post("/v1/completions", body).body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert len(logprobs["token_logprobs"]) == len(ids) + 1
    for at in (1, len(ids) - 1):  # the score of a token is what sampling would have given it
        forced = {"logit_bias": {ids[at]: 1e6}, "max_tokens": 1, "temperature": 0, "logprobs": 0}
        piece = next(iter(model.stream(ids[:at], **forced)))  # type: ignore[arg-type]
        assert piece.token == ids[at]
        assert logprobs["token_logprobs"][at] == pytest.approx(piece.logprob, abs=0.02)


def test_several_answers_have_seeds_of_their_own(server: LiveServer) -> None:
    body = asked(n=3, temperature=1.0, seed=7)
    first, again = (server.post(CHAT, body).body for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert len(set(texts)) > 1
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert first["usage"]["completion_tokens"] == 24
    events = server.post(CHAT, body | {"stream": True}).events()
    assert {choice["index"] for event in events[:-1] for choice in event["choices"]} == {0, 1, 2}


def test_logprobs_tell_each_token(server: LiveServer, model: Model) -> None:
    reply = server.post(CHAT, asked(logprobs=True, top_logprobs=3))
    content = reply.body["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    raw = b"".join(bytes(token["bytes"]) for token in content)
    assert raw.decode("utf-8", "replace") == text_of(reply)
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == pytest.approx(token["top_logprobs"][0]["logprob"])


def test_json_matches_the_schema(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = json.loads(text_of(server.post(CHAT, asked(response_format=form, max_tokens=200))))
    assert isinstance(answer["yes"], bool)
    refused = server.post(CHAT, asked(response_format={"type": "sound"}))
    assert (refused.status, refused.error["param"]) == (400, "response_format")
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hiccup"}}}
    assert "hiccup" in server.post(CHAT, asked(response_format=wrong)).error["message"]


def test_a_required_tool_is_called_with_arguments_that_fit(server: LiveServer) -> None:
    body = asked(tools=[ADD], tool_choice="required", max_tokens=200, temperature=1.0, parallel_tool_calls=False)
    for seed in range(5):
        choice = server.post(CHAT, body | {"seed": seed}).body["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert isinstance(json.loads(call["function"]["arguments"])["a"], int)
    events = server.post(CHAT, body | {"seed": 0, "stream": True}).events()
    deltas = [call for event in events[:-1] for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert deltas[0]["function"]["name"] == "add"
    assert "name" not in deltas[1]["function"]
    json.loads("".join(delta["function"]["arguments"] for delta in deltas))


def test_the_answer_goes_on_from_the_last_message(server: LiveServer, model: Model) -> None:
    messages = [*USER, {"role": "assistant", "content": "once upon"}]
    prompt = model.render(USER) + "once upon"
    template = server.post("/apply-template", {"messages": messages})
    assert template.body["prompt"] == prompt
    n_tokens = server.post(CHAT, asked(messages=messages)).body["usage"]["prompt_tokens"]
    assert n_tokens == len(model.tokenize(prompt, parse_special=True))
    both = asked(messages=messages, continue_final_message=True, add_generation_prompt=True)
    assert server.post(CHAT, both).status == 400


def test_what_a_user_types_stays_text(server: LiveServer, model: Model) -> None:
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    n_tokens = server.post(CHAT, asked(messages=messages)).body["usage"]["prompt_tokens"]
    assert n_tokens == len(model.chat_tokens(messages))
    assert n_tokens > len(model.tokenize(model.render(messages), parse_special=True))


def test_texts_become_tokens_and_texts_again(server: LiveServer) -> None:
    tokens = server.post("/tokenize", {"content": "once upon a time"}).body["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).body["content"].strip() == "once upon a time"
    pieces = server.post("/tokenize", {"content": "é", "with_pieces": True}).body["tokens"]
    assert pieces[-1]["piece"] == [0xA9]


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", "valid array"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{}]}, "messages.0.role", "required"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "found 3"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "0..100"),
        ({"top_p": 2}, "top_p", "0..1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"n": 1000}, "n", "less than or equal to 32"),
        ({"stop": [""]}, "stop", "not empty"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "vocabulary"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"tools": [{"type": "function"}]}, None, "name"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"functions": []}, "functions", "tools"),
        ({"grammar": "root ::= (", "json_schema": None}, None, "grammar"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, "image input"),
    ],
)
def test_a_wrong_field_is_named_with_its_range(
    server: LiveServer, fields: dict[str, Any], param: str | None, words: str
) -> None:
    for stream in (False, True):
        reply = server.post(CHAT, asked(stream=stream) | fields)
        assert reply.status == 400
        assert reply.error["type"] == "invalid_request_error"
        assert words in reply.error["message"]
        assert param is None or reply.error["param"] == param


def test_what_is_not_json_is_refused(server: LiveServer) -> None:
    for body in (b"", b"{", b"[1]", b'"x"', b"\xff", b'{"messages": "\\ud800"}', b"[" * 100_000):
        reply = server.post(CHAT, body)
        assert reply.status == 400, body[:20]
        assert reply.error["message"]


def test_unknown_fields_are_ignored_and_unsupported_ones_named(server: LiveServer) -> None:
    assert server.post(CHAT, asked(user="me", store=True, metadata={"a": "b"}, made_up=1)).status == 200
    for fields in ({"suffix": "x"}, {"best_of": 3}):
        reply = server.post("/v1/completions", {"prompt": "once"} | fields)
        assert (reply.status, reply.error["param"]) == (400, next(iter(fields)))


def test_a_prompt_that_does_not_fit_is_refused_in_openais_words(server: LiveServer) -> None:
    long = [{"role": "user", "content": "once upon a time " * 2000}]
    for stream in (False, True):
        reply = server.post(CHAT, asked(messages=long, stream=stream))
        assert reply.status == 400
        assert reply.error["code"] == "context_length_exceeded"
        assert reply.error["n_ctx"] == 2048
        assert reply.error["n_prompt_tokens"] > 2048


def test_unknown_paths_methods_and_models(server: LiveServer) -> None:
    assert server.get("/nothing").error["type"] == "not_found_error"
    assert server.get(CHAT).status == 405
    reply = server.post(CHAT, asked(model="gpt-9"))
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert "toy" in reply.error["message"]
    assert server.get("/v1/models/toy").body["id"] == "toy"
    assert server.get("/v1/models/none").status == 404
    for path in ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd"):
        assert server.get(path).status == 404


def test_an_error_after_the_first_byte_is_an_event(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    served = server.pool.models[0]
    assert server.post(CHAT, asked()).status == 200
    assert served.model is not None
    real = served.model.astream

    async def breaks(*args: Any, **options: Any) -> Any:
        async for piece in real(*args, **options):
            yield piece
            raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(served.model, "astream", breaks)
    *chunks, error, done = server.post(CHAT, asked(stream=True)).events()
    assert chunks
    assert done == "[DONE]"
    assert error["error"]["type"] == "server_error"
    whole = server.post(CHAT, asked())
    assert whole.status == 500
    assert "secret" not in whole.text


# ── security ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_foreign_host_or_origin_is_refused(server: LiveServer) -> None:
    own = f"127.0.0.1:{server.port}"
    for host, status in ((own, 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403), ("a@b", 403)):
        assert server.get("/health", Host=host).status == status, host
    for origin, status in ((f"http://{own}", 200), ("http://evil.example", 403), ("null", 403)):
        assert server.post(CHAT, asked(), Origin=origin).status == status, origin
    assert "access-control-allow-origin" not in {name.lower() for name in server.get("/health").headers}


def test_a_key_is_needed_if_there_is_one(path: Path) -> None:
    settings = ServerSettings(api_keys=("one", "two"), cors=("https://app.example",))
    with LiveServer({"toy": path}, settings, n_threads=1) as server:
        assert server.get("/health").status == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic one"}, {"X-Api-Key": ""}):
            reply = server.post(CHAT, asked(), **headers)
            assert (reply.status, reply.error["type"]) == (401, "authentication_error")
            assert server.get("/metrics", **headers).status == 401
        for headers in ({"Authorization": "Bearer one"}, {"X-Api-Key": "two"}):
            assert server.post(CHAT, asked(), **headers).status == 200
        asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        preflight = server.request("OPTIONS", CHAT, None, asks)
        assert preflight.status == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"


def test_large_and_slow_bodies_are_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalite.server.security.MAX_BODY_BYTES", 10_000)
    with LiveServer({"toy": path}, ServerSettings(body_timeout_s=0.3), n_threads=1) as server:
        reply = server.post(CHAT, asked(messages=[{"role": "user", "content": "x" * 20_000}]))
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n"
        for rest, status in (
            ("Transfer-Encoding: chunked\r\n\r\n" + "5000\r\n" + "x" * 0x5000 + "\r\n", 413),
            ("Content-Length: 100\r\n\r\n{", 408),
            ("X: " + "y" * 100_000 + "\r\n\r\n", 400),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall((head + rest).encode())
                assert raw.recv(100).decode().startswith(f"HTTP/1.1 {status} ")
    assert server_settings.MAX_BODY_BYTES > 1 << 20


def test_a_connection_that_sends_no_request_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalite.server.running._HEADER_TIMEOUT_S", 0.2)
    with (
        LiveServer({"toy": path}, n_threads=1) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
    ):
        raw.sendall(b"POST / HT")
        assert raw.recv(100) == b""


# ── clients that go away ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_answer(server: LiveServer, stream: bool) -> None:
    endless = {"prompt": "once", "max_tokens": 2000, "ignore_eos": True, "stream": stream, "seed": 1}
    for _ in range(5):
        with server.open("/v1/completions", endless):
            server.wait_until(lambda: server.n_running == 1)
        assert server.wait_until(lambda: server.n_running == 0) < 1.0
    assert server.post(CHAT, asked()).status == 200


def test_a_client_may_go_away_while_it_waits(server: LiveServer) -> None:
    endless = {"prompt": "once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with server.open("/v1/completions", endless), server.open("/v1/completions", endless):
        server.wait_until(lambda: server.n_running == 2)
        with server.open(CHAT, asked()), server.open(CHAT, asked(stream=True)):
            pass
    assert server.wait_until(lambda: server.n_running == 0) < 2.0


def test_many_ask_at_once_and_each_gets_its_own_answer(server: LiveServer, model: Model) -> None:
    prompts = [f"once upon {i}" for i in range(12)]
    want = [model.generate(prompt, temperature=0, max_tokens=6).text for prompt in prompts]
    got: dict[int, str] = {}

    def ask(i: int) -> None:
        reply = server.post("/v1/completions", {"prompt": prompts[i], "temperature": 0, "max_tokens": 6})
        got[i] = reply.body["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same = sum(got[i] == want[i] for i in range(len(prompts)))
    assert same >= len(prompts) - 1  # a near tie may fall otherwise in company


# ── several models, figures ─────────────────────────────────────────────────────────────────────────────────────────


def test_several_models_are_loaded_when_asked_and_unloaded_for_another(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toy.write_toy(tmp_path / "other.gguf", seed=1, chat_template=toy.CHATML)
    with LiveServer({"toy": path, "other": other}, n_threads=1) as server:

        def status() -> dict[str, str]:
            return {one["id"]: one["status"]["value"] for one in server.get("/v1/models").body["data"]}

        assert status() == {"toy": "unloaded", "other": "unloaded"}
        assert server.post(CHAT, asked()).error["param"] == "model"
        assert server.post(CHAT, asked(model="toy")).body["model"] == "toy"
        assert server.post(CHAT, asked(model="other")).body["model"] == "other"
        assert status() == {"toy": "loaded", "other": "loaded"}
        with server.open("/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 2000, "ignore_eos": True}):
            server.wait_until(lambda: server.n_running == 1)
            for module in ("hardware", "hardware.model_memory"):
                monkeypatch.setattr(f"llamalite.{module}.free_memory_bytes", lambda: 0)
            server.pool.models.append(type(server.pool.models[0])("third", other))
            reply = server.post(CHAT, asked(model="third"))
            assert status()["toy"] == "loaded"  # it is answering
            assert status()["other"] == "unloaded"
            assert (reply.status, reply.error["code"]) == (503, "model_unavailable")
            assert reply.headers["retry-after"]


def test_metrics_count_requests_and_tokens(path: Path) -> None:
    with LiveServer({"toy": path}, n_threads=1) as server:
        server.post(CHAT, asked())
        server.post(CHAT, asked(top_p=3))
        lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
        assert float(lines['llamalite_requests_total{route="/v1/chat/completions",status="200"}']) == 1
        assert float(lines['llamalite_requests_total{route="/v1/chat/completions",status="400"}']) == 1
        assert float(lines["llamalite_generated_tokens_total"]) == 8
        assert float(lines['llamalite_model_loaded{model="toy"}']) == 1
        assert math.isclose(float(lines["llamalite_answers_in_progress"]), 0)
