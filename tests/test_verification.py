"""`verify` finds every kind of fault in a file, and nothing in a good file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import toy
from toy_checkpoint import write_checkpoint
from toy_importance import write_importance

from llamalite import gguf_check, store
from llamalite.converters import Importance, QuantizeParams, convert
from llamalite.errors import VerificationError
from llamalite.evaluation.verification import VerificationReport, verify

SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "toy"
    return write_checkpoint(folder, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, rope_scaling=SCALED)


def _found(report: VerificationReport) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


@pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_converted_file_is_what_its_checkpoint_holds(qtype: str, checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype=qtype).path
    report = verify(path, checkpoint, n_threads=2)
    assert report.ok, report.to_json()
    assert [check.name for check in report.checks] == ["keys", "template", "tensors", "tokens", "logits"]
    report.raise_for_failures()


def test_a_file_made_with_an_importance_matrix_is_within_its_types_error(checkpoint: Path, tmp_path: Path) -> None:
    importance = Importance.load(write_importance(tmp_path / "imatrix.gguf", checkpoint, seed=2))
    params = QuantizeParams(importance=importance)
    path = convert(checkpoint, tmp_path / "model.gguf", qtype="Q4_0", params=params).path
    without = next(check for check in verify(path, checkpoint).checks if check.name == "tensors")
    assert without.ok
    assert "within the error of their types" in without.text
    exactly = next(check for check in verify(path, checkpoint, params=params).checks if check.name == "tensors")
    assert "byte for byte" in exactly.text


Break = Callable[[gguf_check.Header, bytearray], None]


def _rows(header: gguf_check.Header, raw: bytearray, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The bytes of a tensor, row by row, writable in place."""
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    data = np.frombuffer(raw, np.uint8, tensor.nbytes, tensor.offset)
    return data.reshape(tensor.shape[1] if len(tensor.shape) > 1 else 1, -1)


def _unpermute(name: str, n_head: int) -> Break:
    def change(header: gguf_check.Header, raw: bytearray) -> None:
        rows = _rows(header, raw, name)
        half = len(rows) // n_head // 2
        rows[:] = rows.reshape(n_head, half, 2, -1).swapaxes(1, 2).reshape(rows.shape).copy()

    return change


def _swap_rows(header: gguf_check.Header, raw: bytearray) -> None:
    rows = _rows(header, raw, "blk.1.attn_k.weight")
    rows[[3, 11]] = rows[[11, 3]]


def _swap_gate_and_up(header: gguf_check.Header, raw: bytearray) -> None:
    gate, up = (_rows(header, raw, f"blk.0.ffn_{name}.weight") for name in ("gate", "up"))
    gate[:], up[:] = up.copy(), gate.copy()


def _shift_vocabulary(header: gguf_check.Header, raw: bytearray) -> None:
    rows = _rows(header, raw, "token_embd.weight")
    rows[:] = np.roll(rows, 1, axis=0)


def _flip_a_byte(header: gguf_check.Header, raw: bytearray) -> None:
    _rows(header, raw, "blk.1.ffn_down.weight")[5, 7] ^= 1


def _lose_a_norm(header: gguf_check.Header, raw: bytearray) -> None:
    _rows(header, raw, "blk.0.ffn_norm.weight")[:] = np.frombuffer(np.ones(64, "<f4").tobytes(), np.uint8)


BREAKS: dict[str, Break] = {
    "unpermuted q": _unpermute("blk.0.attn_q.weight", 4),
    "unpermuted k": _unpermute("blk.0.attn_k.weight", 2),
    "two rows of k swapped": _swap_rows,
    "gate and up swapped": _swap_gate_and_up,
    "a shifted embedding": _shift_vocabulary,
    "one flipped bit": _flip_a_byte,
    "a norm of ones": _lose_a_norm,
}


@pytest.mark.parametrize("qtype", ["F32", "Q4_0"])
@pytest.mark.parametrize("fault", BREAKS)
def test_a_broken_tensor_is_found(fault: str, qtype: str, checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype=qtype).path
    raw = bytearray(path.read_bytes())
    BREAKS[fault](gguf_check.read_header(path), raw)
    path.write_bytes(raw)
    report = verify(path, checkpoint)
    assert "tensors" in _found(report)
    with pytest.raises(VerificationError, match="does not match .*: .*tensors: "):
        report.raise_for_failures()


def _rewritten(path: Path, target: Path, drop: str | None = None, **changed: float | str | list[str]) -> Path:
    """Write the file at `path` again with other keys (``a__b`` for ``a.b``), or without a tensor."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama")
    values = {key.replace("__", "."): value for key, value in changed.items()}
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        value = values.get(key, field.contents())
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kind, field.types[-1])
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_wrong_rope_theta_is_found_in_keys_and_logits(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype="F32").path
    report = verify(_rewritten(path, tmp_path / "bad.gguf", llama__rope__freq_base=500.0), checkpoint)
    assert _found(report) == {"keys", "logits"}


@pytest.mark.parametrize("qtype", ["BF16", "Q4_0", "Q2_K"])
def test_a_wrong_key_is_found_in_the_logits_whatever_the_type_loses(qtype: str, tmp_path: Path) -> None:
    """Rotary positions that are a little off cost this model less than 2 bits do: the type's own loss is no bound."""
    source = store.demo_checkpoint()
    path = convert(source, tmp_path / "model.gguf", qtype=qtype).path
    right = next(check for check in verify(path, source).checks if check.name == "logits")
    wrong = next(
        check
        for check in verify(_rewritten(path, tmp_path / "bad.gguf", llama__rope__freq_base=15_000.0), source).checks
        if check.name == "logits"
    )
    assert right.ok, right.text
    assert right.figures["computed_kld"] < right.figures["limit_kld"] / 5
    assert not wrong.ok, wrong.text
    assert wrong.figures["mean_kld"] < 0.5


def test_a_shifted_vocabulary_is_found_in_keys_and_tokens(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype="F32").path
    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    words = 3 + 256  # behind the special tokens and the bytes, which llama.cpp finds by their texts
    shifted = [*tokens[:words], tokens[-1], *tokens[words:-1]]
    report = verify(_rewritten(path, tmp_path / "bad.gguf", tokenizer__ggml__tokens=shifted), checkpoint)
    assert _found(report) >= {"keys", "tokens"}
    assert "tokenizer.ggml.tokens differ" in report.checks[0].text


def test_a_template_of_another_model_is_found(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype="F32").path
    other = toy.CHATML.replace("<|im_end|>", "</s>")
    assert _found(verify(_rewritten(path, tmp_path / "bad.gguf", tokenizer__chat_template=other), checkpoint)) == {
        "template"
    }


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.1.attn_norm.weight"])
def test_a_missing_tensor_is_found(name: str, checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model.gguf", qtype="F32").path
    bad = _rewritten(path, tmp_path / "bad.gguf", drop=name)
    if name == "rope_freqs.weight":
        report = verify(bad, checkpoint)
        assert _found(report) == {"tensors"}
        assert f"{name}: is missing" in report.checks[2].text
    else:
        with pytest.raises(Exception, match="attn_norm"):  # what llama.cpp could not load is refused when it is opened
            verify(bad, checkpoint)


def test_the_command_reports_it_in_words_and_in_json(
    checkpoint: Path, tmp_path: Path, llamalite_command: Callable[..., object]
) -> None:
    made = llamalite_command("convert", checkpoint, "-t", "Q8_0", "-o", tmp_path / "model.gguf", "--verify")
    assert made.returncode == 0, made.stderr  # type: ignore[attr-defined]
    assert [line.split()[1] for line in made.stdout.splitlines() if line.startswith("ok")] == [  # type: ignore[attr-defined]
        "keys", "template", "tensors", "tokens", "logits",
    ]  # fmt: skip
    raw = bytearray((tmp_path / "model.gguf").read_bytes())
    _flip_a_byte(gguf_check.read_header(tmp_path / "model.gguf"), raw)
    (tmp_path / "model.gguf").write_bytes(raw)
    ran = llamalite_command("verify", tmp_path / "model.gguf", "--against", checkpoint, "--json")
    assert ran.returncode == 1  # type: ignore[attr-defined]
    assert not json.loads(ran.stdout)["ok"]  # type: ignore[attr-defined]


def test_without_a_checkpoint_the_note_beside_the_file_names_it(
    checkpoint: Path, tmp_path: Path, models_folder: Path, llamalite_command: Callable[..., object]
) -> None:
    assert llamalite_command("convert", checkpoint, "-t", "Q8_0").returncode == 0  # type: ignore[attr-defined]
    made = models_folder / "toy-Q8_0.gguf"
    ran = llamalite_command("verify", "toy")
    assert (ran.returncode, ran.stderr) == (0, "")  # type: ignore[attr-defined]
    assert ran.stdout.splitlines()[-1] == f"{made} matches {checkpoint}."  # type: ignore[attr-defined]
    raw = bytearray(made.read_bytes())
    _flip_a_byte(gguf_check.read_header(made), raw)
    made.write_bytes(raw)  # and is no longer the file of the note, which is what verify is for
    assert llamalite_command("verify", "toy").returncode == 1  # type: ignore[attr-defined]
    made.with_name(f"{made.name}.source").unlink()
    ran = llamalite_command("verify", "toy")
    assert (ran.returncode, "give it with --against DIR" in ran.stderr) == (2, True)  # type: ignore[attr-defined]
