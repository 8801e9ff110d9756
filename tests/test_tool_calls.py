"""Tool calls of every family: where one begins, what the grammar allows, and what the parser reads from it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy

from llamalite.generation.completion import Piece, Totals
from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.tool_calls import (
    CallFinder,
    CallParser,
    Thinking,
    ThinkingSplitter,
    call_format,
    read_choice,
    read_tools,
    template_messages,
)
from llamalite.tool_calls.formats import _FORMATS
from llamalite.tool_calls.grammar import grammar_of_calls
from llamalite.tool_calls.pythonic import read_python_call

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "cold": {"type": "boolean"},
            },
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = read_tools([WEATHER, NOW])
PARIS = {"city": 'Paris }"{\n', "days": 2}
JSON = json.dumps(PARIS)
# What each family's models write: text before a call, the call, and a second one where the family has that.
WRITTEN = {
    "hermes": f'Wait.<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3": f'{{"name": "weather", "parameters": {JSON}}}',
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}, "id": "a1b2c3d4e"}}, '
    '{"name": "now", "arguments": {}, "id": "a1b2c3d4f"}]',
    "functionary-v3.1": f"Wait.<function=weather>{JSON}</function><function=now>{{}}</function>",
    "functionary-v3.2": f"weather\n{JSON}>>>now\n{{}}",
    "pythonic": '[weather(city="Paris }\\"{\\n", days=2), now()]',
}


def calls_of(form: Any, pieces: Iterator[str]) -> list[tuple[str, Any]]:
    parser, names, arguments = CallParser(form, TOOLS), list[str](), list[str]()
    for piece in pieces:
        for delta in parser.push(piece):
            if delta.name:
                assert delta.index == len(names)
                assert delta.id
                names.append(delta.name)
                arguments.append("")
            arguments[delta.index] += delta.arguments
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def pieces(text: str, seed: int) -> Iterator[str]:
    rng, at = random.Random(seed), 0
    while at < len(text):
        n = rng.randint(1, 5)
        yield text[at : at + n]
        at += n


@pytest.mark.parametrize("family", WRITTEN)
@pytest.mark.parametrize("seed", range(5))
def test_calls_are_read_whatever_the_pieces(family: Any, seed: int) -> None:
    form, text = _FORMATS[family], WRITTEN[family]
    finder, shown = CallFinder(form, TOOLS), ""
    for piece in pieces(text, seed):
        shown += finder.push(piece)
        if finder.begins_at is not None:
            break
    want = "Wait." if text.startswith("Wait.") else ""
    assert finder.begins_at == len(want)
    assert shown == want
    after = text[len(want) + len(form.opening) :]
    expected = [("weather", PARIS), ("now", {})][: 2 if form.allows_several else 1]
    assert calls_of(form, pieces(after, seed)) == expected


@pytest.mark.parametrize("family", [*WRITTEN, "generic", "pythonic-tagged"])
@pytest.mark.parametrize(
    "text",
    ["Hello.", "a < b and <tool are texts", '{"colour": "red"}', "[1, 2] is a list", "weather is fine", " ", "{", "["],
)
def test_what_is_no_call_is_text(family: Any, text: str) -> None:
    finder = CallFinder(_FORMATS[family], TOOLS)
    shown = "".join(finder.push(char) for char in text) + finder.flush()
    assert shown == text
    assert finder.begins_at is None


def test_functionary_says_all_before_a_text() -> None:
    finder = CallFinder(_FORMATS["functionary-v3.2"], TOOLS)
    shown = "".join(finder.push(char) for char in "all\nhi there>>>weather\n{")
    assert shown == "hi there"
    assert finder.begins_at == len("all\nhi there")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('<|python_tag|>weather.call(city="Paris")', ("weather", {"city": "Paris"})),
        ("<|python_tag|>print(1)\nx = 2", ("python", {"code": "print(1)\nx = 2"})),
    ],
)
def test_llama_3s_built_in_calls(text: str, want: Any) -> None:
    tools = [*TOOLS, *read_tools([{"function": {"name": "python", "parameters": {"properties": {"code": {}}}}}])]
    finder = CallFinder(_FORMATS["llama3"], tools)
    assert "".join(finder.push(char) for char in text) == ""
    assert finder.is_raw
    name, arguments = CallParser(_FORMATS["llama3"], tools).raw(text, tools)
    assert (name.name, json.loads(arguments.arguments)) == want


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = toy.write_toy(tmp_path_factory.mktemp("tools") / "toy.gguf", chat_template=toy.CHATML, n_ctx_train=4096)
    with Model(path, n_threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("family", [*WRITTEN, "generic"])
def test_what_the_grammar_allows_parses_and_fits_the_schema(family: Any, model: Model) -> None:
    form = _FORMATS[family]
    grammar = grammar_of_calls(form, TOOLS, parallel=False)
    for seed in range(4):
        answer = model.generate("once", grammar=grammar, seed=seed, temperature=1.5, max_tokens=400)
        assert answer.finish_reason == "stop"
        ((name, arguments),) = calls_of(form, iter([answer.text]))
        if name == "weather":
            assert isinstance(arguments["city"], str)
            assert 1 <= arguments.get("days", 1) <= 9
            assert isinstance(arguments.get("cold", True), bool)
        else:
            assert arguments == {}


def test_a_schema_beyond_grammars_is_relaxed_unless_it_is_strict() -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    (loose,) = read_tools([{"type": "function", "function": function}])
    assert "any-object" in grammar_of_calls(call_format(None), [loose], parallel=False)
    (strict,) = read_tools([{"type": "function", "function": function | {"strict": True}}])
    with pytest.raises(ValueError, match=r"the parameters of tool 'f': json_schema, at #/properties/a.*'not'"):
        grammar_of_calls(call_format(None), [strict], parallel=False)


def test_python_calls_are_literals_only() -> None:
    assert read_python_call("f(a=[1, None, true], b={'x': -1.5})") == ("f", {"a": [1, None, True], "b": {"x": -1.5}})
    for text in ("f(1)", "f(a=b)", "f(**x)", "f(a=g())", "1 + 1", "f(", "f(a=" + "(" * 5000):
        with pytest.raises(ValueError):
            read_python_call(text)


def test_tools_and_choices_are_checked() -> None:
    assert read_choice({"type": "function", "function": {"name": "now"}}, ["now", "f"]) == (["now"], True)
    assert read_choice("none", ["f"]) == ([], False)
    for choice in ("always", {"type": "function", "function": {"name": "x"}}, 3):
        with pytest.raises(ValueError, match="tool_choice"):
            read_choice(choice, ["f"])  # type: ignore[arg-type]
    wrong: list[tuple[list[Any], str]] = [
        ([NOW, NOW], "twice"),
        ([{"type": "retrieval"}], "'function'"),
        ([{"function": {"name": ""}}], "name"),
    ]
    for tools, words in wrong:
        with pytest.raises(ValueError, match=words):
            read_tools(tools)


def test_messages_become_what_templates_read() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    history = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    hermes = template_messages(history, _FORMATS["hermes"])
    assert hermes[0] == {"role": "system", "content": "Be\nbrief."}
    assert hermes[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    mistral = template_messages(history, _FORMATS["mistral"])
    assert len(mistral[2]["tool_call_id"]) == 9
    assert mistral[2]["tool_call_id"] == mistral[1]["tool_calls"][0]["id"]
    generic = template_messages(history, _FORMATS["generic"], TOOLS)
    assert "weather" in generic[0]["content"]
    assert generic[1]["content"] == '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert generic[2] == {"role": "user", "content": "<tool_response>\n3\n</tool_response>"}
    with pytest.raises(ValueError, match="image input is not supported"):
        template_messages([{"role": "user", "content": [{"type": "image_url"}]}])


@pytest.mark.parametrize("seed", range(5))
def test_thoughts_are_told_from_the_answer(seed: int) -> None:
    for is_open, text in ((False, "<think>\nso < so\n</think>\n\nfour"), (True, "so < so\n</think>four")):
        splitter = ThinkingSplitter(Thinking("<think>", "</think>"), is_open=is_open)
        parts = [part for piece in pieces(text, seed) for part in splitter.push(piece)] + splitter.flush()
        assert "".join(text for kind, text in parts if kind == "reasoning") == "so < so\n"
        assert "".join(text for kind, text in parts if kind == "text") == "four"
    plain = ThinkingSplitter(Thinking("<think>", "</think>"), is_open=False)
    assert plain.push("4 is <think>") == [("text", "4 is <think>")]


# ── the answer to a question ────────────────────────────────────────────────────────────────────────────────────────


class Scripted:
    """A model that writes what it is told to: one text for each generation, a character a token."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked, self.n_ctx = list(texts), list[tuple[str, SamplingParams]](), 1000
        self.native = self

    def tokenize(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def control_tokens(self) -> dict[str, int]:
        return {}

    async def astream(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Piece]:
        self.asked.append((bytes(prompt).decode(), params))
        text = self.texts.pop(0)
        for char in text:
            yield Piece(char, ord(char))
        yield Piece("", finish_reason="stop", totals=Totals(len(prompt), 0, len(text), 0.0, 0.0, 0.0, 0))


def test_a_call_that_the_model_begins_goes_on_under_the_grammar() -> None:
    pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")
    from llamalite.server.answering import Calls, Question, answer

    called = '\n{"name": "now", "arguments": {}}\n</tool_call>'
    model = Scripted("Let me see. <tool_call> what was it? never read", called)
    question = Question(list(b"Q:"), SamplingParams(), Calls(call_format(None), TOOLS))

    async def ask() -> list[Any]:
        return [part async for part in answer(model, question)]  # type: ignore[arg-type]

    parts = asyncio.run(ask())
    assert "".join(part.text for part in parts) == "Let me see. "
    assert [(call.name, call.arguments) for part in parts for call in part.calls] == [("now", ""), ("", "{"), ("", "}")]
    assert parts[-1].finish_reason == "tool_calls"
    (first, _), (second, params) = model.asked
    assert first == "Q:"
    assert second == "Q:Let me see. <tool_call>"
    assert params.grammar is not None
    assert parts[-1].totals.n_prompt == 2
    assert parts[-1].totals.n_generated == len("Let me see. ") + len(called)


def test_a_text_without_a_call_is_passed_on() -> None:
    pytest.importorskip("starlette", reason="needs the extra `serve`: pip install '.[serve]'")
    from llamalite.server.answering import Calls, Question, answer

    model = Scripted("No <tool here.")
    question = Question(list(b"Q:"), SamplingParams(), Calls(call_format(None), TOOLS))

    async def ask() -> list[Any]:
        return [part async for part in answer(model, question)]  # type: ignore[arg-type]

    parts = asyncio.run(ask())
    assert "".join(part.text for part in parts) == "No <tool here."
    assert parts[-1].finish_reason == "stop"


@pytest.mark.reference
def test_real_templates_are_recognised_and_render_the_round_trip(shared: Path, model: Model) -> None:
    from llamalite.templates import ChatTemplate

    families = {"Hermes-3": "hermes", "Llama-3": "llama3", "Mistral-Nemo": "mistral"}
    history = [
        {"role": "user", "content": "The weather?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
    ]
    for path in sorted((shared / "chat-templates").iterdir()):
        source = path.read_text()
        form = call_format(source)
        family = next((family for sign, family in families.items() if sign in path.name), None)
        assert form.name == family, path.name
        messages = template_messages(history, form)
        text = ChatTemplate(source).render(
            messages, tools=[tool.for_template() for tool in TOOLS], bos_token="<s>", eos_token="</s>"
        )
        call = text[text.rindex(form.head) :]
        assert calls_of(form, iter([call])) == [("weather", {"city": "Paris"})], path.name
