"""A model's chat template (Jinja), rendered in the sandbox to the text that transformers renders.

Templates get the names that transformers gives them (``_cached_compile_jinja_template``,
transformers/utils/chat_template_utils.py): ``raise_exception``, ``strftime_now``, its ``tojson``, loop controls and
``{% generation %}``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.exceptions import SecurityError

from llamalite.errors import TemplateError
from llamalite.templates.sandbox import Namespace, Sandbox


class ChatTemplate:
    """A compiled template.

    A source that is not valid Jinja raises `TemplateError`, and so does `render` if the template fails, refuses the
    messages, or leaves the bounds of the sandbox.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = _environment()
        self._environment.start_clock()  # jinja2 computes constant expressions while it compiles
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be parsed: {_with_line(error)}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return the text of `messages`, each a dict with ``role`` and ``content``.

        `variables` are further names that templates use: ``bos_token``, ``eos_token``, ``date_string``, and so on.
        Keys of a message whose value is None are left out, as in transformers.
        """
        if not messages:
            raise TemplateError("there is no message to render: give at least one")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TemplateError(f"a message is a dict with 'role' and 'content', found {message!r:.80}")
        self._environment.start_clock()
        without_none = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return self._template.render(
                messages=plain(without_none),
                tools=plain(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **plain(variables),
            )
        except TemplateError:
            raise
        except SecurityError as error:
            raise TemplateError(f"the chat template is not safe to run: {_with_line(error)}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses these messages: {_with_line(error)}") from None
        except Exception as error:  # noqa: BLE001 - a template can raise whatever Python does
            cause = f"{type(error).__name__}: {error}"
            raise TemplateError(f"the chat template failed on these messages: {cause}") from None


def plain(value: Any) -> Any:
    """Return `value` rebuilt from JSON's types, so that a template sees no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TemplateError(f"messages and tools hold texts, numbers, lists and dicts, found a {type(value).__name__}")


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: a mask for training; rendering keeps what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> Sandbox:
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=Namespace,
    )
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _with_line(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    return f"{error}" + (f" (line {line})" if line else "")
