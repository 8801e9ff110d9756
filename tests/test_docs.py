"""README and docs are true: links have targets, commands and snippets run, docs/cli.md is what --help shows."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llamalite
from llamalite import store

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if path.name != "cli.md")
# Commands that only a fresh machine can test; every other command on a page is run here.
SYSTEM = {"sudo", "xcode-select", "brew", "git", "cd", "python3", "export", "."}


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """The lines after ``$ `` of console blocks, without what they print and without comments."""
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield re.sub(r"\s{2,}#.*", "", line[2:])


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_relative_link_has_a_target(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), f"{page.name}: {target} leads nowhere"
        assert there.resolve().is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_page_is_reached_from_the_index_or_the_readme(page: Path) -> None:
    if page.parent == ROOT:
        return
    reached = (ROOT / "docs/index.md").read_text("utf-8") + (ROOT / "README.md").read_text("utf-8")
    assert page.name == "index.md" or page.name in reached


def test_every_row_of_the_table_of_files_names_its_test(root: Path) -> None:
    page = (root / "docs" / "converter.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table of files -->")[2].partition("<!-- end of the table of files -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    tests = "".join(
        (root / "tests" / f"test_{name}.py").read_text(encoding="utf-8")
        for name in ("checkpoints_huggingface", "vocabulary")
    )
    assert len(rows) > 10
    assert all(len(names) == 1 and f"def {names[0]}(" in tests for names in named), rows


def test_the_command_line_page_is_what_help_shows(root: Path, tmp_path: Path) -> None:
    """In a process of its own: click keeps the help option of whatever test ran a verb before."""
    code = f"import runpy; print(end=runpy.run_path({str(root / 'docs/write_cli.py')!r})['page']())"
    done = subprocess.run([sys.executable, "-c", code], **documented_process(tmp_path))
    assert (root / "docs/cli.md").read_text(encoding="utf-8") == done.stdout, "type: make docs" + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the pages' commands are for a POSIX shell")
@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda path: path.name)
def test_every_command_of_a_page_works(page: Path, root: Path, documented_folder: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        while "=" in words[0]:  # a variable of the environment
            words.pop(0)
        program = words[0].rpartition("/")[2]
        if program == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=root, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif program == "pip":
            assert all(word in (root / "constraints.txt").read_text() for word in words if "==" in word)
        elif program == "llamalite":
            done = run_documented(command, documented_folder)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        else:
            assert program in SYSTEM, f"nothing runs {command!r}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda path: path.name)
def test_every_python_snippet_of_a_page_runs(page: Path, documented_folder: Path) -> None:
    """Each begins with nothing but its own imports; one process runs them all."""
    snippets = [(f"{page.name}, snippet {n}", code) for n, code in enumerate(blocks(page, "python"), 1)]
    script = f"for name, code in {snippets!r}:\n    exec(compile(code, name, 'exec'), {{'__name__': '__main__'}})\n"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], **documented_process(documented_folder))
    assert done.returncode == 0, done.stdout + done.stderr


def documented_process(folder: Path) -> dict[str, Any]:
    package = str(Path(llamalite.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "LLAMALITE_MODELS": str(folder / "models"), "PYTHONUTF8": "1"}
    return {
        "cwd": folder,
        "env": environment,
        "capture_output": True,
        "text": True,
        "encoding": "utf-8",
        "timeout": 300,
    }


def run_documented(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as a page shows it: pipes, redirections and all, with llamalite being what is tested."""
    program = f'llamalite() {{ "{sys.executable}" -m llamalite "$@"; }}; '
    line = command.replace(".venv/bin/llamalite", "llamalite")
    return subprocess.run(["bash", "-euo", "pipefail", "-c", program + line], **documented_process(folder))


@pytest.fixture(scope="session")
def documented_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: a checkpoint ``my-llama``, a text ``my-text.txt``, and ``demo``, converted."""
    folder = tmp_path_factory.mktemp("documented")
    shipped = store.demo_checkpoint()
    shutil.copytree(shipped, folder / "my-llama")
    (folder / "my-text.txt").write_text((shipped / "heldout.txt").read_text(encoding="utf-8")[:8000], encoding="utf-8")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "models").mkdir()
    llamalite.convert(shipped, folder / "models" / "demo-Q4_K_M.gguf")
    return folder


def _modules_with_examples() -> list[str]:
    package = Path(llamalite.__file__).parent
    spec = importlib.util.find_spec("llamalite.converters")
    assert spec is not None
    assert spec.origin is not None
    names = []
    for base, prefix in ((package, "llamalite"), (Path(spec.origin).parent, "llamalite.converters")):
        for path in sorted(base.rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                dotted = [part for part in path.relative_to(base).with_suffix("").parts if part != "__init__"]
                names.append(".".join([prefix, *dotted]))
    return names


@pytest.mark.parametrize("name", _modules_with_examples())
def test_the_examples_of_docstrings_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0
    assert results.failed == 0
