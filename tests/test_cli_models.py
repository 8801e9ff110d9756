"""list, inspect and remove: what is in the models folder, what a file is without loading it, and what is deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy
from conftest import Run
from toy_checkpoint import write_checkpoint

import llamalite
from llamalite import store
from llamalite.cli import _text
from llamalite.converters import convert
from llamalite.store.inspection import inspect


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    """Two models, a split one, and a file that is cut short."""
    models_folder.mkdir()
    path = toy.write_toy(models_folder / "base-F32.gguf")
    toy.write_toy(models_folder / "chat-F32.gguf", chat_template=toy.CHATML, n_ctx_train=4096)
    convert(path, models_folder / "split-F32.gguf", qtype="F32", split_max_bytes=200_000)
    (models_folder / "broken-Q4_K_M.gguf").write_bytes(path.read_bytes()[:3000])
    return models_folder


# ── list ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_each_model_in_a_line_without_tabs_or_colours(llamalite_command: Run, folder: Path) -> None:
    ran = llamalite_command("list")
    assert ran.returncode == 0, ran.stderr
    head, *lines = ran.stdout.splitlines()
    assert head.split() == ["NAME", "SIZE", "TYPE", "BPW", "CONTEXT", "TEMPLATE", "FITS"]
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert list(cells) == ["base-F32", "broken-Q4_K_M", "chat-F32", "split-F32"]
    assert cells["base-F32"][2:] == ["F32", "32.00", "1024", "no", "yes"]
    assert cells["chat-F32"][2:] == ["F32", "32.00", "4096", "yes", "yes"]
    assert cells["broken-Q4_K_M"][-1] == "damaged"
    assert "\t" not in ran.stdout + ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    assert ran.stderr.startswith("broken-Q4_K_M: ")


def test_list_as_json_says_the_same_and_nothing_else(llamalite_command: Run, folder: Path) -> None:
    ran = llamalite_command("-q", "list", "--json")
    assert ran.stderr == ""
    document = json.loads(ran.stdout)
    assert document["folder"] == str(folder)
    models = {model["name"]: model for model in document["models"]}
    sizes = sum(path.stat().st_size for path in folder.glob("split-F32-*.gguf"))
    assert models["split-F32"]["n_bytes"] == sizes
    assert models["chat-F32"]["has_template"] is True
    assert models["chat-F32"]["fits"] is True
    assert "the file is damaged or incomplete" in models["broken-Q4_K_M"]["problem"]


def test_a_model_larger_than_the_free_memory_does_not_fit(folder: Path) -> None:
    inspection = inspect(folder / "base-F32.gguf")
    assert inspection.fits(2**40) is True
    assert inspection.fits(1000) is False


def test_an_empty_folder_says_what_to_do(llamalite_command: Run) -> None:
    ran = llamalite_command("list")
    assert (ran.returncode, "llamalite run demo" in ran.stdout) == (0, True)
    assert json.loads(llamalite_command("list", "--json").stdout)["models"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of POSIX")
@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_a_table_keeps_to_its_width(folder: Path, colour: bool) -> None:
    toy.write_toy(folder / f"{'a-very-long-name-' * 6}F32.gguf")
    shown = on_terminal("list", colour=colour)
    lines = [line for line in shown.splitlines() if "F32" in line or "…" in line or "NAME" in line]
    assert all(len(line.replace("\x1b[1m", "").replace("\x1b[0m", "")) < 80 for line in lines), shown
    assert "…" in shown
    assert "Next: llamalite run NAME" in shown
    assert ("\x1b[1m" in shown) == colour


def on_terminal(*args: str | Path, colour: bool = True, typed: str = "", columns: int = 80) -> str:
    """Return the exit code, and what a pseudo-terminal shows."""
    import pty

    own, theirs = pty.openpty()
    environment = os.environ | {
        "PYTHONPATH": str(Path(llamalite.__file__).parents[1]),
        "TERM": "xterm",
        "COLUMNS": str(columns),
    }
    environment |= {} if colour else {"NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "llamalite", *map(str, args)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        os.write(own, typed.encode())
        shown = b""
        while True:
            try:
                data = os.read(own, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(own)
    return f"{process.returncode}\n" + shown.decode().replace("\r\n", "\n")


# ── inspect ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inspect_describes_a_model_without_loading_it(llamalite_command: Run, folder: Path) -> None:
    ran = llamalite_command("inspect", "chat")
    assert (ran.returncode, ran.stderr) == (0, "")
    for part in (
        "architecture  llama (GGUF 3)", "type          F32, 32.00 bits per weight", "in 21 tensors",
        "2 layers, 64 wide, 4 heads, 2 of keys and values, feed-forward 96", "trained for 4,096 tokens",
        "yes: answers messages", "SentencePiece", "bos <s> (1), eos </s> (2)", "2,048 tokens", "fits",
        "llamalite run uses 4,096 tokens", "llama.block_count", "× string]",
    ):  # fmt: skip
        assert " ".join(part.split()) in " ".join(ran.stdout.split()), part
    listed = llamalite_command("inspect", "chat", "--tensors").stdout.splitlines()
    assert any(line.split()[:2] == ["blk.1.ffn_down.weight", "F32"] for line in listed)


def test_the_parts_of_the_memory_add_up_as_printed_and_are_those_of_a_dry_run(
    llamalite_command: Run, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "mine", n_embd=256, n_ff=512)
    planned = llamalite_command("convert", source, "-t", "Q4_K_M", "--dry-run").stdout
    shown = llamalite_command("inspect", source).stdout
    head = next(line for line in shown.splitlines() if line.startswith("  CONTEXT"))
    assert head.split() == ["CONTEXT", "WEIGHTS", "REPACKED", "CACHE", "BUFFERS", "TOTAL"]
    rows = [line.split() for line in shown.splitlines() if line.endswith(("  fits", "  too much"))]
    assert rows
    for row in rows:
        weights, repacked, cache, buffers, total = (round(100 * float(cell.replace(",", ""))) for cell in row[2:7])
        assert weights + repacked + cache + buffers == total
    memory = llamalite_command("inspect", source, "--json").stdout
    for need in json.loads(memory)["memory"]:
        assert f"{_text.size(need['total_bytes'])} with {need['n_ctx']:,}" in planned


def test_inspect_as_json_has_every_key_and_tensor(llamalite_command: Run, folder: Path) -> None:
    document = json.loads(llamalite_command("inspect", "split", "--json").stdout)
    whole = json.loads(llamalite_command("inspect", "base", "--json").stdout)
    assert len(document["paths"]) > 1
    assert sorted(tensor["name"] for tensor in document["tensors"]) == sorted(
        tensor["name"] for tensor in whole["tensors"]
    )
    assert document["metadata"]["llama.block_count"] == 2
    assert document["metadata"]["tokenizer.ggml.tokens"] == {"type": "array[string]", "length": len(toy.vocabulary())}
    assert [needed["n_ctx"] for needed in whole["memory"]] == [1024]
    assert whole["memory"][0]["total_bytes"] > whole["n_bytes"] - 100_000
    assert whole["types"] == [
        {"name": "F32", "n_tensors": 21, "n_params": whole["n_params"], "n_bytes": 4 * whole["n_params"]}
    ]


def other_file(path: Path, arch: str, **keys: object) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value) if isinstance(value, int) else writer.add_string(
            key.replace("__", "."), str(value)
        )
    writer.add_tensor("blk.0.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inspect_describes_other_families_and_files_that_are_not_models(llamalite_command: Run, tmp_path: Path) -> None:
    other = other_file(tmp_path / "other.gguf", "qwen2", qwen2__block_count=1, qwen2__context_length=4096)
    ran = llamalite_command("inspect", other)
    assert (ran.returncode, "qwen2 (GGUF 3)" in ran.stdout) == (0, True), ran.stderr
    adapter = other_file(tmp_path / "lora.gguf", "llama", general__type="adapter")
    ran = llamalite_command("inspect", adapter)
    assert ran.returncode == 0
    assert "llama, adapter" in ran.stdout
    assert "does not load" in ran.stdout
    unfit = other_file(tmp_path / "unfit.gguf", "llama", llama__context_length=64)
    ran = llamalite_command("inspect", unfit)
    assert (ran.returncode, "does not load" in ran.stdout) == (1, True)
    assert json.loads(llamalite_command("inspect", unfit, "--json").stdout)["problem"]


def test_inspect_refuses_what_has_no_header(llamalite_command: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model at all")
    for model in ("broken", "text.gguf", "nothing"):
        ran = llamalite_command("inspect", model)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)


def test_text_in_a_file_cannot_control_the_terminal(llamalite_command: Run, tmp_path: Path) -> None:
    toy.write_toy(
        tmp_path / "evil.gguf", metadata={"general.description": "\x1b[2J\x07gone", "general.version": "a\nb"}
    )
    for args in (("inspect", "evil.gguf"), ("inspect", "evil.gguf", "--json")):
        shown = llamalite_command(*args).stdout
        assert "\x1b" not in shown
        assert "\x07" not in shown
    assert "\\x1b[2J" in llamalite_command("inspect", "evil.gguf").stdout


def test_inspect_and_run_take_a_checkpoint(llamalite_command: Run, tmp_path: Path, models_folder: Path) -> None:
    write_checkpoint(tmp_path / "mine", n_layer=1, n_embd=64, n_ff=192)
    first = llamalite_command("inspect", "./mine")
    assert first.stderr == f"converting mine to Q4_K_M, once: {models_folder / 'mine-Q4_K_M.gguf'}\n"
    again = llamalite_command("run", "./mine", "a", "-n", "1", "--threads", "1")
    assert (again.returncode, again.stderr) == (0, "")


# ── remove ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_remove_deletes_all_files_of_a_model_and_no_others(llamalite_command: Run, folder: Path) -> None:
    others = {path for path in folder.iterdir() if "split" not in path.name}
    ran = llamalite_command("remove", "split", "-y")
    assert ran.returncode == 0, ran.stderr
    assert "1 model removed" in ran.stdout
    assert set(folder.iterdir()) == others
    assert llamalite_command("remove", "base-F32", "chat-F32.gguf", "--yes", "-q").stdout == ""
    assert [path.name for path in folder.iterdir()] == ["broken-Q4_K_M.gguf"]


def test_remove_also_deletes_a_conversions_note(llamalite_command: Run, tmp_path: Path, models_folder: Path) -> None:
    write_checkpoint(tmp_path / "mine", n_layer=1, n_embd=64, n_ff=192)
    llamalite_command("convert", "mine", "-t", "F32")
    assert len(list(models_folder.iterdir())) == 2
    assert llamalite_command("remove", "mine", "-y").returncode == 0
    assert list(models_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "sub/inside", "..", ".", "", "/etc/passwd", "outside", "*", "base-*"])
def test_remove_never_leaves_the_models_folder(llamalite_command: Run, folder: Path, tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "outside.gguf", folder / "sub" / "inside.gguf"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"GGUF")
    before = sorted(tmp_path.rglob("*.gguf"))
    ran = llamalite_command("remove", name, "--yes")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert sorted(tmp_path.rglob("*.gguf")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links want a privilege on Windows")
def test_remove_deletes_a_link_and_not_what_it_points_to(llamalite_command: Run, folder: Path, tmp_path: Path) -> None:
    target = toy.write_toy(tmp_path / "target.gguf")
    (folder / "link-F32.gguf").symlink_to(target)
    assert llamalite_command("remove", "link", "-y").returncode == 0
    assert target.exists()
    assert not (folder / "link-F32.gguf").is_symlink()


def test_remove_removes_nothing_when_one_name_is_wrong_or_means_several(llamalite_command: Run, folder: Path) -> None:
    toy.write_toy(folder / "base-F16.gguf")
    before = sorted(folder.iterdir())
    missing = llamalite_command("remove", "chat", "bse", "-y")
    assert (missing.returncode, "did you mean base?" in missing.stderr) == (1, True)
    several = llamalite_command("remove", "base", "-y")
    assert several.stderr == "error: 'base' is the name of 2 models: name one of base-F16, base-F32\n"
    assert sorted(folder.iterdir()) == before


def test_remove_asks_on_a_terminal_and_wants_yes_elsewhere(llamalite_command: Run, folder: Path) -> None:
    ran = llamalite_command("remove", "base", input="y\n")
    assert (ran.returncode, "add --yes" in ran.stderr) == (2, True)
    assert (folder / "base-F32.gguf").exists()
    if sys.platform != "win32":
        shown = on_terminal("remove", "base", typed="n\n")
        assert shown.startswith("1\n")
        assert "Delete it? [y/N]" in shown
        assert "Nothing removed." in shown
        assert "error" not in shown
        assert (folder / "base-F32.gguf").exists()
        assert "1 model removed" in on_terminal("remove", "base", typed="y\n")
        assert not (folder / "base-F32.gguf").exists()


def test_names_of_split_models_leave_the_shard_out(folder: Path) -> None:
    assert store.resolve("split") == folder / next(p.name for p in sorted(folder.glob("split-F32-00001*")))
    (folder / next(p.name for p in sorted(folder.glob("split-F32-00001*")))).unlink()
    assert any(store.name_of(path) == "split-F32" for path in store.list_models())  # listed: it shall be seen


def test_a_conversion_elsewhere_needs_no_models_folder(
    llamalite_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "mine", n_layer=1, n_embd=64, n_ff=192)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLAMALITE_MODELS", str(tmp_path / "file"))
    ran = llamalite_command("convert", "mine", "-t", "F32", "-o", "here.gguf")
    assert (ran.returncode, "llamalite run here.gguf" in ran.stdout + ran.stderr) == (0, True), ran.stderr
    ran = llamalite_command("list")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: the models folder {tmp_path / 'file'} cannot be read: ")
    assert ran.stderr.count("\n") == 1
