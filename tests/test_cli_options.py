"""Every option of every verb: a value that it can never take is wrong usage, always one line and exit code 2.

What this model or this machine cannot do is exit code 1, in one line too.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import toy
from conftest import Run

from llamalite import cli
from llamalite.cli import _options
from llamalite.native.context_options import KV_TYPES
from llamalite.quant_types import file_type
from llamalite.store import hub

# What each verb needs besides options. The model does not exist: an absurd value that is accepted gives exit code 1.
NEEDED = {
    "convert": ["nowhere"],
    "verify": ["nowhere.gguf", "--against", "nowhere"],
    "run": ["nowhere.gguf", "hi"],
    "list": [],
    "inspect": ["nowhere.gguf"],
    "remove": ["nowhere"],
    "batch": ["nowhere.gguf", "-i", "FILE", "-o", "out.jsonl"],
    "perplexity": ["nowhere.gguf", "-f", "FILE"],
    "compare": ["nowhere.gguf", "nowhere.gguf", "-f", "FILE"],
    "imatrix": ["nowhere.gguf", "-f", "FILE", "-o", "out.gguf"],
    "eval": ["nowhere.gguf", "task"],
    "bench": ["nowhere.gguf"],
    "doctor": ["nowhere.gguf"],
    "demo": ["nowhere"],
    "completion": ["bash"],
    "serve": ["no-such-model"],
}
ABSURD = ("nan", "inf", "-inf", "1e999", "-1", "abc", "", "9" * 30, "٣٣x", "0x10", "1,", "\x00")
# Options that a callback parses, and a value that they take.
PARSED = {
    ("bench", "--threads"), ("bench", "--batch"), ("bench", "--ubatch"), ("bench", "--kv-type"),
    ("bench", "--gpu-layers"), ("run", "--gpu-layers"), ("batch", "--gpu-layers"), ("perplexity", "--gpu-layers"),
    ("compare", "--gpu-layers"), ("imatrix", "--gpu-layers"), ("convert", "--split-max-size"), ("convert", "--type"),
    ("compare", "--type"), ("serve", "--gpu-layers"),
}  # fmt: skip


def numbers() -> Iterator[tuple[str, str]]:
    """Every option that takes a number, and those that are parsed: (verb, option)."""
    for verb, (module, _) in cli.VERBS.items():
        for param in importlib.import_module(module).command.params:
            name = max(param.opts, key=len)
            types = (click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT), click.Choice)
            counted = isinstance(param, click.Option) and (param.count or param.is_flag)
            if (isinstance(param, click.Option) and isinstance(param.type, types) and not counted) or (
                verb, name
            ) in PARSED:  # fmt: skip
                yield verb, name


def outcome(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, captured.out, captured.err


def needed(verb: str, tmp_path: Path) -> list[str]:
    (tmp_path / "file.txt").write_text("once upon a time")
    return [str(tmp_path / "file.txt") if word == "FILE" else word for word in NEEDED[verb]]


def test_every_verb_is_here() -> None:
    assert set(NEEDED) == set(cli.VERBS)
    options = set(numbers())
    assert options >= PARSED
    assert {("run", "--temp"), ("perplexity", "--ctx"), ("verify", "--threads"), ("bench", "--repetitions")} <= options


@pytest.mark.parametrize(("verb", "option"), sorted(numbers()))
def test_a_value_that_an_option_can_never_take_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ABSURD:
        code, out, err = outcome(capsys, verb, *needed(verb, tmp_path), option, value)
        assert (code, out) == (2, ""), (value, err)
        assert err.startswith("error: Invalid value for "), (value, err)
        assert option in err
        assert err.endswith(f"See llamalite {verb} --help\n")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [(verb, "--threads", value) for verb in ("run", "batch", "perplexity", "compare", "imatrix", "eval", "bench",
                                            "convert", "verify") for value in ("0", "100000")]
    + [(verb, "--ctx", "0") for verb in ("run", "batch", "perplexity", "compare", "imatrix", "doctor")]
    + [("run", "--temp", "5000"), ("run", "--lora", "x=nan"), ("run", "--kv-type", "Q9"), ("compare", "-t", "Q9"),
       ("convert", "-t", "Q9"), ("convert", "--split-max-size", "0M"), ("bench", "-r", "0"),
       ("run", "--seed", str(2**32))],
)  # fmt: skip
def test_bounds_are_the_same_everywhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    verb: str, option: str, value: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, verb, *needed(verb, tmp_path), option, value)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "Invalid value for " in err


# Not eval: the harness takes a minute to import.
@pytest.mark.parametrize("verb", sorted(set(NEEDED) - {"eval", "list", "completion"}))
def test_a_model_that_is_not_there_is_one_line_and_exit_code_1(
    llamalite_command: Run, tmp_path: Path, verb: str
) -> None:
    for missing in ("nowhere.gguf", "nowhere", ""):
        words = [missing if word.startswith("nowhere") else word for word in needed(verb, tmp_path)]
        ran = llamalite_command(verb, *words, *(["--yes"] if verb == "remove" else []))
        assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), (missing, ran.stderr)
        assert ran.stderr.startswith("error: ")
        assert "fault in llamalite" not in ran.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["run", "MODEL", "hi", "--ctx", str(2**31 - 1)],
        ["run", "MODEL", "hi", "-n", str(2**31 - 1)],
        ["perplexity", "MODEL", "-f", "FILE", "--ctx", "1"],
        ["perplexity", "MODEL", "-f", "FILE", "--ctx", str(2**31 - 1)],
        ["perplexity", "MODEL", "-f", "FILE", "--batch", str(2**31 - 1), "--chunks", "1"],
        ["compare", "MODEL", "MODEL", "-f", "FILE", "--ctx", "1"],
        ["imatrix", "MODEL", "-f", "FILE", "-o", "out.gguf", "--ctx", "1"],
        ["bench", "MODEL", "-p", "0", "-n", "0"],
    ],
)
def test_a_request_that_this_model_or_machine_cannot_meet_is_one_line_and_exit_code_1(
    llamalite_command: Run, tmp_path: Path, args: list[str]
) -> None:
    path = toy.write_toy(tmp_path / "toy.gguf")
    (tmp_path / "file.txt").write_text("once upon a time")
    ran = llamalite_command(*({"MODEL": str(path), "FILE": "file.txt"}.get(word, word) for word in args))
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert ran.stderr.startswith("error: ")
    assert "fault in llamalite" not in ran.stderr


def test_the_cache_types_are_those_that_a_cache_can_have() -> None:
    assert list(_options.KV_TYPE.choices) == list(KV_TYPES)


def test_every_verb_takes_v_and_q(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        code, out, _ = outcome(capsys, verb, "--help")
        assert code == 0
        assert "-v, --verbose" in out
        assert "-q, --quiet" in out


def test_names_that_llama_quantize_takes_for_a_type_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """``QUANT_OPTIONS`` (tools/quantize/quantize.cpp of llama.cpp, as llama-cpp-python 0.3.36 carries it)."""
    assert [file_type(name).name for name in ("Q3_K", "q4_k", "Q5_K")] == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
    assert hub.split_type("org/name:q4_k") == ("org/name", "Q4_K_M")
    code, _, err = outcome(capsys, "convert", "nowhere", "-t", "q4_k", "-t", "Q4_K_M")
    assert (code, "a type is repeated in Q4_K_M, Q4_K_M" in err) == (2, True)


@pytest.mark.parametrize(
    ("typed", "meant"), [("Q4", "Q4_K_M"), ("q4km", "Q4_K_M"), ("Q6_K_M", "Q6_K"), ("Q3", "Q3_K_M"), ("Q8", "Q8_0")]
)
def test_an_unknown_type_suggests_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    assert f"unknown type {typed!r}; did you mean {meant}? (" in outcome(capsys, "convert", "nowhere", "-t", typed)[2]
    with pytest.raises(ValueError, match=rf"unknown type {typed!r} \(did you mean {meant}\?\); known are F32"):
        file_type(typed)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "mine").touch(mode=0o400)
    with pytest.raises(PermissionError, match="mine cannot be written"):
        _options.check_writable(tmp_path / "mine")


def test_the_output_folder_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _options.check_writable(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere to write new into"):
        _options.check_writable(tmp_path / "nowhere" / "new")
    with pytest.raises(IsADirectoryError, match="is a folder: name a file"):
        _options.check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(PermissionError, match="new cannot be written: its permissions do not allow it"):
        _options.check_writable(tmp_path / "new")
