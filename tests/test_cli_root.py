"""The command line's root: exit codes, one-line errors, verbosity, colours, completion, and how little it loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest
import toy

from llamalite import __version__, cli
from llamalite.cli import completion
from llamalite.errors import CheckpointError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Add a verb ``probe`` that calls the given function, to see how the root treats what a verb does."""

    def add(do: Any) -> None:
        @click.command("probe")
        @click.option("--n", type=int, default=0)
        @click.pass_context
        def command(ctx: click.Context, n: int) -> None:
            """Do what the test says."""
            do(ctx)

        module = types.ModuleType("llamalite_probe")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "llamalite_probe", module)
        monkeypatch.setitem(cli.VERBS, "probe", ("llamalite_probe", "Probe."))

    return add


def outcome(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, captured.out, captured.err


def raising(error: BaseException) -> Any:
    def do(_ctx: click.Context) -> None:
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CheckpointError("model.safetensors: 12 bytes\nof 64 are there"), 1,
         "error: model.safetensors: 12 bytes of 64 are there\n"),
        (FileNotFoundError(2, "No such file or directory", "x.gguf"), 1, "error: x.gguf: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "y"), 1, "error: y: Permission denied\n"),
        (FileNotFoundError("no model 'x': did you mean y?"), 1, "error: no model 'x': did you mean y?\n"),
        (ValueError("temperature must not be negative"), 1, "error: temperature must not be negative\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (click.BadParameter("too small"), 2, "error: Invalid value: too small. See llamalite probe --help\n"),
        (KeyError("k"), 1, "error: a bug in llamalite, KeyError: 'k' (add -vv to see where, and report it)\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (SystemExit(7), 7, ""),
    ],
)  # fmt: skip
def test_each_failure_is_one_line_and_its_exit_code(
    verb: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    verb(raising(error))
    assert outcome(capsys, "probe") == (code, "", line)


def test_success_is_exit_code_0_and_the_output_alone(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda ctx: click.echo("done"))
    assert outcome(capsys, "probe") == (0, "done\n", "")


def test_a_traceback_is_shown_only_with_vv(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(CheckpointError("broken")))
    for args in (("-vv", "probe"), ("probe", "-vv"), ("-v", "probe", "-v")):
        code, _, err = outcome(capsys, *args)
        assert code == 1
        assert err.startswith("Traceback")
        assert err.endswith("CheckpointError: broken\n")
    assert "Traceback" not in outcome(capsys, "probe", "-v")[2]


def test_verbosity_options_work_before_and_after_the_verb(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[dict[str, Any]] = []
    verb(lambda ctx: seen.append(dict(ctx.obj)))
    for args in (("-v", "probe", "-v"), ("-q", "probe"), ("probe", "-q"), ("probe",)):
        assert outcome(capsys, *args)[0] == 0
    assert [(s["verbose"], s["quiet"]) for s in seen] == [(2, False), (0, True), (0, True), (0, False)]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["convrt"], "error: there is no command 'convrt'; did you mean convert? See llamalite --help\n"),
        (["xyzzy"], "error: there is no command 'xyzzy'. See llamalite --help\n"),
        (["--nope"], "error: No such option '--nope'. See llamalite --help\n"),
        (["probe", "--n", "x"],
         "error: Invalid value for '--n': 'x' is not a valid integer. See llamalite probe --help\n"),
        (["probe", "extra"], "error: Got unexpected extra argument (extra). See llamalite probe --help\n"),
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_and_one_line(
    verb: Any, capsys: pytest.CaptureFixture[str], args: list[str], line: str
) -> None:
    verb(lambda ctx: None)
    code, out, err = outcome(capsys, *args)
    # Versions of click quote and pluralise a little differently.
    assert (code, out, err.replace("No such option: --nope", "No such option '--nope'")) == (2, "", line)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = outcome(capsys)
    assert code == 2
    assert "Usage: llamalite" in out + err


def test_no_color_is_obeyed(verb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool | None] = []
    verb(lambda ctx: seen.append(ctx.color))
    monkeypatch.delenv("NO_COLOR", raising=False)
    outcome(capsys, "probe")
    monkeypatch.setenv("NO_COLOR", "1")
    outcome(capsys, "probe")
    assert seen == [None, False]


def test_version_names_llamalite_and_llama_cpp(llamalite_command: Any) -> None:
    done = llamalite_command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"llamalite {__version__} (llama-cpp-python 0.3.36, llama.cpp ")


@pytest.mark.parametrize("args", [["--help"], ["completion", "--help"], ["convert", "--help"], ["nope"]])
def test_help_and_wrong_usage_load_neither_numpy_nor_llama_cpp(llamalite_command: Any, args: list[str]) -> None:
    code = (
        "import sys\nfrom llamalite.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit:\n    pass\n"
        "print('\\nloaded:', sorted({'numpy', 'llama_cpp', 'gguf', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    )
    package = Path(cli.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True
    )
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_process_quietly_with_their_code(tmp_path: Path, number: int, code: int) -> None:
    script = (
        "import signal, time, types, sys, click\nfrom llamalite import cli\n"
        # A test run in the background of a shell starts with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "probe = types.ModuleType('probe'); probe.command = click.command('probe')(wait)\n"
        "sys.modules['probe'] = probe; cli.VERBS['probe'] = ('probe', '')\ncli.main(['probe'])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (code, "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "llamalite", "--help"],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = outcome(capsys, "completion", shell)
    assert code == 0
    assert "_LLAMALITE_COMPLETE" in out
    assert shell in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_bash_completes_verbs_options_values_and_models(llamalite_command: Any, models_folder: Path) -> None:
    def complete(words: str, position: int) -> list[str]:
        asked = {"_LLAMALITE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        done = llamalite_command(env=os.environ | asked | {"PYTHONPATH": str(Path(cli.__file__).parents[2])})
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("llamalite conv", 1) == ["convert"]
    assert complete("llamalite --ver", 1) == ["--verbose", "--version"]
    assert complete("llamalite completion z", 2) == ["zsh"]
    models_folder.mkdir()
    for name in ("demo-Q4_K_M", "demo-Q8_0", "other"):
        (models_folder / f"{name}.gguf").touch()
    assert complete("llamalite run demo", 2) == ["demo", "demo-Q4_K_M", "demo-Q8_0"]  # the first stands for files


def test_an_unsupported_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.command.name == "completion"
    assert outcome(capsys, "completion", "tcsh")[0] == 2


# Modules that `llamalite --help` may import besides those that click needs for any program's help. Each makes everyone
# wait longer: add one only with a reason, and measure with benchmarks/startup.py.
OWN = {"llamalite", "llamalite.__main__", "llamalite._version", "llamalite.cli", "llamalite.errors"}


def test_help_imports_click_and_next_to_nothing_else() -> None:
    program = (
        "import gc, sys, click, signal\n"  # gc is built in
        "click.Group('any', help='any').main(['--help'], standalone_mode=False)\n"
        "before = set(sys.modules)\n"
        "from llamalite.__main__ import main\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *sorted(set(sys.modules) - before))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert set(done.stdout.rpartition("loaded:")[2].split()) == OWN, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("verb", [["--help"], ["run", "MODEL", "once", "-n", "1"]])
def test_ctrl_c_is_quiet_at_any_import(tmp_path: Path, verb: list[str]) -> None:
    """SIGINT comes with the nth module that is looked for, for n from the first import of the program to its last."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Strike:\n"
        "    left = int(sys.argv.pop(1))\n"
        "    def find_spec(self, *_):\n"
        "        Strike.left -= 1\n"
        "        if Strike.left == 0:\n            os.kill(os.getpid(), signal.SIGINT)\n"
        "import llamalite.__main__ as start\n"
        "def main():\n    sys.meta_path.insert(0, Strike())\n    start.main()\n"
        "start.signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "main()"
    )
    model = toy.write_toy(tmp_path / "toy.gguf")
    words = [str(model) if word == "MODEL" else word for word in verb]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    struck = 0
    for n in (1, 2, 5, 15, 40, 80, 120, 170, 230, 300):
        done = subprocess.run(
            [sys.executable, "-c", program, str(n), *words], env=environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode == 0:  # it has fewer imports than that
            continue
        assert (done.returncode, done.stderr.strip()) == (130, ""), (n, done.stderr)
        struck += 1
    assert struck >= 3
