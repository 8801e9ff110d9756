"""Random requests for a server: valid ones, and valid ones with one thing changed at random.

for method, path, body, headers in requests(seed):
    ...
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

Request = tuple[str, str, bytes, dict[str, str]]

_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
_CHAT: dict[str, Any] = {
    "model": "toy", "messages": [{"role": "user", "content": "once"}], "max_tokens": 2, "temperature": 0.5,
    "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "seed": 1, "n": 1,
    "stop": ["x"], "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}, "stream": True,
    "stream_options": {"include_usage": True}, "user": "me",
}  # fmt: skip
_PLAIN = {key: value for key, value in _CHAT.items() if key not in ("stop", "logprobs", "top_logprobs")}
_ENUM = {"type": "json_schema", "json_schema": {"schema": {"enum": [1]}}}
_CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
_HISTORY = [
    {"role": "system", "content": [{"type": "text", "text": "a"}]},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "3"},
]
_BLOCKS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "1", "content": "b"}],
    },
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
]
_MESSAGES = {"model": "toy", "max_tokens": 2, "system": "a", "stream": True, "messages": _BLOCKS}
_RESPONSES = {"input": [{"role": "user", "content": "a"}], "max_output_tokens": 2, "stream": True}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", _PLAIN | {"response_format": _ENUM}),
    ("/v1/chat/completions", _PLAIN | {"tools": [_TOOL], "tool_choice": "required", "parallel_tool_calls": False}),
    ("/v1/chat/completions", _PLAIN | {"messages": _HISTORY, "chat_template_kwargs": {"a": 1}}),
    ("/v1/completions", {"prompt": ["once", [1, 2]], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 2}),
    ("/completion", {"prompt": [1, "a"], "n_predict": 2, "n_probs": 2, "grammar": 'root ::= "a"*'}),
    ("/v1/responses", _RESPONSES | {"tools": [{"type": "function", "name": "f", "parameters": {}}]}),
    ("/v1/responses", _RESPONSES | {"text": {"format": {"type": "text"}}, "instructions": "a"}),
    ("/v1/messages", _MESSAGES | {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "auto"}}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/embeddings", {"input": ["a", [1, 2]], "encoding_format": "base64"}),
    ("/tokenize", {"content": "a", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [1, 2, 300]}),
    ("/apply-template", {"messages": [{"role": "user", "content": "a"}], "tools": [_TOOL]}),
]
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**9, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e-320, 1e308, "", "a", "\0",
    "é𝄞", "\ud800", "<|im_end|>", "x" * 5000, "../../etc/passwd", "root ::= (", "{{ 7 * 7 }}", [], [[]], [1], [None],
    ["a"], [-1], [10**12], {}, {"a": 1}, {"type": "x"}, {"": ""}, {"type": "object", "$ref": "#"}, [{}],
]  # fmt: skip
_METHODS = ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")
_PATHS = (
    "/",
    "/health",
    "/metrics",
    "/props?model=x",
    "/slots",
    "/v1/models",
    "/v1/models/%00",
    "/%ff",
    "/v1/../x",
    "//",
    "/v1/stream",
)


def requests(seed: int) -> Iterator[Request]:
    """Yield requests without end, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        path, fields = rng.choice(SEEDS)
        body: Any = copy.deepcopy(fields)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            body = _changed(body, rng)
        raw = json.dumps(body, allow_nan=True).encode()
        method, headers = "POST", {"Content-Type": "application/json"}
        if rng.random() < 0.08:
            at = rng.randrange(len(raw) + 1)
            raw = raw[:at] + rng.randbytes(rng.randrange(6)) + raw[at + rng.randrange(3) :]
        if rng.random() < 0.05:
            method, path, raw = rng.choice(_METHODS), rng.choice((path, *_PATHS)), b""
        if rng.random() < 0.03:
            headers[rng.choice(("Host", "Origin", "Authorization", "Content-Type"))] = rng.choice(
                ("x", "[", "http://a", "127.0.0.1:x", "Bearer", "é".encode().decode("latin-1"), "a" * 2000)
            )
        yield method, path, raw, headers


def _changed(body: Any, rng: random.Random) -> Any:
    """Change one place of `body`: another value, a missing or an added key, a repeated item."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            places.extend((value, key) for key in value)
            for member in value.values():
                walk(member)
        elif isinstance(value, list):
            places.extend((value, i) for i in range(len(value)))
            for member in value:
                walk(member)

    walk(body)
    if not places or rng.random() < 0.02:
        return rng.choice(_VALUES)
    holder, key = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
    elif how < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(("grammar", "json_schema", "tools", "stop", "suffix", "é", "n", "input"))] = copy.deepcopy(
            rng.choice(_VALUES)
        )
    else:
        holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.randrange(4)))
    return body
