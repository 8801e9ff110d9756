"""Checkpoints are converted once into the models folder, again when they change, and never over another file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Run
from toy_checkpoint import write_checkpoint

from llamalite import store
from llamalite.converters import QuantizeParams, convert
from llamalite.errors import LlamaliteError
from llamalite.files import source_note
from llamalite.model import Model


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / "mine", n_layer=1, n_embd=64, n_ff=192)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def later(path: Path) -> None:
    os.utime(path, ns=(stamp(path) + 10**9,) * 2)


def test_a_checkpoint_is_converted_once_and_says_so(checkpoint: Path, models_folder: Path) -> None:
    said: list[str] = []
    path = store.obtain("mine", "Q8_0", announce=said.append)
    assert path == models_folder / "mine-Q8_0.gguf"
    assert said == [f"converting mine to Q8_0, once: {path}"]
    made = stamp(path)
    for reference in ("mine", "./mine", str(checkpoint)):
        assert store.obtain(reference, "Q8_0", announce=said.append) == path
    assert (stamp(path), len(said)) == (made, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_to_a_checkpoint_gives_the_model_its_own_name(checkpoint: Path, models_folder: Path) -> None:
    Path("linked").symlink_to(checkpoint)
    made = store.obtain("./linked")
    assert made == models_folder / "linked-Q4_K_M.gguf"
    written = stamp(made)
    for reference in ("linked", "./linked", "linked-Q4_K_M"):
        assert store.obtain(reference) == made
    assert (stamp(made), len(list(models_folder.glob("*.gguf")))) == (written, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_that_now_leads_to_another_checkpoint_is_reported(checkpoint: Path, tmp_path: Path) -> None:
    Path("linked").symlink_to(checkpoint)
    made = store.obtain("./linked")
    Path("linked").unlink()
    Path("linked").symlink_to(shutil.copytree(checkpoint, tmp_path / "another"))
    said: list[str] = []
    assert store.obtain("linked", announce=said.append) == made
    note = "linked-Q4_K_M.gguf in the models folder was made from"
    assert said == [f"{note} {checkpoint.resolve()}; ./linked is another checkpoint"]
    Path("linked").unlink()
    Path("linked").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="linked is a link to nowhere, which does not exist"):
        store.obtain("./linked")


@pytest.mark.parametrize("name", ["mine", "./mine", "mine-Q4_K_M"])
def test_it_is_converted_again_when_a_file_has_changed(checkpoint: Path, name: str) -> None:
    made = stamp(path := store.obtain("./mine"))
    (checkpoint / "train.log").write_text("no part of the model")
    assert stamp(store.obtain(name)) == made
    later(checkpoint / "config.json")
    said: list[str] = []
    if name == "mine-Q4_K_M":  # a file by its own name is what it is
        assert (stamp(store.obtain(name, announce=said.append)), said) == (made, [])
        return
    assert stamp(store.obtain(name, announce=said.append)) > made
    assert said == [f"converting {said[0].split()[1][:-1]}, which has changed (config.json), to Q4_K_M, once: {path}"]
    (checkpoint / "generation_config.json").write_text("{}")
    store.obtain(name, announce=said.append)
    assert "has changed (generation_config.json)" in said[1]
    store.obtain(name, announce=said.append)
    assert len(said) == 2


def test_a_conversion_that_fails_leaves_the_file_its_note(checkpoint: Path, models_folder: Path) -> None:
    path, config = store.obtain("./mine", "F32"), checkpoint / "config.json"
    whole = config.read_bytes()
    config.write_text("{")
    with pytest.raises(LlamaliteError):
        store.obtain("./mine", "F32")
    config.write_bytes(whole)
    assert store.obtain("./mine", "F32") == path
    assert sorted(path.name for path in models_folder.iterdir()) == ["mine-F32.gguf", "mine-F32.gguf.source"]


def test_another_folder_of_the_same_name_has_a_file_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "elsewhere" / "mine", n_layer=2, n_embd=64, n_ff=192)
    first, second = store.obtain("./mine", "F32"), store.obtain(other, "F32")
    assert first.name == "mine-F32.gguf"
    assert second.name.startswith("mine-")
    assert first != second
    assert (store.obtain("./mine", "F32"), store.obtain(other, "F32")) == (first, second)


def test_a_file_that_was_made_differently_is_never_replaced(checkpoint: Path, models_folder: Path) -> None:
    models_folder.mkdir()
    (models_folder / "mine-F32.gguf").write_bytes(b"somebody's own")
    path = store.obtain("./mine", "F32")
    assert path != models_folder / "mine-F32.gguf"
    assert (models_folder / "mine-F32.gguf").read_bytes() == b"somebody's own"
    path.write_bytes(b"and this one too")  # no longer what is written beside it
    with pytest.raises(LlamaliteError, match="was not made from"):
        store.obtain("./mine", "F32")
    assert path.read_bytes() == b"and this one too"


def test_what_convert_made_is_used_and_made_again_only_without_options(
    checkpoint: Path, llamalite_command: Run, models_folder: Path
) -> None:
    assert llamalite_command("convert", "mine").returncode == 0
    made = stamp(models_folder / "mine-Q4_K_M.gguf")
    assert stamp(store.obtain("./mine")) == made
    later(checkpoint / "config.json")
    assert stamp(store.obtain("./mine")) > made
    assert llamalite_command("convert", "mine", "--pure", "--force").returncode == 0
    made = stamp(models_folder / "mine-Q4_K_M.gguf")
    assert store.obtain("./mine") == models_folder / "mine-Q4_K_M.gguf"
    later(checkpoint / "config.json")
    assert store.obtain("./mine") != models_folder / "mine-Q4_K_M.gguf"
    assert stamp(models_folder / "mine-Q4_K_M.gguf") == made


def test_what_python_converts_into_the_models_folder_is_used_too(checkpoint: Path, models_folder: Path) -> None:
    report = convert("mine", models_folder, qtype=["F32", "Q8_0"])  # a folder that is not there yet
    made = {output.qtype: output.path for output in report.outputs}
    assert {qtype: store.obtain("./mine", qtype) for qtype in made} == made
    note = source_note.read_current(made["Q8_0"])
    assert note is not None
    assert (note.folder, note.qtype, note.plain) == (str(checkpoint.resolve()), "Q8_0", True)
    convert("mine", made["F32"], qtype="F32", params=QuantizeParams(pure=True), force=True)
    pure = source_note.read_current(made["F32"])
    assert pure is not None
    assert not pure.plain


def test_a_file_in_another_folder_gets_no_note(checkpoint: Path, tmp_path: Path) -> None:
    convert("mine", tmp_path / "mine.gguf", qtype="F32")
    convert("mine", tmp_path / "several", qtype=["F32", "Q8_0"])
    assert not list(tmp_path.rglob("*.source"))


def test_a_gguf_source_takes_the_note_of_the_file_that_it_replaces(checkpoint: Path, tmp_path: Path) -> None:
    path = store.obtain("./mine", "F32")
    shutil.copy(path, tmp_path / "source.gguf")
    convert(tmp_path / "source.gguf", path, qtype="F32", force=True)
    assert source_note.read(path) is None
    assert not source_note.path_of(path).exists()


def test_what_changes_during_a_conversion_is_converted_next_time(checkpoint: Path, models_folder: Path) -> None:
    models_folder.mkdir()

    def change(done: int, total: int) -> None:
        (checkpoint / "generation_config.json").write_text("{}")

    convert("mine", made := models_folder / "mine-F32.gguf", qtype="F32", progress=change)
    said: list[str] = []
    assert store.obtain("./mine", "F32", announce=said.append) == made
    assert said == [f"converting mine, which has changed (generation_config.json), to F32, once: {made}"]


def test_a_note_that_cannot_be_written_is_a_warning(checkpoint: Path, models_folder: Path) -> None:
    made = models_folder / "mine-F32.gguf"
    source_note.path_of(made).mkdir(parents=True)
    report = convert("mine", made, qtype="F32")
    assert report.path.is_file()
    assert any("the note of their source cannot be written" in warning for warning in report.warnings)


def test_a_damaged_note_is_ignored(checkpoint: Path) -> None:
    path = store.obtain("./mine", "F32")
    note = source_note.path_of(path)
    for text in ("", "[]", "{}", json.dumps({"made": None}), "\x00", "[" * 100_000):
        note.write_text(text)
        assert store.obtain("mine-F32") == path
        assert store.obtain("./mine", "F32") != path


def test_demo_is_the_model_that_ships_with_llamalite(models_folder: Path, tmp_path: Path) -> None:
    assert store.locate("demo") == store.demo_checkpoint()
    assert store.obtain("demo-Q8_0") == models_folder / "demo-Q8_0.gguf"
    assert store.obtain("DEMO") == models_folder / "demo-Q8_0.gguf"  # the one there is
    assert store.obtain("demo", "Q2_K") == models_folder / "demo-Q2_K.gguf"
    assert store.obtain("demo-q4_k", "Q8_0") == models_folder / "demo-Q4_K_M.gguf"  # what is named stands


def test_a_miss_offers_the_demo_too(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model 'dmeo': did you mean demo?"):
        store.obtain("dmeo")
    with pytest.raises(FileNotFoundError, match="^no model '': "):
        store.obtain("")


def test_from_pretrained_keeps_its_conversion_in_the_same_place(checkpoint: Path, models_folder: Path) -> None:
    with Model.from_pretrained("./mine", "F32", n_threads=1) as model:
        assert model.path == models_folder / "mine-F32.gguf"
    assert store.obtain("./mine", "F32") == models_folder / "mine-F32.gguf"


def test_in_every_command_a_bare_name_is_of_the_models_folder_before_it_is_a_path(
    checkpoint: Path, llamalite_command: Run, models_folder: Path
) -> None:
    store.obtain("./mine", "F32")
    other = write_checkpoint(checkpoint.parent / "other", n_layer=2, n_embd=64, n_ff=192)
    other.rename(checkpoint.parent / "mine-F32")  # a checkpoint that is called like the model
    Path("text.txt").write_text("a b c " * 2000)
    Path("in.jsonl").write_text('{"prompt": "a", "max_tokens": 1}\n')
    measured = ("-f", "text.txt", "--ctx", "256", "--chunks", "2", "--threads", "1")
    for verb, *more in (
        ("run", "a", "-n", "1", "--threads", "1"), ("inspect",), ("perplexity", *measured),
        ("batch", "-i", "in.jsonl", "-o", "out.jsonl", "--threads", "1"), ("bench", "-p", "8", "-n", "1", "-r", "1"),
        ("imatrix", *measured, "-o", "imatrix.gguf"), ("verify", "--against", "mine"), ("doctor",),
    ):  # fmt: skip
        ran = llamalite_command(verb, "mine-F32", *more)
        assert ran.returncode == 0, (verb, ran.stderr)
        assert "converting" not in ran.stderr
    ran = llamalite_command("compare", "mine-F32", "mine-F32", *measured)
    assert ran.returncode == 0, ran.stderr
    assert "mine-F32 means mine-F32.gguf in the models folder; the checkpoint here is ./mine-F32" in ran.stderr
    assert [path.name for path in models_folder.glob("*.gguf")] == ["mine-F32.gguf"]
    assert "converting mine-F32 to Q4_K_M, once" in llamalite_command("inspect", "./mine-F32").stderr
