"""Chat templates render as in transformers, and cannot leave the sandbox."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import toy

from llamalite.errors import TemplateError
from llamalite.templates import MAX_SECONDS, ChatTemplate, guard, split

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
    assert render("{{ [1, 2] | sum }} {{ 1234567 | round | int | tojson }}") == "3 1234567"
    assert render("{{ 'a\\nb' | indent(2) }}") == "a\n  b"
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


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% set ns.s = x %}{% endfor %}",
    "{% set x = 'x' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "{% set x = ['x' * 1000000] * 1000 %}{{ x }}",
    "{% set x = ['x' * 1000000] * 1000 %}{{ x | string | length }}",
    "{% set x = ['x' * 1000000] * 1000 %}{{ x | tojson | length }}",
    "{% set x = ['x' * 1000000] * 1000 %}{{ (x ~ '') | length }}",
    "{% set x = 'x' * 1000000 %}{{ (range(99999) | list) | join(x) | length }}",
    "{% set x = 'x' * 1000000 %}{{ x.join(x) | length }}",
    "{% set x = 'x' * 1000000 %}{{ x | replace('', x) | length }}",
    "{% set x = 'x' * 1000000 %}{{ x.replace('', x) | length }}",
    "{{ '{:>1000000000}'.format(1) | length }}",
    "{{ '{:>{}}'.format(1, 1000000000) | length }}",
    "{{ ('{:>99999}' * 10000).format(1) | length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'x'.ljust(1000000000) | length }}",
    "{{ 'x\\ny' | indent(1000000000) | length }}",
    "{{ [1] | tojson(indent=1000000000) | length }}",
    "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{{ (9 ** 64) ** 64 }}",
    "{{ ('\\n' * 999999) | indent(99999) | length }}",
    "{{ ('\\n' * 999999) | indent('x' * 999999) | length }}",
    "{{ ('\\t' * 999999).expandtabs(99999) | length }}",
    "{{ ([0] * 999999) | tojson(indent=99999) | length }}",
    "{{ ([0] * 999999) | tojson(separators=('x' * 999999, '')) | length }}",
    "{{ ([[0] * 999999] * 999999) | map('list') | sum(start=[]) | length }}",
    "{{ (['x' * 999999] * 999999) | sort | length }}",
    "{{ 1 | round(-1000000000) }}",
    "{% set x = 'x' * 1000000 %}{{ (x ~ x ~ x ~ x ~ x) | title | length }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_a_template_that_computes_without_end_or_writes_too_much_is_stopped(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError, match="not safe to run"):
        render(source)
    assert time.thread_time() - start < 2 * MAX_SECONDS


@pytest.mark.parametrize(
    "source", ["{{ ('a' * 999999) | wordwrap(1) }}", "{{ 'a' | center(9) }}", "{{ lipsum(n=100000) | length }}"]
)
def test_what_no_chat_template_needs_is_not_there(source: str) -> None:
    with pytest.raises(TemplateError, match="No filter named|'lipsum' is undefined"):
        render(source)


def test_formats_and_long_texts_of_a_common_size_pass() -> None:
    assert (
        render("{{ '%5.1f|%-3s|20241231' % (2, 'a') }}{{ '{:>3}{}20241231'.format(1, 2) }}")
        == "  2.0|a  |20241231  1220241231"
    )
    assert render('{{ \'{"a": {"b": %d}}\' | format(3) }}') == '{"a": {"b": 3}}'
    long = "word " * 200_000
    assert render("{{ messages[0].content | trim }}", [{"role": "user", "content": long}]) == long.strip()
    assert render(
        "{{ (messages[0].content ~ 'x' + 'y').replace('word', 'WORD') | length }}", [USER | {"content": long}]
    )


def test_the_time_limit_applies_to_each_rendering() -> None:
    template = ChatTemplate("{% for i in range(1000) %}{{ i }}{% endfor %}")
    template._environment._clock.end = 0.0
    assert template.render([USER]).startswith("0123")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", r"the chat template cannot be parsed: .*\(line 1\)"),
        ("{{ x | nothing }}", "cannot be parsed: No filter named 'nothing'"),
        ("{{ raise_exception('no system') }}", "refuses these messages: no system"),
        ("{{ a.b.c }}", "refuses these messages: 'a' is undefined"),
        ("{{ messages[0].content + 1 }}", "failed on these messages: TypeError"),
        ("{{ ''.__class__ }}", "is not safe to run: it reached for '__class__' of a str"),
    ],
)
def test_an_error_says_what_happened(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(source)


@pytest.mark.parametrize("messages", [[], [{"content": "hi"}], ["hi"], [{"role": "user", "content": object()}]])
def test_invalid_messages_are_refused(messages: list[Any]) -> None:
    with pytest.raises(TemplateError, match="message"):
        ChatTemplate("{{ messages }}").render(messages)


def test_guarded_text_spells_no_control_token_and_is_restored_unchanged() -> None:
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
                    text = ours.render(chat, tools=tools, add_generation_prompt=add, bos_token="<s>", eos_token="</s>")
                    assert text == want, path.name
                    rendered += 1
    assert rendered > 50


def _tokenizer(kind: Any, template: str) -> Any:
    from tokenizers import Tokenizer, models

    return kind(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>", chat_template=template)
