"""``llamalite demo``: the whole job in one command, on the model that ships with llamalite and on another
checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import toy_checkpoint

from llamalite import store
from llamalite.cli import demo
from llamalite.generation.completion import Piece, Totals


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and looked at the moon. " * 40)
    return path


def test_the_demo_converts_asks_and_measures(
    llamalite_command: Any, tmp_path: Path, models_folder: Path, text: Path
) -> None:
    toy_checkpoint.write_checkpoint(tmp_path / "toy", n_layer=1)
    models_folder.mkdir()
    (models_folder / "toy-BF16.gguf").write_bytes(b"of an earlier demo")
    done = llamalite_command("demo", "toy", "-f", text)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in models_folder.glob("*.gguf")) == sorted(f"toy-{t}.gguf" for t in demo.TYPES)
    rows = re.findall(
        r"^   (\w+) +([\d.]+) [KM]iB +([\d.]+) +([\d.]+) ± ([\d.]+)(?: +([\d.]+) +([\d.]+)%)?$", done.stdout, re.M
    )
    assert [row[0] for row in rows] == list(demo.TYPES)
    bits = [float(row[2]) for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert rows[0][5:] == ("", "")
    klds, tops = ([float(row[n]) for row in rows[1:]] for n in (5, 6))
    assert 0 < klds[0] < klds[2]
    assert tops[0] > tops[2]
    assert done.stdout.count("\n   > ") == 3
    following = done.stdout.partition("Next:\n")[2].splitlines()
    assert len(following) == 3
    assert all(" llamalite " in f" {Path(line.split()[0]).name} " or "__main__" in line for line in following)


def test_a_quiet_demo_shows_the_table_and_nothing_else(llamalite_command: Any, tmp_path: Path, text: Path) -> None:
    toy_checkpoint.write_checkpoint(tmp_path / "toy", n_layer=1)
    done = llamalite_command("demo", "toy", "-f", text, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["TYPE", *demo.TYPES]


def test_an_answer_is_wrapped_at_words_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    totals = Totals(n_prompt=1, n_cached=0, n_generated=4, prompt_s=1.0, generation_s=1.0, ttft_s=1.0, seed=0)
    pieces = [Piece("The lla", token=1), Piece("ma found a", token=2), Piece(" hat.\n\nThe end", token=3)]
    assert demo._print_answer([*pieces, Piece(".", finish_reason="stop", totals=totals)], 21) is totals
    assert capsys.readouterr().out == "   The llama found a\n   hat. The end.\n"


def test_the_commands_to_type_next_are_for_the_shell_that_ran_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [str(tmp_path / ".venv/bin/llamalite"), "demo"])
    demo._print_next_steps(tmp_path / "models" / "demo-Q4_K_M.gguf", 3.0)
    program = Path(".venv/bin/llamalite")
    assert f"   {program} run {Path('models/demo-Q4_K_M.gguf')}\n" in capsys.readouterr().out
    (tmp_path / "llamalite").touch(mode=0o755)
    monkeypatch.delenv("LLAMALITE_MODELS")
    demo._print_next_steps(store.models_folder() / "demo-Q4_K_M.gguf", 3.0)
    assert "   llamalite run demo\n" in capsys.readouterr().out


def test_the_demo_model_is_there_and_small() -> None:
    folder = store.demo_checkpoint()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16e6
    assert (folder / "heldout.txt").is_file()
