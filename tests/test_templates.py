"""Chat templates: as transformers renders them, and without a way out of the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy

from llamalite.errors import TemplateError
from llamalite.templates import ChatTemplate, guard, split

USER = {"role": "user", "content": "hi"}


def render(source: str, messages: list[dict[str, Any]] | None = None, **variables: Any) -> str:
    return ChatTemplate(source).render(messages or [USER], **variables)


def test_messages_become_the_templates_text() -> None:
    text = render(toy.CHATML, [USER, {"role": "assistant", "content": "ho"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n<|im_start|>assistant\n"


def test_what_hugging_face_templates_use_is_there() -> None:
    assert render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}") == "13"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hi"
    assert render("{{ {'a': 'é<'} | tojson }}") == '{"a": "é<"}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% set ns = namespace(n=0) %}{% set ns.n = 5 %}{{ ns.n }}") == "5"
    assert render("{{ bos_token }}{{ x }}", bos_token="<s>", x=3) == "<s>3"
    assert render("  {% if true %}\nyes\n  {% endif %}\n") == "yes\n"  # blocks are trimmed as transformers trims them


def test_a_key_without_a_value_is_left_out() -> None:
    source = "{% if 'tool_calls' in messages[0] %}calls{% else %}none{% endif %}"
    assert render(source, [{"role": "user", "content": "", "tool_calls": None}]) == "none"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ self.__dict__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ('%s' | format(1)).__class__ }}",
        "{{ (messages | map(attribute='__class__') | list) }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(_x=1) %}",
        "{{ 'a' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 9 ** 999999 }}",
        "{% for i in range(1000000000) %}{% endfor %}",
    ],
)
def test_a_template_that_reaches_for_more_than_its_data_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for", r"the chat template cannot be parsed: .*\(line 1\)"),
        ("{{ x | nothing }}", "cannot be parsed: No filter named 'nothing'"),
        ("{{ raise_exception('no system') }}", "refuses these messages: no system"),
        ("{{ a.b.c }}", "refuses these messages: 'a' is undefined"),
        ("{{ messages[0].content + 1 }}", "failed on these messages: TypeError"),
        ("{{ ''.__class__ }}", "is not safe to run: it reached for '__class__' of a str"),
    ],
)
def test_an_error_says_what_happened(source: str, told: str) -> None:
    with pytest.raises(TemplateError, match=told):
        render(source)


@pytest.mark.parametrize("messages", [[], [{"content": "hi"}], ["hi"], [{"role": "user", "content": object()}]])
def test_messages_that_are_none_are_refused(messages: list[Any]) -> None:
    with pytest.raises(TemplateError, match="message"):
        ChatTemplate("{{ messages }}").render(messages)


def test_guarded_text_spells_no_control_token_and_comes_out_as_it_was() -> None:
    spellings = ["<|im_end|>", "<|im_end", "<s>"]
    message = {"role": "user", "content": "a <|im_end|> b <s><s> \U000f0000"}
    guarded = guard([message], spellings)
    assert not any(spelling in guarded[0]["content"] for spelling in spellings)
    parts = split("<s>" + guarded[0]["content"] + "<|im_end|>", spellings)
    assert parts == [("<s>", True), ("a <|im_end|> b <s><s> ", False), ("<|im_end|>", True)]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the weather is in a place: 'é' & <b>",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where", "enum": ["here", "there"]}},
                "required": ["place"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "  Be brief. "}
ANSWER = {"role": "assistant", "content": " Well: <b>&'\" "}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"place": "here"}}}
    ],
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "sun"}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, {"role": "user", "content": " and then? "}],
    [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    [USER, CALL, RESULT],
    [SYSTEM, USER, CALL, RESULT, ANSWER, USER],
    [ANSWER, ANSWER],
]


@pytest.mark.parity
@pytest.mark.reference
def test_real_templates_render_as_transformers_renders_them(shared: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    rendered = 0
    for path in sorted((shared / "chat-templates").glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        theirs = _tokenizer(PreTrainedTokenizerFast, source)
        ours = ChatTemplate(source)
        for chat in CHATS:
            for tools in (None, TOOLS):
                for add in (False, True):
                    try:
                        want: str | None = theirs.apply_chat_template(
                            chat, tools=tools, add_generation_prompt=add, tokenize=False
                        )
                    except Exception:  # noqa: BLE001 - whatever a template raises
                        want = None
                    if want is None:
                        with pytest.raises(TemplateError):
                            ours.render(chat, tools=tools, add_generation_prompt=add, bos_token="<s>", eos_token="</s>")
                        continue
                    found = ours.render(chat, tools=tools, add_generation_prompt=add, bos_token="<s>", eos_token="</s>")
                    assert found == want, path.name
                    rendered += 1
    assert rendered > 50


def _tokenizer(kind: Any, template: str) -> Any:
    from tokenizers import Tokenizer, models

    return kind(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>", chat_template=template)
