"""The rules of docs/design.md, checked in the source: imports, printing, names, sizes, help, exports."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import click
import pytest

import llamalite
from llamalite import cli, errors
from llamalite.model_options import ModelKeywords, ModelOptions
from llamalite.sampling import SamplingKeywords, SamplingParams

# Each room may import from the rooms of the lines above it, of its own line (without a cycle), and from itself.
LEVELS = (
    {"_version", "errors", "files", "quant_types"},
    {"gguf_check", "native", "sampling", "templates"},
    {"hardware"},
    {"converters", "generation"},
    {"store", "model_options", "tool_calls"},
    {"model"},
    {"chat", "batch_file", "embedding", "evaluation", "performance"},
    {"server"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "data", "info", "process", "common", "misc"}
# Of one line, and never see each other:
APART = ({"converters"}, {"generation"})
MAX_LINES, MAX_PARAMETERS = 420, 10


def modules() -> dict[str, Path]:
    """Every module of the package as it was imported, by dotted name without the leading ``llamalite.``."""
    package = Path(llamalite.__file__).parent
    spec = importlib.util.find_spec("llamalite.converters")
    assert spec is not None
    assert spec.origin is not None
    converters = Path(spec.origin).parent
    found: dict[str, Path] = {}
    for base, prefix in ((package, ()), (converters, ("converters",))):
        for path in sorted(base.rglob("*.py")):
            parts = (*prefix, *path.relative_to(base).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()
ROOMED = sorted(name for name in MODULES if name not in {"", "__main__"})
KNOWN = [name for name in ROOMED if name.partition(".")[0] in LEVEL]


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name: str) -> list[tuple[str, int]]:
    """Everything that a module imports, anywhere in it: absolute dotted names with their line."""
    found = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            assert node.module is not None
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_every_module_is_seen() -> None:
    assert {"cli", "errors", "store.names", "native.library", "converters", "converters.mix"} <= set(MODULES)


def test_every_room_has_a_level() -> None:
    unknown = {name.partition(".")[0] for name in ROOMED} - set(LEVEL)
    assert not unknown, f"LEVELS above and docs/design.md do not say who may import {unknown}"


def test_the_design_names_every_room_and_the_files_of_the_large_ones(root: Path) -> None:
    design = (root / "docs" / "design.md").read_text(encoding="utf-8")
    parts = {tuple(name.split(".")[:2]) for name in ROOMED if name != "cli"}
    names = {
        part[-1]
        for part in parts
        if len(part) == 1 or part[0] in {"converters", "evaluation", "generation", "native", "server", "tool_calls"}
    }
    assert not {name for name in names if f"`{name}`" not in design and f"`{name}/`" not in design}


@pytest.mark.parametrize("name", KNOWN)
def test_imports_go_downwards_only(name: str) -> None:
    room = name.partition(".")[0]
    wrong = []
    for target, line in imports(name):
        parts = target.split(".")
        if parts[0] != "llamalite" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        apart = any(room in side and parts[1] in other for side, other in (APART, APART[::-1]))
        if parts[1] != room and (apart or LEVEL[parts[1]] > LEVEL[room]):
            wrong.append(f"{name}, line {line}: {room} must not import {parts[1]}")
    assert not wrong


@pytest.mark.parametrize("name", KNOWN)
def test_no_room_imports_the_package_itself(name: str) -> None:
    parts = [target.split(".") for target, _ in imports(name)]
    assert not [".".join(part) for part in parts if part[0] == "llamalite" and not set(part[1:2]) & set(LEVEL)]


def circle(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the names in `needs` that are on a cycle or lead to one, with what they need of each other."""
    left = {name: needed - {name} for name, needed in needs.items()}
    while ready := [name for name, needed in left.items() if not needed & set(left)]:
        for name in ready:
            del left[name]
    return {name: needed & set(left) for name, needed in left.items()}


def test_no_rooms_import_each_other_in_a_cycle() -> None:
    needs: dict[str, set[str]] = {room: set() for room in LEVEL}
    for name in KNOWN:
        parts = [target.split(".") for target, _ in imports(name)]
        needs[name.partition(".")[0]] |= {p[1] for p in parts if p[0] == "llamalite" and len(p) > 1 and p[1] in LEVEL}
    assert not circle(needs)


def test_no_modules_import_each_other_in_a_cycle() -> None:
    """Imports inside functions and under TYPE_CHECKING count too."""
    needs: dict[str, set[str]] = {}
    for name in MODULES:
        targets = [target.removeprefix("llamalite.") for target, _ in imports(name) if target.startswith("llamalite.")]
        # "a.b.C" is the name C of the module a.b, or the module a.b.C.
        needs[name] = {target if target in MODULES else target.rpartition(".")[0] for target in targets}
    assert "gguf_check.reader" in needs["gguf_check"]
    assert "native.library" in needs["native.model"]
    assert not circle(needs)


@pytest.mark.parametrize("name", ROOMED)
def test_only_native_imports_llama_cpp_and_touches_its_pointers(name: str) -> None:
    tops = {target.partition(".")[0] for target, _ in imports(name)}
    room = name.partition(".")[0]
    assert room == "native" or "llama_cpp" not in tops
    assert room in {"native", "hardware"} or "ctypes" not in tops  # hardware asks the operating system


@pytest.mark.parametrize("name", ROOMED)
def test_only_the_command_line_prints(name: str) -> None:
    if name.partition(".")[0] == "cli":
        return
    drawing = {target.partition(".")[0] for target, _ in imports(name)} & {"click", "tqdm"}
    # lm-evaluation-harness asks its models to draw progress bars, and tells them when not to.
    assert drawing <= ({"tqdm"} if name == "evaluation.harness" else set())
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Name):
            assert node.id != "print", f"{name}, line {node.lineno}: print"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            assert node.attr not in {"stdout", "stderr"}, f"{name}, line {node.lineno}: sys.{node.attr}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_can_be_read_in_one_sitting_and_says_what_it_is(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{name} has {len(lines)} lines: split it"
    assert not lines or ast.get_docstring(tree(name)), f"{name} does not say what it is"
    assert not set(name.split(".")) & FORBIDDEN_NAMES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_function_has_few_parameters_or_takes_an_object(name: str) -> None:
    """A frozen dataclass of options writes its own constructor; click fills in a verb's parameters by their names."""
    for node in ast.walk(tree(name)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if any("click." in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        n = len([arg for arg in given if arg not in ("self", "cls")]) + bool(node.args.vararg) + bool(node.args.kwarg)
        assert n <= MAX_PARAMETERS, f"{name}, line {node.lineno}: {node.name} has {n} parameters"


@pytest.mark.parametrize("options", [(ModelOptions, ModelKeywords), (SamplingParams, SamplingKeywords)])
def test_keyword_arguments_are_typed_as_the_fields_that_they_set(options: tuple[Any, Any]) -> None:
    fields, keywords = options
    declared = {name: value.__forward_arg__ for name, value in keywords.__annotations__.items()}
    assert declared == {field.name: field.type for field in dataclasses.fields(fields)}


@pytest.mark.parametrize(
    "name",
    [n for n in ("", *ROOMED) if MODULES[n].name == "__init__.py" and "__all__" in MODULES[n].read_text("utf-8")],
)
def test_all_is_exactly_what_is_visible(name: str) -> None:
    module = importlib.import_module(f"llamalite.{name}".rstrip("."))
    names = set(module.__all__)
    assert len(names) == len(module.__all__)
    assert all(getattr(module, one) is not None for one in names)
    if "__getattr__" in vars(module):  # loaded lazily: dir() is what is visible
        assert set(dir(module)) == names
    else:
        own = {one for one, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert {one for one in own if not one.startswith("_")} <= names


def test_public_calls_return_public_classes() -> None:
    public = [getattr(llamalite, name) for name in llamalite.__all__]
    members = [member for value in public if inspect.isclass(value) for member in vars(value).items()]
    called = [value for value in public if inspect.isfunction(value)]
    for name, member in members:
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if inspect.isfunction(function) and not name.startswith("_"):
            called.append(function)
    ours: set[str] = set()
    for function in called:
        for word in re.findall(r"\w+", str(function.__annotations__.get("return"))):
            if getattr(function.__globals__.get(word), "__module__", "").startswith("llamalite."):
                ours.add(word)
    assert {"Stream", "Completion", "Piece", "Comparison", "PerplexityResult", "ConversionReport"} <= ours
    assert ours - set(llamalite.__all__) == {"NativeModel"}  # `Model.native`, whose docstring says whom it is for


def test_a_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for name in ROOMED:
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    assert not {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith("_")}


def test_the_errors_are_the_tree_that_their_module_draws() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above = ["LlamaliteError"]
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            above[depth:] = [match[2]]
            drawn[match[2]] = above[depth - 1]
    there = {
        one.__name__: one.__base__.__name__
        for one in vars(errors).values()
        if inspect.isclass(one) and one.__base__ is not None and one is not errors.LlamaliteError
    }
    assert drawn == there
    assert issubclass(errors.LlamaliteError, Exception)


def test_every_file_of_the_command_line_is_a_verb() -> None:
    files = {name.partition(".")[2] for name in ROOMED if name.startswith("cli.") and not name.startswith("cli._")}
    assert files == {module.removeprefix("llamalite.cli.") for module, _ in cli.VERBS.values()}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_one_line_a_help_and_an_example(verb: str) -> None:
    module, about = cli.VERBS[verb]
    assert about.endswith(".")
    assert len(about) <= 70
    command = importlib.import_module(module).command
    assert isinstance(command, click.Command)
    assert command.name == verb
    assert command.help is not None
    assert f"llamalite {verb} " in command.help.partition("Example")[2]
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"llamalite {verb} {param.opts[0]} has no help"
