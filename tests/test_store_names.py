"""What MODEL means: paths and names become GGUF files, near misses are suggested, names stay in their folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from llamalite import cli, store
from llamalite.cli import _model
from llamalite.errors import LlamaliteError
from llamalite.files.user_folders import is_models_folder
from llamalite.model import Model
from llamalite.quant_types import FILE_TYPES
from llamalite.store.preference import TYPES_BY_PREFERENCE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv("LLAMALITE_MODELS", str(models))
    monkeypatch.chdir(tmp_path)
    for name in ("demo-Q8_0", "demo-Q4_K_M", "demo-Q2_K", "Tiny-Llama-IQ4_XS", "plain"):
        (models / f"{name}.gguf").write_bytes(b"GGUF")
    return models


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("demo", "demo-Q4_K_M.gguf"),
        ("demo-Q8_0", "demo-Q8_0.gguf"),
        ("demo-q8_0", "demo-Q8_0.gguf"),
        ("demo-Q2_K.gguf", "demo-Q2_K.gguf"),
        ("tiny-llama", "Tiny-Llama-IQ4_XS.gguf"),
        ("plain", "plain.gguf"),
    ],
)
def test_a_name_finds_its_file_with_or_without_type_suffix_and_case(folder: Path, model: str, expected: str) -> None:
    assert store.resolve(model) == folder / expected


def test_text_written_as_a_path_is_a_path_and_the_rest_are_names(folder: Path, tmp_path: Path) -> None:
    """The one rule, for `Model` and for every command (docs/cli.md)."""
    for name in ("plain", "demo-Q2_K.gguf", "mine"):
        (tmp_path / name).write_bytes(b"GGUF")
    rule = {
        "plain": folder / "plain.gguf",
        "./plain": Path("plain"),
        str(tmp_path / "plain"): tmp_path / "plain",
        "plain.gguf": folder / "plain.gguf",
        "demo-Q2_K": folder / "demo-Q2_K.gguf",
        "demo-Q2_K.gguf": Path("demo-Q2_K.gguf"),
        "mine": Path("mine"),  # no such name
    }
    context = click.Context(cli.cli, obj={"quiet": True, "verbose": 0})
    for written, meant in rule.items():
        assert (store.resolve(written), store.locate(written), store.obtain(written)) == (meant, meant, meant)
        assert (_model.obtain(context, written), _model.locate(context, written)) == (meant, meant)
    assert store.resolve(Path("plain")) == Path("plain")


def test_a_folder_of_the_same_name_does_not_hide_the_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    assert store.resolve("demo") == folder / "demo-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("demmo", "no model 'demmo': did you mean demo?"),
        ("demo-Q4_KM", "no model 'demo-Q4_KM': did you mean demo-Q4_K_M?"),
        ("here.ggfu", "no model 'here.ggfu': did you mean here.gguf?"),
        ("models/plane.gguf", "no model 'models/plane.gguf': did you mean models/plain.gguf?"),
        ("models/zzzzz", "no model 'models/zzzzz': no such file"),
        ("nowhere/m.gguf", "no model 'nowhere/m.gguf': there is no folder nowhere"),
        ("~nosuchuser/m", "no model '~nosuchuser/m': there is no folder ~nosuchuser"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the messages show paths with forward slashes")
def test_a_miss_suggests_the_nearest_name(folder: Path, tmp_path: Path, model: str, message: str) -> None:
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileNotFoundError) as caught:
        store.resolve(model)
    assert str(caught.value) == message


def test_a_miss_with_nothing_near_lists_what_there_is(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has demo-Q2_K, demo-Q4_K_M, demo-Q8_0, plain, Tiny-Llama-IQ4_XS"):
        store.resolve("xyzzy")


def test_an_empty_models_folder_says_how_to_fill_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_MODELS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert store.list_models() == []
    with pytest.raises(
        FileNotFoundError, match="no models in .*none yet: llamalite demo, or llamalite convert CHECKPOINT"
    ):
        store.resolve("mine")


def test_a_checkpoint_is_distinguished_from_a_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError,
        match=r"ckpt is a checkpoint, not a GGUF file: llamalite convert ckpt, or Model\.from_pretrained\('ckpt'\)",
    ):
        store.resolve("ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is a folder"):
        store.resolve("empty")


def test_a_name_never_leaves_the_models_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileNotFoundError):
        store.resolve("../outside")


def test_default_output_is_name_and_type_in_the_models_folder(folder: Path) -> None:
    assert store.default_output("TinyLlama-1.1B", "q4_k_m") == folder / "TinyLlama-1.1B-Q4_K_M.gguf"


@pytest.mark.parametrize("name", ["", ".", "..", " ", "a/b", "../a", "a\\b", "a\x00", "C:x", "a\nb"])
def test_default_output_refuses_an_invalid_file_name(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a model"):
        store.default_output(name, "Q4_K_M")


def test_the_models_folder_is_the_users_data_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMALITE_MODELS", raising=False)
    home = Path.home()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "xdg"))
    assert store.models_folder() == home / "xdg" / "llamalite" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert store.models_folder() == home / ".local" / "share" / "llamalite" / "models"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.models_folder() == home / "Library" / "Application Support" / "llamalite" / "models"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(home / "local"))
    assert store.models_folder() == home / "local" / "llamalite" / "models"


def test_two_models_may_differ_only_in_case(folder: Path) -> None:
    for name in ("Case", "case", "TWO-Q8_0", "Two-Q8_0"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    if len(list(folder.glob("[Cc]ase.gguf"))) == 1:
        pytest.skip("this file system takes them for one")
    for name in ("Case", "case", "Case.gguf"):
        assert store.files_to_remove(name) == [folder / f"{name.removesuffix('.gguf')}.gguf"]
    for name in ("CASE", "two"):
        with pytest.raises(ValueError, match=f"'{name}' is the name of 2 models: name one of "):
            store.files_to_remove(name)


def test_a_suffix_makes_no_bare_name_of_several_types_clear(folder: Path) -> None:
    with pytest.raises(ValueError, match="is the name of 3 models"):
        store.files_to_remove("demo.gguf")


def test_a_models_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("LLAMALITE_MODELS", str(tmp_path / "file"))
    with pytest.raises(LlamaliteError, match=r"the models folder .*file cannot be read: "):
        store.list_models()
    assert store.obtain("own.gguf") == Path("own.gguf")  # needs no folder
    monkeypatch.setenv("LLAMALITE_MODELS", "~nosuchuser/x")
    with pytest.raises(LlamaliteError, match="LLAMALITE_MODELS is ~nosuchuser/x, and there is no such user"):
        store.list_models()


def test_every_type_has_its_place_in_the_order_of_preference() -> None:
    assert sorted(TYPES_BY_PREFERENCE) == sorted(FILE_TYPES)
    bits = [FILE_TYPES[qtype].tensor_type.bits_per_weight for qtype in TYPES_BY_PREFERENCE]
    assert TYPES_BY_PREFERENCE[0] == "Q4_K_M"
    assert min(bits[: TYPES_BY_PREFERENCE.index("F32") + 1]) > 4  # what people hardly notice, before what they do


def test_without_a_home_the_models_folder_must_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("LLAMALITE_MODELS", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(LlamaliteError, match="this user has no home folder: set LLAMALITE_MODELS"):
        store.list_models()
    assert not is_models_folder(tmp_path)


def test_what_has_to_be_made_or_fetched_first_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        Model("demo")
    assert str(caught.value) == (
        "no model 'demo' yet: llamalite demo makes it, and so does Model.from_pretrained('demo')"
    )
    with pytest.raises(
        FileNotFoundError, match=r"^no model 'demo-q6_k' yet: Model\.from_pretrained\('demo-q6_k'\) makes it"
    ):
        Model("demo-q6_k")
    for name in ("org/name", "org/name:Q8_0"):
        with pytest.raises(FileNotFoundError, match=rf"on the hub, Model\.from_pretrained\('{name}'\) downloads it"):
            Model(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on Windows")
def test_a_pipe_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.gguf")
    with pytest.raises(FileNotFoundError, match="is a pipe or a device, expected a GGUF file"):
        store.resolve(pipe)


@pytest.mark.skipif(sys.platform == "win32", reason="a name that Windows does not have")
def test_every_model_has_a_name_that_finds_it(folder: Path) -> None:
    names = ["twice.gguf", "big-00001-of-00002", "big-00001-of-00003", "one", "one-00001-of-00001", "-dash", "a b\nc"]
    for name in names:
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    models = store.list_models()
    assert len(models) == len(names) + 5
    for path in models:
        assert store.resolve(store.shortest_name(path)) == path
    shortest = {store.shortest_name(path) for path in models}
    assert shortest >= {"twice.gguf.gguf", "one", "one-00001-of-00001", "demo-Q8_0"}


@pytest.mark.skipif(sys.platform == "win32", reason="quotes as a POSIX shell does")
@pytest.mark.parametrize("name", ["plain", "two words", "-dash", "--help", "it's", "$HOME", "a\nb"])
def test_a_name_in_a_command_can_be_typed(name: str) -> None:
    shown = subprocess.run(["sh", "-c", f"printf '%s|' x {store.quoted(name)}"], capture_output=True, text=True).stdout
    assert shown == f"x|{'--|' if name.startswith('-') else ''}{name}|"
