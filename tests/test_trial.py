"""A llama.cpp that is broken on this processor is detected in a child process, and what works is used."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_llama
import pytest
import toy
from conftest import Run

from llamalite.errors import LlamaliteError, ModelLoadError
from llamalite.files import user_folders
from llamalite.native import installed, processor, quantize, trial, verdict
from llamalite.native.verdict import LibraryVerdict, Report, Undecided
from llamalite.quant_types import TENSOR_TYPES, WEIGHT_TYPES

posix = pytest.mark.skipif(sys.platform == "win32", reason="its crashes are signals")
ANSWER = ["run", "toy.gguf", "Once", "--raw", "--temp", "0", "-n", "4"]


# ── the child ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_weight_type_of_this_build_computes_what_its_weights_say(tmp_path: Path) -> None:
    for name in WEIGHT_TYPES:
        assert trial.distance(TENSOR_TYPES[name], tmp_path, extra_buffers=True) < 0.03, name


def test_wrong_weights_are_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantize.dequantize_rows

    def one_row_too_far(kind: Any, rows: Any, n_columns: int) -> Any:
        values = right(kind, rows, n_columns)
        values[: len(values) // 16] *= -1
        return values

    monkeypatch.setattr(quantize, "dequantize_rows", one_row_too_far)
    assert trial.distance(TENSOR_TYPES["Q4_K"], tmp_path, extra_buffers=True) > verdict.LARGEST_DISTANCE


def test_what_the_library_was_compiled_to_use_is_read_without_starting_it() -> None:
    features = installed.compiled_features()
    assert features is None or set(features) <= {*processor.X86, *processor.ARM}
    assert features is None or not processor.missing(list(features))


def test_a_right_build_ends_its_trial_without_a_fault() -> None:
    report = verdict.run_child(True, ["F32", "Q4_0", "Q4_K"])
    assert (report.crash, report.wrong_types, report.features) == (None, [], installed.compiled_features())
    assert [line["type"] for line in report.lines if "type" in line] == ["F32", "Q4_0", "Q4_K"]


# ── the verdict, from reports that a test makes up ──────────────────────────────────────────────────────────────────


def child(dies: Callable[[str, bool], str | None], wrong: Callable[[str, bool], bool] = lambda *_: False) -> Any:
    """A child that dies in the steps, and is wrong with the types, for which the functions say so."""

    def run(extra_buffers: bool, types: list[str]) -> Report:
        lines: list[dict[str, Any]] = [{"features": ["AVX2", "AMX_INT8"]}]
        for step in (*verdict.STARTS, *types):
            lines.append({"step": step})
            if (crash := dies(step, extra_buffers)) is not None:
                return Report(lines, crash)
            if step in types:
                lines.append({"type": step, "distance": 0.9 if wrong(step, extra_buffers) else 0.01})
        return Report([*lines, {"end": True}], None)

    return run


def test_a_build_that_passes_is_used_as_it_is() -> None:
    judged = verdict.judge(child(lambda *_: None))
    assert judged == LibraryVerdict(("AVX2", "AMX_INT8"), (), len(WEIGHT_TYPES))
    assert judged.extra_buffers
    assert judged.warning() is None
    judged.require()


def test_a_build_that_dies_with_extra_buffers_runs_without_them() -> None:
    judged = verdict.judge(child(lambda step, extra: "segmentation fault" if extra and step == "Q4_0" else None))
    assert not judged.extra_buffers
    assert not any(map(judged.refused, WEIGHT_TYPES))
    judged.require()
    text = str(judged.warning())
    for part in ("segmentation fault with Q4_0", "AMX and repacked weights", "off", "more slowly", "pip install"):
        assert part in text, part


def test_wrong_results_and_nan_count_as_a_crash() -> None:
    judged = verdict.judge(child(lambda *_: None, lambda step, extra: extra and step == "Q6_K"))
    assert not judged.extra_buffers
    assert "wrong numbers with Q6_K" in str(judged.warning())
    assert Report([{"type": "Q4_K", "distance": float("nan")}], None).wrong_types == ["Q4_K"]


def test_types_that_never_work_are_refused_and_the_others_are_not() -> None:
    judged = verdict.judge(
        child(
            lambda step, extra: "bus error" if step in ("Q4_K", "IQ4_XS") else None,
            lambda step, extra: step == "Q8_0",
        )
    )
    refused = {name: how for name in WEIGHT_TYPES if (how := judged.refused(name)) is not None}
    assert refused == {"Q4_K": "bus error", "IQ4_XS": "bus error", "Q8_0": "wrong numbers"}


@pytest.mark.parametrize("step", verdict.STARTS)
def test_a_library_that_cannot_start_is_reported_with_the_reason(step: str) -> None:
    judged = verdict.judge(child(lambda at, _: "abort" if at == step else None))
    with pytest.raises(ModelLoadError, match=f"crashes when it {verdict.STARTS[step]} .abort.: .*pip install"):
        judged.require()


def test_the_instructions_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "instruction_checker", lambda: processor.cpuinfo_checker("flags : sse2 avx2"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    judged = verdict.judge(child(lambda at, _: "illegal instruction" if at == "start" else None))
    with pytest.raises(ModelLoadError, match=r"compiled for processors with AMX_INT8, which this one lacks\. .*pip"):
        judged.require()
    unknown = LibraryVerdict(None, judged.faults)
    with pytest.raises(ModelLoadError, match=r"a newer processor: this one has no SSE3 SSSE3 AVX F16C"):
        unknown.require()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, None), (1, None), (-int(signal.SIGTERM), None), (-9, None), (-int(signal.SIGSEGV), "segmentation fault"),
        (-int(signal.SIGILL), "illegal instruction"), (0xC000001D, "illegal instruction"),
        (0xC0000005, "access violation"), (128 + signal.SIGILL, "illegal instruction"),
    ],
)  # fmt: skip
def test_exit_codes_are_distinguished(code: int, words: str | None) -> None:
    assert verdict._crash(code) == words


def test_amx_that_could_not_be_tried_is_turned_off() -> None:
    assert LibraryVerdict(("AVX2",), untried="frozen").extra_buffers
    unsure = LibraryVerdict(("AVX2", "AMX_INT8"), untried="a frozen program has no Python to try it in")
    assert not unsure.extra_buffers
    assert "could not be tried on this processor (a frozen program" in str(unsure.warning())


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_verdict_is_kept_and_read_again_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "trials" / "x.json"
    judged = verdict.judge(child(lambda step, extra: "abort" if extra and step == "Q4_0" else None))
    verdict._save(judged, path)
    assert verdict._read(path) == judged
    incomplete = '{"faults": [{"step": 1}], "features": null, "n_types": 2}'
    endless = '{"faults": [], "features": null, "n_types": 1e999}'
    for text in ("", "[]", "{}", path.read_text()[:-9], incomplete, endless, "[" * 100_000):
        path.write_text(text)
        assert verdict._read(path) is None, text[:99]
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        assert verdict._read(path) is None


def test_a_verdict_counts_even_if_it_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO):
        verdict._save(LibraryVerdict(), tmp_path / "file" / "x.json")
    assert "cannot be saved for the next run" in caplog.text


def test_a_trial_that_was_killed_says_nothing_about_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    with pytest.raises(Undecided, match="ended with code -15"):
        verdict.run_child(True, ["F32"])
    monkeypatch.setattr(verdict, "_CHILD", "raise SystemError('no module')")
    with pytest.raises(Undecided, match="no module"):
        verdict.run_child(True, ["F32"])


def test_a_child_whose_exit_code_is_lost_has_crashed_in_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_CHILD", """print('{"step": "start"}')""")
    report = verdict.run_child(True, ["F32"])
    assert (report.crash, report.crashed_step) == ("crash", "start")


def test_a_child_that_hangs_says_nothing_about_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(verdict, "_CHILD", "import time; time.sleep(60)")
    with pytest.raises(Undecided, match=r"^the trial took longer than 0\.5 s$"):
        verdict.run_child(True, ["F32"])


def test_a_crash_leaves_no_files_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = "import json, os, sys; folder = json.loads(sys.argv[2])['folder']; open(folder + '/x', 'w').close(); "
    monkeypatch.setattr(verdict, "_CHILD", place + 'print(\'{"step": "Q4_0"}\', flush=True); os.abort()')
    assert verdict.run_child(True, ["F32"]).crash == "abort"
    assert not list(tmp_path.iterdir())


def test_modules_in_the_working_directory_are_not_imported_by_a_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("json", "enum", "types", "re", "functools", "collections"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*map(Path, sys.path), b"/x", "/\0", *sys.path])  # Python skips such entries, too
    assert verdict.run_child(True, ["F32"]).crash is None


@posix
def test_what_a_limit_breaks_is_not_kept(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from llamalite.native import verdict; import llamalite.native.trial\n"
        "verdict.run_child = lambda *_: verdict.Report([{'step': 'start'}], 'abort')\n"
        "resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "print(len(verdict.current().faults))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    for limit in (["RLIMIT_DATA", "4000000000"], ["RLIMIT_STACK", "500000"], ["RLIMIT_STACK", "8000000"]):
        command = [sys.executable, "-c", code, *limit]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ran.stdout == "1\n", ran.stderr
        assert len(list(tmp_path.rglob("trials/*.json"))) == (limit[1] == "8000000")


@posix
def test_a_user_without_a_home_gets_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(verdict, "run_child", child(lambda *_: None))
    assert verdict._cached_verdict.__wrapped__().faults == ()
    with pytest.raises(LlamaliteError, match="no home folder"):
        user_folders.cache_folder()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_during_a_trial_does_not_wait_for_it() -> None:
    code = (
        "import os, warnings; warnings.simplefilter('ignore'); from llamalite.native import verdict\n"
        "verdict._cached_verdict = lambda: 'x'\n"
        "with verdict._lock: pid = os.fork()\n"
        "print(verdict.current(), flush=True)\n"
        "if pid: os.waitpid(pid, 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["x", "x"]


def test_a_program_without_a_python_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "frozen" in str(verdict._cannot_try())
    monkeypatch.setattr(sys, "frozen", False)
    monkeypatch.setattr(sys, "executable", "/opt/editor/bin/editor")
    assert "not Python" in str(verdict._cannot_try())


# ── libraries that are broken on purpose ────────────────────────────────────────────────────────────────────────────


def figures(text: str) -> list[str]:
    """The lines of `text` that are the same each time."""
    return [line for line in text.splitlines() if not line.startswith("speed")]


@posix
@pytest.mark.parametrize("fault", ["dies with extra buffers", "computes something else with extra buffers"])
def test_a_broken_build_answers_correctly_in_every_verb_with_one_warning(
    fault: str, llamalite_command: Run, tmp_path: Path
) -> None:
    toy.write_toy(tmp_path / "toy.gguf")
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 40)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    environment = broken_llama.install(tmp_path, fault)

    def answers() -> list[str]:
        """What `batch` wrote, which is removed: it would not answer a line twice."""
        path = tmp_path / "answers.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line)["text"] for line in lines]

    for arguments in (
        ANSWER,
        ["perplexity", "toy.gguf", "-f", "text.txt", "--ctx", "64", "--chunks", "2"],
        ["batch", "toy.gguf", "-i", "prompts.jsonl", "-o", "answers.jsonl", "-n", "4", "--temp", "0"],
    ):
        right, expected = llamalite_command(*arguments, "-q"), answers()
        assert right.returncode == 0, right.stderr
        ran = llamalite_command(*arguments, env=environment)
        assert (ran.returncode, figures(ran.stdout)) == (0, figures(right.stdout)), ran.stderr
        assert answers() == expected
        assert ran.stderr.count("repacked weights are off") == 1, ran.stderr
    shown = " ".join(llamalite_command("doctor", env=environment).stdout.split())
    assert "turned off" in shown
    assert "pip install" in shown
    assert "fails" in shown


@posix
def test_a_broken_build_answers_from_python_too(tmp_path: Path) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf")
    code = (
        "import logging, sys, llamalite; logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(message)s')\n"
        "for _ in range(2):\n"
        "    with llamalite.Model(sys.argv[1]) as model: print(model.generate('Once', max_tokens=4).text)"
    )
    environment = broken_llama.install(tmp_path, "dies with extra buffers")
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("WARNING the installed llama-cpp-python fails on this processor") == 1


@posix
def test_the_trial_is_made_once(tmp_path: Path) -> None:
    environment = broken_llama.install(tmp_path, "dies with extra buffers")
    code = (
        "from llamalite.native import verdict; real = verdict.run_child\n"
        "def counted(*arguments): print('tried'); return real(*arguments)\n"
        "verdict.run_child = counted; print(verdict.current().extra_buffers)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout.split()
        for _ in range(2)
    ]
    assert runs == [["tried", "tried", "False"], ["False"]]


@posix
def test_a_type_that_never_works_is_refused_and_the_process_lives(llamalite_command: Run, tmp_path: Path) -> None:
    environment = broken_llama.install(tmp_path, "dies with Q8_0")
    toy.write_toy(tmp_path / "toy.gguf")
    made = llamalite_command("convert", "toy.gguf", "-t", "Q8_0", "-o", "small.gguf", env=environment)
    assert made.returncode == 0, made.stderr
    ran = llamalite_command("run", "small.gguf", *ANSWER[2:], env=environment)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: small.gguf has Q8_0 weights, with which the installed llama-cpp-python fails")
    assert llamalite_command(*ANSWER, env=environment).returncode == 0


@posix
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "for a newer processor",
            "cannot run on this processor (illegal instruction): it uses an instruction that this",
        ),
        ("aborts at the start", "crashes when it starts (abort): "),
    ],
)
def test_a_library_that_cannot_start_is_reported_in_every_verb(
    fault: str, words: str, llamalite_command: Run, tmp_path: Path
) -> None:
    toy.write_toy(tmp_path / "toy.gguf")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 40)
    environment = broken_llama.install(tmp_path, fault)
    for arguments in (ANSWER, ["perplexity", "toy.gguf", "-f", "text.txt"], ["--version"], ["doctor"]):
        ran = llamalite_command(*arguments, env=environment)
        assert ran.returncode == 1
        (line,) = ran.stderr.splitlines()
        assert line.startswith(f"error: the installed llama-cpp-python {words}"), line
        assert "pip install" in line
    # Commands that do not need it work: libggml-base is compiled for every processor.
    made = llamalite_command("convert", "toy.gguf", "-t", "Q8_0", "-o", "small.gguf", env=environment)
    assert made.returncode == 0, made.stderr


def test_libraries_in_another_folder_get_a_verdict_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(installed.library_folder(), tmp_path / "lib")
    script = "from llamalite.native import verdict; print(verdict.current().extra_buffers, verdict._identity())"

    def judged() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    here = judged()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    assert installed.library_folder() == folder
    assert here.split()[0] == judged().split()[0]
    assert here.split()[1] != judged().split()[1]


def test_the_trial_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from llamalite.native import verdict\n"
        "verdict.run_child = None\n"
        "print(verdict.current().extra_buffers, verdict.current().n_types)"
    )
    environment = os.environ | {"LLAMALITE_TRIAL": "off", "PYTHONPATH": str(Path(installed.__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ran.stdout.split() == ["True", "0"], ran.stderr


def test_doctor_as_json_has_the_verdict(llamalite_command: Run) -> None:
    document = json.loads(llamalite_command("doctor", "--json").stdout)
    assert document["verdict"]["n_types"] == len(WEIGHT_TYPES)
    assert document["verdict"]["faults"] == []
