"""The sandbox for chat templates, which come with untrusted files.

A template sees plain data only (str, int, float, bool, None, list, dict), cannot change it, and reaches nothing else of
Python. It may compute for `MAX_SECONDS` and make no text longer than `MAX_TEXT` (`limits`). Anything beyond that raises
jinja2's ``SecurityError``.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError

from llamalite.templates.limits import (
    MAX_FILTERED,
    MAX_SECONDS,
    check_call,
    check_length,
    check_operator,
    check_written,
    rough_length,
)

# The filters of jinja2 that chat templates use and whose time is proportional to the size of their arguments.
_FILTERS = frozenset(
    "abs attr batch capitalize count d default dictsort e escape first float forceescape format groupby indent int "
    "items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title tojson trim truncate unique upper urlencode".split()
)


class _MeasuringGenerator(jinja2.compiler.CodeGenerator):
    """Compiles ``a ~ b`` into a join whose length is checked."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concat([")
        for part in node.nodes:
            self.write("environment.written(")
            self.visit(part, frame)
            self.write("), ")
        self.write("])")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox with limits on time and text, and without the attributes of Python's own objects.

    Every iteration of a loop and every call checks the clock. Operations that can make a long text from short ones
    (``*``, ``+``, ``~``, ``%``, padding, ``join``, ``replace``, output) are measured before they run.
    """

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    code_generator_class = _MeasuringGenerator

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=check_written, **options)
        self._clock = threading.local()
        builtin, self.filters = self.filters, {}
        for name in _FILTERS & set(builtin):
            self.add_filter(name, builtin[name])
        del self.globals["lipsum"]

    def start_clock(self) -> None:
        """Give this thread `MAX_SECONDS` of computation from now on."""
        self._clock.end = time.thread_time() + MAX_SECONDS

    def check_clock(self) -> str:
        """Raise ``SecurityError`` once the time is up."""
        if time.thread_time() > self._clock.end:
            raise SecurityError(f"it computes for more than {MAX_SECONDS:g} seconds")
        return ""

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add `function` as a filter, under the limits that apply to all filters."""

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.check_clock()
            if any(rough_length(value, MAX_FILTERED) > MAX_FILTERED for value in (*args, *kwargs.values())):
                raise SecurityError(f"it gave the filter {name!r} more than {MAX_FILTERED} characters")
            check_call("%" if name == "format" else name, args, kwargs)
            return function(*args, **kwargs)

        self.filters[name] = limited

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Parse `source`, and insert a check of the clock at the start of every loop's and macro's body."""
        tree = super()._parse(source, name, filename)
        repeated = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)
        for node in [node for kind in repeated for node in tree.find_all(kind)]:
            tick = jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute("check_clock"), [], [], None, None)
            body: list[jinja2.nodes.Node] = node.body  # type: ignore[attr-defined]  # each of the three has one
            body.insert(0, jinja2.nodes.ExprStmt(tick).set_lineno(node.lineno))
        return tree

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join `parts`, as jinja2 joins all output; refuse a text that is too long."""
        n, kept = 0, []
        for part in parts:
            n += len(part)
            check_length(n)
            kept.append(part)
        return "".join(kept)

    @staticmethod
    def written(value: Any) -> str:
        """Return `value` as text, for ``~``."""
        return str(check_written(value))

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # jinja2 would return an undefined value, which prints as nothing: an attempt must be visible.
        raise SecurityError(f"it reached for {attribute!r} of a {type(obj).__name__}")

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("__"):
            self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.check_clock()
        if isinstance(owner := getattr(__obj, "__self__", None), str):
            check_call(__obj.__name__, (owner, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            check_call("format", (value.__self__, *args), kwargs)
            return str(wrapped(*args, **kwargs))

        return measured

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


class Namespace(jinja2.utils.Namespace):
    """jinja2's ``namespace()``, without names that begin with an underscore."""

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
        raise SecurityError(f"it wanted to set {name!r} on a namespace")
