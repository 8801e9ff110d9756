"""Folders in which a file is replaced by a link, a pipe, or a file that is too long."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_files import as_meta, as_pickles, load_safetensors
from toy_checkpoint import write_checkpoint

from llamalite import store
from llamalite.converters import Importance, convert
from llamalite.converters.checkpoints.json_file import MAX_BYTES
from llamalite.errors import CheckpointError, GGUFError

links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")

READ = ["model.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "added_tokens.json", "README.md", "chat_template.jinja", "generation_config.json",
        "additional_chat_templates/tool.jinja"]  # fmt: skip


def whole_checkpoint(folder: Path) -> Path:
    """A checkpoint with all of `READ`."""
    write_checkpoint(folder, n_layer=1)
    tensors = load_safetensors(folder / "model.safetensors")
    weight_map = dict.fromkeys(tensors, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (folder / name).write_text(template)
    for name in ("added_tokens.json", "generation_config.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    return folder


INDEX = "model.safetensors.index.json"


def assert_refused(folder: Path, message: str) -> None:
    """Assert that converting `folder` is refused in one line, and leaves nothing."""
    out = folder.parent / "out.gguf"
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(folder, out)
    assert "\n" not in str(caught.value)
    assert not list(folder.parent.glob("out.gguf*"))


@links
@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    outside, folder = whole_checkpoint(tmp_path / "outside"), whole_checkpoint(tmp_path / "model")
    (folder / name).unlink()
    (folder / name).symlink_to(outside / name)
    if name == INDEX:
        (folder / "model.safetensors").unlink()  # an index beside a whole file is not read
    assert_refused(folder, f"{name} is a link to .*outside.*{name}, outside its folder")


@links
def test_a_folder_of_templates_elsewhere_is_refused(tmp_path: Path) -> None:
    outside, folder = whole_checkpoint(tmp_path / "outside"), whole_checkpoint(tmp_path / "model")
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "additional_chat_templates").symlink_to(outside / "additional_chat_templates")
    assert_refused(folder, "additional_chat_templates is a link to .*, outside its folder")


@links
@pytest.mark.parametrize("target", ["../elsewhere/old.json", "nowhere.json", "/etc/hostname"])
def test_links_that_nothing_needs_do_not_matter(tmp_path: Path, target: str) -> None:
    folder = write_checkpoint(tmp_path / "model", n_layer=1)
    for name in ("old.json", "old.safetensors.txt", "training.bin", "notes.md"):
        (folder / name).symlink_to(target)
    convert(folder, tmp_path / "out.gguf", qtype="Q8_0")
    assert store.obtain(folder, "Q8_0").read_bytes() == (tmp_path / "out.gguf").read_bytes()


@links
@pytest.mark.parametrize("name", [file for file in READ if not file.startswith("model.")])
def test_a_broken_link_in_place_of_a_file_that_is_read_is_named(tmp_path: Path, name: str) -> None:
    folder = whole_checkpoint(tmp_path / "model")
    (folder / name).unlink()
    (folder / name).symlink_to("nothing")
    name_of_file = "neither config.json" if name == "config.json" else f"{name} is a link that leads nowhere"
    assert_refused(folder, name_of_file)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Raise if a test waits for a pipe to which nobody writes."""

    def give_up(*_: object) -> None:
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [*READ, "chat_template.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
                                  "params.json", "consolidated.00.pth"])  # fmt: skip
@pytest.mark.usefixtures("impatient")
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = whole_checkpoint(tmp_path / "model")
    if name == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
        shutil.rmtree(folder / "additional_chat_templates")
    if name.startswith("pytorch_model"):
        folder = as_pickles(write_checkpoint(tmp_path / "hf", n_layer=1), tmp_path / "pickles", 2)
    if name in ("params.json", "consolidated.00.pth"):
        folder = as_meta(write_checkpoint(tmp_path / "hf", n_embd=64, n_ff=64), tmp_path / "meta", 1)
    if name == "pytorch_model.bin":
        (folder / "pytorch_model.bin.index.json").unlink()
    if name == INDEX:
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_refused(folder, f"{name} is not a regular file")
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        convert(tmp_path / "model.gguf", tmp_path / "out.gguf")
    with pytest.raises(GGUFError, match="is a device"):
        Importance.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja"])
def test_a_file_of_absurd_length_is_not_read(tmp_path: Path, name: str) -> None:
    folder = whole_checkpoint(tmp_path / "model")
    os.truncate(folder / name, MAX_BYTES + 1)  # takes no room on the disk
    assert_refused(folder, f"{name} has 268,435,457 bytes, expected at most 268,435,456")
