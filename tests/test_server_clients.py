"""The real clients speak with the server: `openai` and `anthropic`, and others where they are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from pydantic import BaseModel

pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")

from live_server import LiveServer

from llamalite.model import Model

USER: list[Any] = [{"role": "user", "content": "tell me a story"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD: Any = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy(tmp_path_factory.mktemp("clients") / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=4096)


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[LiveServer]:
    with LiveServer({"toy": path}, n_threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def story(path: Path) -> str:
    """What the model answers to `USER`, greedily, in 6 tokens."""
    with Model(path, n_threads=1) as model:
        return model.generate(USER, temperature=0, max_tokens=6).text


class Answer(BaseModel):
    yes: bool


# ── openai ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def openai(server: LiveServer) -> Iterator[Any]:
    module = pytest.importorskip("openai", reason="needs openai: pip install '.[clients]'")
    with module.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_chats_and_streams(openai: Any, story: str) -> None:
    chat: dict[str, Any] = {"model": "toy", "messages": USER, "max_tokens": 6, "temperature": 0}
    reply = openai.chat.completions.create(**chat)
    assert reply.choices[0].message.content == story
    assert reply.usage.completion_tokens == 6
    chunks = list(openai.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == story
    assert chunks[-1].usage.completion_tokens == 6
    assert [model.id for model in openai.models.list()] == ["toy"]


def test_openai_parses_structured_output(openai: Any) -> None:
    reply = openai.chat.completions.parse(model="toy", messages=USER, max_tokens=300, response_format=Answer, seed=1)
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_openai_calls_tools_and_sends_the_results(openai: Any) -> None:
    options: dict[str, Any] = {"model": "toy", "tools": [ADD], "max_tokens": 300, "seed": 1}
    message = openai.chat.completions.create(messages=USER, tool_choice="required", **options).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in message.tool_calls]
    assert all(isinstance(json.loads(call.function.arguments)["a"], int) for call in message.tool_calls)
    after = openai.chat.completions.create(messages=[*USER, message, *results], tool_choice="none", **options)
    assert after.choices[0].message.tool_calls is None
    with openai.chat.completions.stream(messages=USER, tool_choice="required", **options) as stream:
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert isinstance(json.loads(call.function.arguments)["a"], int)


def test_openai_responds(openai: Any, story: str) -> None:
    options: dict[str, Any] = {"model": "toy", "input": "tell me a story", "temperature": 0}
    reply = openai.responses.create(**options, max_output_tokens=16)
    assert reply.output_text.startswith(story)
    assert reply.status == "incomplete"
    text, kinds = "", []
    for event in openai.responses.create(**options, max_output_tokens=16, stream=True):
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == reply.output_text
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    tool = {"type": "function", "name": "add", "parameters": SCHEMA}
    called = openai.responses.create(
        model="toy", input=USER, tools=[tool], tool_choice="required", max_output_tokens=300, temperature=1
    )
    items = [item for item in called.output if item.type == "function_call"]
    assert isinstance(json.loads(items[0].arguments)["a"], int)
    results = [{"type": "function_call_output", "call_id": item.call_id, "output": "3"} for item in items]
    again = [*USER, *[item.model_dump() for item in items], *results]
    assert openai.responses.create(model="toy", input=again, max_output_tokens=16).output
    parsed = openai.responses.parse(model="toy", input=USER, text_format=Answer, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, Answer)


def test_openai_embeds(openai: Any, path: Path) -> None:
    texts = ["once upon a time", "there was a story", "once upon a time"]
    vectors = np.array([item.embedding for item in openai.embeddings.create(model="toy", input=texts).data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-2)
    floats = openai.embeddings.create(model="toy", input=texts[0], encoding_format="float").data[0].embedding
    assert np.allclose(floats, vectors[0], atol=1e-4)


def test_openai_raises_its_own_errors(openai: Any) -> None:
    import openai as package

    with pytest.raises(package.NotFoundError, match="there is no model 'x'"):
        openai.chat.completions.create(model="x", messages=USER)
    with pytest.raises(package.BadRequestError, match="top_p must lie in"):
        openai.chat.completions.create(model="toy", messages=USER, top_p=7)
    with pytest.raises(package.BadRequestError) as caught:
        openai.chat.completions.create(model="toy", messages=[{"role": "user", "content": "once " * 9000}])
    assert caught.value.code == "context_length_exceeded"


# ── anthropic ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def anthropic(server: LiveServer) -> Iterator[Any]:
    module = pytest.importorskip("anthropic", reason="needs anthropic: pip install '.[clients]'")
    with module.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_anthropic_talks_streams_and_counts(anthropic: Any, story: str) -> None:
    options: dict[str, Any] = {"model": "toy", "messages": USER, "max_tokens": 6, "extra_body": {"temperature": 0}}
    message = anthropic.messages.create(**options)
    assert message.content[0].text == story
    assert message.stop_reason == "max_tokens"
    n_input = anthropic.messages.count_tokens(model="toy", messages=USER).input_tokens
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == n_input
    with anthropic.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == story
        final = stream.get_final_message()
    assert final.usage.output_tokens == 6
    word = story.strip()[:1]
    stopped = anthropic.messages.create(**options, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)


def test_anthropic_uses_tools(anthropic: Any) -> None:
    tool = {"name": "add", "description": "Add.", "input_schema": SCHEMA}
    options: dict[str, Any] = {"model": "toy", "tools": [tool], "max_tokens": 300}
    message = anthropic.messages.create(messages=USER, tool_choice={"type": "any"}, **options)
    assert message.stop_reason == "tool_use"
    (use, *_) = message.content
    assert isinstance(use.input["a"], int)
    results = [
        {"type": "tool_result", "tool_use_id": one.id, "content": [{"type": "text", "text": "3"}]}
        for one in message.content
    ]
    history = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    assert anthropic.messages.create(messages=history, tool_choice={"type": "none"}, **options).content[0].text
    with anthropic.messages.stream(messages=USER, tool_choice={"type": "tool", "name": "add"}, **options) as stream:
        assert isinstance(stream.get_final_message().content[0].input["a"], int)


def test_anthropic_raises_its_own_errors(anthropic: Any) -> None:
    import anthropic as package

    with pytest.raises(package.NotFoundError):
        anthropic.messages.create(model="x", messages=USER, max_tokens=3)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(package.BadRequestError, match="image input is not supported"):
        anthropic.messages.create(model="toy", messages=[{"role": "user", "content": [image]}], max_tokens=3)


# ── others, where they are installed ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore")  # its own
def test_litellm(server: LiveServer, story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet for prices
    litellm = pytest.importorskip("litellm", reason="needs litellm", exc_type=ImportError)
    options: dict[str, Any] = {"model": "openai/toy", "api_base": f"{server.url}/v1", "api_key": "none"}
    reply = litellm.completion(messages=USER, max_tokens=6, temperature=0, **options)
    assert reply.choices[0].message.content == story


def test_langchain(server: LiveServer, story: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai", exc_type=ImportError)
    chat = langchain.ChatOpenAI(
        model="toy", base_url=f"{server.url}/v1", api_key="none", max_tokens=6, temperature=0, max_retries=0
    )
    assert chat.invoke("tell me a story").content == story
    assert "".join(chunk.content for chunk in chat.stream("tell me a story")) == story


def test_llm(server: LiveServer, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="needs llm", exc_type=ImportError)
    entry = f"- model_id: toy\n  model_name: toy\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "toy", "-o", "max_tokens", "6", "tell me a story"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_npm_client(server: LiveServer, story: str) -> None:
    folder = os.environ.get("LLAMALITE_TEST_NPM")
    if shutil.which("node") is None or not folder:
        pytest.skip("needs node, and LLAMALITE_TEST_NPM: a folder in which npm has installed openai")
    code = f"""
        import OpenAI from "openai";
        const client = new OpenAI({{baseURL: "{server.url}/v1", apiKey: "none"}});
        const chat = {{model: "toy", messages: {json.dumps(USER)}, max_tokens: 6, temperature: 0}};
        const whole = await client.chat.completions.create(chat);
        let text = "";
        for await (const chunk of await client.chat.completions.create({{...chat, stream: true}}))
            text += chunk.choices[0]?.delta?.content ?? "";
        console.log(JSON.stringify([whole.choices[0].message.content, text]));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [story, story]


@pytest.mark.slow
def test_the_harness_scores_over_http_as_it_does_itself(server: LiveServer, path: Path) -> None:
    completions = pytest.importorskip(
        "lm_eval.models.openai_completions", reason="needs lm-eval: pip install '.[eval]'", exc_type=ImportError
    )
    from lm_eval.api.instance import Instance

    from llamalite.evaluation.harness import LlamaliteLM

    texts = [("once upon", " a time"), ("tell me", " a story"), ("there was", " no")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    own = LlamaliteLM(str(path)).loglikelihood(requests)

    class OverHttp(completions.LocalCompletionsAPI):  # type: ignore[misc,name-defined]
        """The harness's own client, with the server's tokens instead of a tokenizer's from the hub."""

        def tok_encode(self, string: str, **_: Any) -> Any:
            return server.post("/tokenize", {"content": string}).body["tokens"]

        eot_token_id = prefix_token_id = toy.BOS

    client = OverHttp(
        model="toy", base_url=f"{server.url}/v1/completions", tokenizer_backend=None, tokenized_requests=True,
        num_concurrent=1, max_length=2048,
    )  # fmt: skip
    client.tokenizer, client.tokenized_requests = client, True  # there must be one, though it is never asked
    encoded = []
    for context, continuation in texts:
        whole = [toy.BOS, *client.tok_encode(context + continuation)]
        n_context = len([toy.BOS, *client.tok_encode(context)])
        encoded.append(((context, continuation), whole[:n_context], whole[n_context:]))
    got = client._loglikelihood_tokens(encoded, disable_tqdm=True)
    for mine, theirs in zip(own, got, strict=True):
        assert theirs[0] == pytest.approx(mine[0], abs=0.02)
        assert theirs[1] == mine[1]
