"""A model's chat template (Jinja), rendered in a sandbox as transformers renders it.

    >>> template = ChatTemplate("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}")
    >>> template.render([{"role": "user", "content": "hi"}])
    'user: hi\\n'

Templates come with files from strangers. They see plain data only (str, int, float, bool, None, list, dict), can change
none of it, reach nothing of Python, compute for two seconds at the most and write 16 million characters. An attempt at
more raises `TemplateError`, as do a template that is broken and one that refuses the messages. What transformers gives
a template (``_cached_compile_jinja_template``, transformers/utils/chat_template_utils.py) is here too:
``raise_exception``, ``strftime_now``, its ``tojson``, loop controls and ``{% generation %}``.

What a user typed must never become a control token. `guard` puts a mark into every spelling of one inside the messages;
`split` cuts the rendered text into the template's own control tokens and the text between them, marks removed. This
module does not know what a token id is.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from llamalite.errors import TemplateError

_MARK = "\U000f0000"  # a private-use character: no text has it, and no tokenizer gives it a meaning
MAX_SECONDS = 2.0  # of computation for one template; the longest real ones take a hundredth of it
MAX_TEXT = 1 << 24  # characters of any one text that a template makes, its output included
_MAX_REPEATED = 1_000_000  # characters or items that one `*` of a template may make
_MAX_WIDTH = 100_000  # of padding and indentation
_SPECS = {  # what a format says of width and precision: numbers, or that an argument gives them
    "%": re.compile(r"%(?:\([^)]*\))?[-+ #0]*([0-9*]*\.?[0-9*]*)"),
    "format": re.compile(r"\{[^{}]*:([^{}]*\{?)"),
}
_PADDING = frozenset("batch center expandtabs indent ljust rjust round slice tojson truncate zfill".split())
_WRITING = frozenset("% format forceescape join replace string tojson translate urlencode".split())
_FILTERS = frozenset(  # of jinja2's: those that chat templates use, in a time that grows with what they are given
    "abs attr batch capitalize count d default dictsort e escape first float forceescape format groupby indent int "
    "items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title tojson trim truncate unique upper urlencode".split()
)
_MAX_FILTERED = 1 << 22  # characters that a filter is given: none asks the clock while it works


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: what trainers mask by; rendering shows what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Plain data, no attribute of Python's own, `MAX_SECONDS` of computation, and no text longer than `MAX_TEXT`.

    jinja2's own sandbox bounds none. Every turn of a loop and every call asks the clock; whatever can make a long
    text of a short one (``*``, ``+``, ``~``, ``%``, padding, ``join``, ``replace``, output) is measured before.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_measured, **options)
        self._clock = threading.local()
        given, self.filters = self.filters, {}
        for name in _FILTERS & set(given):
            self.add_filter(name, given[name])
        del self.globals["lipsum"]

    def start(self) -> None:
        """Give the computation that follows in this thread its time."""
        self._clock.end = time.thread_time() + MAX_SECONDS

    def spend(self) -> str:
        """Raise ``SecurityError`` once the time is over."""
        if time.thread_time() > self._clock.end:
            raise jinja2.exceptions.SecurityError(f"it computes for more than {MAX_SECONDS:g} seconds")
        return ""

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Let templates use `function`, within the bounds of all filters."""
        self.filters[name] = self._bounded(name, function)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self.spend()
            if any(_weight(one, _MAX_FILTERED) > _MAX_FILTERED for one in (*args, *kwargs.values())):
                raise jinja2.exceptions.SecurityError(f"it gave {name!r} more than {_MAX_FILTERED} characters")
            _check_call("%" if name == "format" else name, args, kwargs)
            return function(*args, **kwargs)

        return filtered

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        repeated = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)
        for node in [one for kind in repeated for one in tree.find_all(kind)]:
            tick = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("spend"), [], [], None, None)
            body: list[jinja2.nodes.Node] = node.body  # type: ignore[attr-defined]  # each of the three has one
            body.insert(0, jinja2.nodes.ExprStmt(tick).set_lineno(node.lineno))
        return tree

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # what jinja2 joins all output with
        n, kept = 0, []
        for part in parts:
            n += len(part)
            if n > MAX_TEXT:
                raise _too_long(n)
            kept.append(part)
        return "".join(kept)

    @staticmethod
    def text(value: Any) -> str:
        """Return `value` written out, for ``~``."""
        return str(_measured(value))

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # jinja2 would give an undefined value, which prints as nothing: an attempt is to be heard of.
        raise jinja2.exceptions.SecurityError(f"it reached for {attribute!r} of a {type(obj).__name__}")

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.spend()
        if isinstance(owner := getattr(__obj, "__self__", None), str):
            _check_call(__obj.__name__, (owner, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            _check_call("format", (value.__self__, *args), kwargs)
            return str(wrapped(*args, **kwargs))

        return measured

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        for sequence, times in ((left, right), (right, left)):
            too_long = isinstance(sequence, (str, list, tuple)) and isinstance(times, int)
            if operator == "*" and too_long and len(sequence) * times > _MAX_REPEATED:
                raise jinja2.exceptions.SecurityError(f"it wanted a text or list of {len(sequence) * times} parts")
        if operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
            raise jinja2.exceptions.SecurityError(f"it wanted a number to the power of {right}")
        if operator in "**" and isinstance(left, int) and isinstance(right, int):
            n_bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if n_bits > 1 << 13:  # what Python still writes in decimals
                raise jinja2.exceptions.SecurityError(f"it wanted a number of {n_bits} bits")
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_length(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _check_call("%", (left, right), {})
        return super().call_binop(context, operator, left, right)


class _Generator(jinja2.compiler.CodeGenerator):
    """Compiles ``a ~ b`` into a join that is measured."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concat([")
        for one in node.nodes:
            self.write("environment.text(")
            self.visit(one, frame)
            self.write("), ")
        self.write("])")


_Sandbox.code_generator_class = _Generator


def _too_long(n: int) -> jinja2.exceptions.SecurityError:
    return jinja2.exceptions.SecurityError(f"it wanted a text of {n} characters or more, and {MAX_TEXT} are allowed")


def _check_length(n: int) -> None:
    if n > MAX_TEXT:
        raise _too_long(n)


def _weight(value: Any, budget: int = MAX_TEXT) -> int:
    """Return about how long `value` is when it is written out, or something above `budget`."""
    if isinstance(value, str):
        return len(value)
    n = 8
    if isinstance(value, (list, tuple, Mapping)):
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            n += 2 + _weight(part, budget - n)
            if n > budget:
                break
    return n


def _measured(value: Any) -> Any:
    """Return `value`, which is about to be written out, if it is not too long for that."""
    if not isinstance(value, str):
        _check_length(_weight(value))
    return value


def _check_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ``SecurityError`` for a filter or a method of str that would make a text out of all proportion."""
    given = [*args, *kwargs.values()]
    if name in _PADDING and any(isinstance(one, int) and abs(one) > _MAX_WIDTH for one in given[1:]):
        raise jinja2.exceptions.SecurityError(f"it wanted a {name!r} wider than {_MAX_WIDTH}")
    if name in ("expandtabs", "indent", "tojson"):
        n_places = _weight(given[0]) // 8 if name == "tojson" else given[0].count("\n") + given[0].count("\t")
        _check_length(n_places * max([8, *(abs(one) if isinstance(one, int) else _weight(one) for one in given[1:])]))
    if name == "sum" and any(isinstance(one, (list, tuple)) for one in given[2:]):  # after jinja2's own and the items
        raise jinja2.exceptions.SecurityError("it wanted the 'sum' of lists")
    if name not in _WRITING:
        return
    texts = [one for one in given if isinstance(one, str)]
    _check_length(sum(_weight(one) for one in given))
    if name in _SPECS and texts:
        specs = _SPECS[name].findall(texts[0])
        if any(mark in spec for spec in specs for mark in "*{"):
            raise jinja2.exceptions.SecurityError("it wanted a format whose width an argument gives")
        _check_length(sum(int(n[:9]) for spec in specs for n in re.findall("[0-9]+", spec)))
    if name == "replace" and len(texts) > 2:
        _check_length((texts[0].count(texts[1]) + 1) * len(texts[2]) + len(texts[0]))
    if name == "join":
        n_parts = max((len(one) for one in given if isinstance(one, (list, tuple, str, Mapping, range))), default=0)
        _check_length(n_parts * max((len(text) for text in texts), default=0))
    if name == "translate" and len(given) > 1:
        _check_length(len(given[0]) * _weight(given[1]))


class _Namespace(jinja2.utils.Namespace):
    """``namespace()``, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, positional = args[0], args[1:]
        for name in (attributes := dict(*positional, **kwargs)):
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"it wanted to set {name!r} on a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=_Namespace,
    )
    return environment


def plain(value: Any) -> Any:
    """Return `value` rebuilt from JSON's types, so that a template holds nothing with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    raise TemplateError(f"messages and tools hold texts, numbers, lists and dicts, found a {type(value).__name__}")


class ChatTemplate:
    """A compiled template; `TemplateError` when its source is no Jinja."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = _environment()
        self._environment.start()  # constant expressions are computed here already
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be parsed: {_told(error)}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Return the text of `messages`, each a dict with ``role`` and ``content``.

        `variables` are what the template asks for beyond these: ``bos_token``, ``eos_token``, ``date_string``, ....
        Keys of messages whose value is None are left out, as transformers does.
        """
        if not messages:
            raise TemplateError("there is no message to render: give at least one")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise TemplateError(f"a message is a dict with 'role' and 'content', found {message!r:.80}")
        self._environment.start()
        shown = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return self._template.render(
                messages=plain(shown),
                tools=plain(tools),
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **plain(variables),
            )
        except TemplateError:
            raise
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"the chat template is not safe to run: {_told(error)}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses these messages: {_told(error)}") from None
        except Exception as error:  # noqa: BLE001 - a template can raise whatever Python does
            told = f"{type(error).__name__}: {error}"
            raise TemplateError(f"the chat template failed on these messages: {told}") from None


def _told(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    return f"{error}" + (f" (line {line})" if line else "")


def texts(value: Any) -> Iterator[str]:
    """Yield every text inside messages or tools, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts(one)


def _pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def guard(value: Any, spellings: Iterable[str]) -> Any:
    """Return a copy of messages or tools in which no text spells any of `spellings` (control tokens) any more.

    A mark stands after the first character of each; `split` takes the marks out again. The template's logic sees a text
    of the same beginning, end and words.
    """
    pattern = _pattern(spellings)

    def mark(text: str) -> str:
        return pattern.sub(lambda found: found[0][0] + _MARK + found[0][1:], text.replace(_MARK, ""))

    def walk(one: Any) -> Any:
        if isinstance(one, str):
            return mark(one)
        if isinstance(one, Mapping):
            return {key: walk(inner) for key, inner in one.items()}
        if isinstance(one, (list, tuple)):
            return [walk(inner) for inner in one]
        return one

    return walk(value)


def split(rendered: str, spellings: Iterable[str]) -> list[tuple[str, bool]]:
    """Cut rendered text into (text, is a control token) parts in order, the marks of `guard` taken out.

    >>> split("<s>hi <\\U000f0000s>", ["<s>"])
    [('<s>', True), ('hi <s>', False)]
    """
    pattern, parts, end = _pattern(spellings), [], 0
    for found in pattern.finditer(rendered):
        parts += [(rendered[end : found.start()], False), (found[0], True)]
        end = found.end()
    parts.append((rendered[end:], False))
    return [(text.replace(_MARK, ""), control) for text, control in parts if text]
