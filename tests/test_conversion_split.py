"""Shards: a set replaces a whole older set of its name, and no file whose keys do not make it part of one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from faults import snapshot
from toy_checkpoint import write_checkpoint

from llamalite import gguf_check
from llamalite.converters import convert, output

MANY, FEW = 200_000, 500_000  # bytes of a shard


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source" / "toy", n_layer=1)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def split(source: Path, out: Path, size: int, *, force: bool = False, **more: object) -> int:
    """Convert, and return the number of files."""
    return convert(source, out, qtype="Q8_0", split_max_bytes=size, force=force, **more).outputs[0].n_files  # type: ignore[arg-type]


def one_set(folder: Path, n: int) -> None:
    """Assert that `folder` has one set of `n` files, which belong together, and nothing else."""
    names = [f"toy-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    assert sorted(path.name for path in folder.iterdir()) == names
    gguf_check.checked_header(folder / names[0])


def test_a_set_of_fewer_or_more_files_replaces_the_old_one(source: Path, made: Path) -> None:
    many = split(source, made / "toy.gguf", MANY)
    few = split(source, made / "toy.gguf", FEW, force=True)
    assert 1 < few < many
    one_set(made, few)
    assert split(source, made / "toy.gguf", MANY, force=True) == many
    one_set(made, many)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interrupt_between_two_renames_leaves_a_complete_set(
    number: int, source: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_files, real, calls = split(source, made / "toy.gguf", MANY), Path.replace, []

    def replace(part: Path, path: Path) -> Path:
        calls.append(part)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(part, path)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        split(source, made / "toy.gguf", MANY, force=True)
    one_set(made, n_files)


def test_an_old_shard_that_cannot_be_removed_is_a_warning(
    source: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(source, made / "toy.gguf", MANY)
    stays, real = sorted(made.iterdir())[1], Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path == stays:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    report = convert(source, made / "toy.gguf", qtype="Q8_0", split_max_bytes=10**9, force=True)
    assert report.warnings == (f"{stays} belongs to the replaced model, but cannot be removed: Permission denied",)
    assert sorted(path.name for path in made.iterdir()) == [stays.name, "toy.gguf"]


def test_a_renamed_file_no_longer_has_a_part(source: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another conversion may write one of that name while the files of other types are still put on the disk."""
    real = output.PartFiles.finish
    others = made / "toy-Q8_0.gguf.part"

    def finish(files: output.PartFiles) -> None:
        real(files)
        if files.parts == [others]:
            others.write_text("of another conversion")

    monkeypatch.setattr(output.PartFiles, "finish", finish)
    convert(source, made, qtype=["Q8_0", "Q4_0"])
    assert others.read_text() == "of another conversion"


def test_one_file_replaces_the_set_that_its_size_no_longer_needs(source: Path, made: Path) -> None:
    split(source, made / "toy.gguf", MANY)
    assert split(source, made / "toy.gguf", 10**9, force=True) == 1
    assert [path.name for path in made.iterdir()] == ["toy.gguf"]


def test_without_force_an_old_set_is_named_and_kept(source: Path, made: Path) -> None:
    split(source, made / "toy.gguf", MANY)
    before = snapshot(made)
    with pytest.raises(FileExistsError, match=r"toy-00001-of-\d{5}.gguf exists: pass --force to replace it"):
        split(source, made / "toy.gguf", FEW)
    assert snapshot(made) == before


def test_a_conversion_that_fails_leaves_the_old_set_complete(source: Path, made: Path) -> None:
    split(source, made / "toy.gguf", MANY)
    before = snapshot(made)

    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(source, made / "toy.gguf", FEW, force=True, progress=stop)
    assert snapshot(made) == before


def no_gguf(path: Path, _whole: Path) -> None:
    path.write_text("precious")


def no_shard(path: Path, whole: Path) -> None:
    shutil.copy(whole, path)


def of_another_place(path: Path, _whole: Path) -> None:
    first = next(path.parent.glob("toy-00001-of-*.gguf"))
    shutil.copy(first, path)  # says that it is the first of another number of files


@pytest.mark.parametrize("write", [no_gguf, no_shard, of_another_place])
def test_a_file_that_only_has_a_shards_name_is_never_removed(
    write: Callable[[Path, Path], None], source: Path, made: Path, tmp_path: Path
) -> None:
    whole = convert(source, tmp_path / "whole.gguf", qtype="Q8_0").path
    split(source, made / "toy.gguf", MANY)
    write(made / "toy-00001-of-00099.gguf", whole)
    before = snapshot(made)
    with pytest.raises(
        FileExistsError, match="toy-00001-of-00099.gguf is named like a shard of .*toy.gguf, but its keys"
    ):
        split(source, made / "toy.gguf", FEW, force=True)
    assert snapshot(made) == before


def test_sets_of_other_names_stay(source: Path, made: Path) -> None:
    split(source, made / "toy.gguf", MANY)
    split(source, made / "toy-00001-of-00002.gguf", MANY)
    split(source, made / "my-toy.gguf", MANY)
    kept = {name: digest for name, digest in snapshot(made).items() if "my-" in name or name.count("-of-") == 2}
    assert len(kept) > 2
    split(source, made / "toy.gguf", FEW, force=True)
    assert kept.items() <= snapshot(made).items()


def test_a_set_that_is_the_source_is_not_replaced(source: Path, made: Path) -> None:
    split(source, made / "toy.gguf", MANY)
    before = snapshot(made)
    first = next(made.glob("toy-00001-of-*.gguf"))
    with pytest.raises(FileExistsError, match="belongs to the source"):
        convert(first, made / "toy.gguf", qtype="Q8_0", split_max_bytes=FEW, force=True)
    assert snapshot(made) == before


def test_one_file_of_a_set_joins_it_and_leaves_it(source: Path, made: Path) -> None:
    """Without --split-max-size a conversion leaves the shards next to OUT alone."""
    split(source, made / "toy.gguf", MANY)
    before = snapshot(made)
    first = next(made.glob("toy-00001-of-*.gguf"))
    convert(first, made / "toy.gguf", qtype="Q8_0")
    assert before.items() <= snapshot(made).items()
    assert "toy.gguf" in snapshot(made)


def test_in_the_models_folder_a_set_is_replaced_with_what_is_kept_beside_it(
    source: Path, models_folder: Path, llamalite_command: Run
) -> None:
    ran = [
        llamalite_command("convert", source, "-t", "F32", "--split-max-size", size, "--force") for size in ("1M", "2M")
    ]
    assert [run.returncode for run in ran] == [0, 0], ran
    first, second = sorted(path.name for path in models_folder.glob("*.gguf"))
    assert (first, second) == ("toy-F32-00001-of-00002.gguf", "toy-F32-00002-of-00002.gguf")
    assert [path.name for path in models_folder.glob("*.source")] == [f"{first}.source"]
    assert llamalite_command("inspect", "toy-F32").returncode == 0
