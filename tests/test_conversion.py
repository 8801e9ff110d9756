"""What a conversion promises besides its bytes: one clear line for bad input, and an OUT that is absent or complete."""

from __future__ import annotations

import concurrent.futures
import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned import plan_of
from toy_checkpoint import Dtype, encode, write_checkpoint, write_safetensors

from llamalite.converters import Importance, convert
from llamalite.errors import CheckpointError, GGUFError, LlamaliteError, QuantizationError, UnsupportedArchitectureError
from llamalite.gguf_check import read_header

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "toy-model", n_shards=2)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
    path.write_text(json.dumps(config))


def _lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def _truncate(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)


def _cut_into_the_header(folder: Path) -> None:
    os.truncate(folder / "model-00001-of-00002.safetensors", 40)


def _add_an_unknown_tensor(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00002.safetensors").rename(folder / "model-2.safetensors")
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model-1.safetensors")
    write_safetensors(folder / "model-3.safetensors", {"model.vision.weight": (np.zeros((2, 2), np.float32), "F32")})


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has neither config.json nor params.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "expected an object"),
    "another architecture": (
        lambda folder: _edit_config(folder, architectures=["GPT2LMHeadModel"]),
        "GPT2LMHeadModel; llamalite supports LlamaForCausalLM",
    ),
    "already quantized": (
        lambda folder: _edit_config(folder, quantization_config={"quant_method": "bitnet"}),
        "already quantized by bitnet",
    ),
    "long rope": (
        lambda folder: _edit_config(folder, rope_scaling={"type": "longrope", "factor": 2.0}),
        "rope scaling of type 'longrope'",
    ),
    "rope scaling without a factor": (
        lambda folder: _edit_config(folder, rope_scaling={"type": "linear"}),
        "factor is missing, expected a number of at least 1 in the range of float32",
    ),
    "yarn numbers that are texts": (
        lambda folder: _edit_config(folder, rope_scaling={"type": "yarn", "factor": 2.0, "beta_fast": "32"}),
        "beta_fast is '32', expected a positive number",
    ),
    "rope parameters of some layers": (
        lambda folder: _edit_config(folder, rope_parameters={"full_attention": {"rope_theta": 5e5}}),
        "that differ by layer cannot be expressed",
    ),
    "heads that turn in part": (
        lambda folder: _edit_config(folder, partial_rotary_factor=0.5),
        "partial_rotary_factor is 0.5, but only 1 is supported",
    ),
    "a number beyond float32": (
        lambda folder: _edit_config(folder, rms_norm_eps=1e300),
        "rms_norm_eps is 1e+300, expected a positive number in the range of float32",
    ),
    "a number beyond float64": (lambda folder: _edit_config(folder, rope_theta=10**400), "rope_theta is 1000"),
    "a billion layers": (
        lambda folder: _edit_config(folder, num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000, expected a whole number from 1 to 512",
    ),
    "another activation": (lambda folder: _edit_config(folder, hidden_act="gelu"), "hidden_act is 'gelu'"),
    "a size is missing": (lambda folder: _edit_config(folder, hidden_size=...), "hidden_size is missing"),
    "a size is text": (lambda folder: _edit_config(folder, num_hidden_layers="2"), "num_hidden_layers is '2'"),
    "heads do not divide": (
        lambda folder: _edit_config(folder, num_key_value_heads=3),
        "4 attention heads cannot share",
    ),
    "a shape contradicts": (
        lambda folder: _edit_config(folder, intermediate_size=640),
        "gate_proj.weight has shape [512, 256], config.json implies [640, 256]",
    ),
    "a layer is missing": (lambda folder: _edit_config(folder, num_hidden_layers=3), "model.layers.2.input_layernorm"),
    "a layer too many": (lambda folder: _edit_config(folder, num_hidden_layers=1), "is not a tensor of a LLaMA model"),
    "a missing shard": (_lose_a_shard, "lacks model-00002-of-00002.safetensors of 2 shards"),
    "a truncated shard": (_truncate, "by its header: download it again"),
    "a truncated header": (_cut_into_the_header, "truncated, or not a safetensors file"),
    "an unknown tensor": (_add_an_unknown_tensor, "model.vision.weight is not a tensor of a LLaMA model"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_checkpoint_is_refused_in_one_line_before_anything_is_written(
    fault: str, checkpoint: Path, tmp_path: Path
) -> None:
    break_it, message = FAULTS[fault]
    break_it(checkpoint)
    with pytest.raises(Exception, match="(?s).") as caught:
        convert(checkpoint, tmp_path / "out.gguf")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LlamaliteError | FileNotFoundError)
    assert not list(tmp_path.glob("out.gguf*"))


def test_the_command_reports_the_fault_in_one_line_and_exits_with_1(
    checkpoint: Path, tmp_path: Path, llamalite_command: Command
) -> None:
    _lose_a_shard(checkpoint)
    done = llamalite_command("convert", checkpoint, "-o", tmp_path / "out.gguf")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    missing = llamalite_command("convert", tmp_path / "nowhere")
    assert missing.returncode == 1
    assert "no checkpoint at" in missing.stderr


def test_all_problems_are_reported_at_once(checkpoint: Path, tmp_path: Path) -> None:
    _edit_config(checkpoint, intermediate_size=640, vocab_size=400)
    with pytest.raises(CheckpointError) as caught:
        plan_of(checkpoint)
    assert "model.embed_tokens.weight has shape" in str(caught.value)
    assert "model.layers.1.mlp.down_proj.weight has shape" in str(caught.value)


def test_problems_of_weights_vocabulary_and_output_are_reported_together(checkpoint: Path, tmp_path: Path) -> None:
    _edit_config(checkpoint, intermediate_size=640)
    (checkpoint / "tokenizer.model").unlink()
    (tmp_path / "out.gguf").write_text("precious")
    with pytest.raises(CheckpointError, match="gate_proj.*; and .*tokenizer.*; and .*pass --force"):
        convert(checkpoint, tmp_path / "out.gguf")


def test_a_template_that_cannot_be_parsed_is_a_warning_and_is_copied(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{% if %}"}))
    report = convert(checkpoint, tmp_path / "out.gguf", qtype="F16")
    assert "the chat template is carried over, but will not work" in caplog.text
    assert list(report.warnings) == [record.getMessage() for record in caplog.records]


def test_a_report_has_the_warnings_of_its_own_conversion_alone(checkpoint: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    _edit_config(other, architectures=["MistralForCausalLM"], sliding_window=16)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(convert, folder, tmp_path / f"{folder.name}.gguf") for folder in (checkpoint, other)]
    quiet, warned = (future.result().warnings for future in futures)
    assert quiet == ()
    assert len(warned) == 1
    assert warned[0].startswith("config.json: sliding_window is 16, but llama.cpp attends to the whole context of")
    assert convert(checkpoint, tmp_path / "again.gguf").warnings == ()


def test_a_link_to_a_checkpoint_keeps_the_name_that_was_typed(
    checkpoint: Path, tmp_path: Path, models_folder: Path, llamalite_command: Command
) -> None:
    try:
        (tmp_path / "my-llama").symlink_to(checkpoint, target_is_directory=True)
    except OSError:
        pytest.skip("no links for this user")
    done = llamalite_command("convert", tmp_path / "my-llama")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in models_folder.glob("*.gguf")] == ["my-llama-Q4_K_M.gguf"]


def test_an_unknown_type_is_wrong_usage(checkpoint: Path, llamalite_command: Command) -> None:
    done = llamalite_command("convert", checkpoint, "-t", "Q4KM")
    assert done.returncode == 2
    assert "did you mean Q4_K_M?" in done.stderr
    with pytest.raises(ValueError, match="unknown type 'Q9'; known are F32, F16"):
        plan_of(checkpoint, "Q9")


def test_an_existing_file_is_replaced_only_with_force(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="pass --force"):
        convert(checkpoint, out)
    assert out.read_text() == "precious"
    convert(checkpoint, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_every_existing_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("toy-model-F16.gguf", "toy-model-Q8_0.gguf"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match="toy-model-F16.gguf exists: .*; and .*toy-model-Q8_0.gguf exists: "):
        convert(checkpoint, tmp_path, qtype=["F16", "Q8_0", "Q4_0"])


def test_a_failure_midway_leaves_the_old_file_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")

    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, force=True, progress=stop)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "toy-model"]


@pytest.mark.parametrize(("value", "qtype", "message"), [
    (np.nan, "Q8_0", "holds NaN"),
    (np.inf, "Q4_K_M", "holds infinity, or a value beyond"),
    (1e6, "F16", "values too large for F16"),
    (1e30, "Q4_0", "values too large for Q4_0"),
    (3.4e38, "BF16", "values too large for BF16: choose a type of wider range, such as F32"),
])  # fmt: skip
def test_weights_that_the_type_cannot_hold_are_refused_by_name(
    value: float, qtype: str, message: str, tmp_path: Path
) -> None:
    weights = np.zeros((256, 256), np.float32)
    weights[17, 3] = value
    folder = write_checkpoint(tmp_path / "toy", dtype="F32", n_head_kv=4)
    _replace_tensor(folder, "model.layers.1.self_attn.v_proj.weight", weights)
    with pytest.raises(QuantizationError, match=message) as caught:
        convert(folder, tmp_path / "out.gguf", qtype=qtype)
    assert "v_proj" in str(caught.value) or "blk.1.attn_v" in str(caught.value)
    assert not list(tmp_path.glob("out.gguf*"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("others", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_among_weights_of_any_sign(
    value: float, others: float, dtype: Dtype, tmp_path: Path
) -> None:
    weights = np.full((256, 256), others, np.float32)
    weights[200, 100] = value
    folder = write_checkpoint(tmp_path / "toy", dtype=dtype, n_head_kv=4)
    _replace_tensor(folder, "model.layers.1.self_attn.v_proj.weight", weights, dtype)
    with pytest.raises(QuantizationError, match="v_proj.weight holds (NaN|infinity)"):
        convert(folder, tmp_path / "out.gguf", qtype="Q8_0")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a system that can be asked to write early")
@pytest.mark.parametrize("refused", [False, True])
def test_each_piece_goes_to_disk_at_once_if_the_file_system_takes_the_hint(
    refused: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint, tmp_path / "before.gguf")
    pieces = []

    def advise(_file: int, start: int, n_bytes: int, _advice: int) -> None:
        pieces.append((start, n_bytes))
        if refused:
            raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    convert(checkpoint, tmp_path / "out.gguf")
    whole = (tmp_path / "out.gguf").read_bytes()
    assert whole == (tmp_path / "before.gguf").read_bytes()
    if sys.platform == "linux":
        assert sum(n_bytes for _, n_bytes in pieces) == read_header(tmp_path / "out.gguf").tensor_bytes
        assert max(start + n_bytes for start, n_bytes in pieces) <= len(whole)


def _replace_tensor(
    folder: Path, name: str, values: np.ndarray[Any, np.dtype[np.float32]], dtype: Dtype = "F32"
) -> None:
    """Overwrite the bytes of the tensor `name` of `dtype` in the file."""
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    n_header = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + n_header])[name]["data_offsets"]
    data = encode(values, dtype)
    assert len(data) == end - begin
    raw[8 + n_header + begin : 8 + n_header + end] = data
    path.write_bytes(raw)


def test_several_types_go_into_a_folder_by_name(checkpoint: Path, tmp_path: Path, llamalite_command: Command) -> None:
    done = llamalite_command("convert", checkpoint, "-t", "q8_0", "-t", "F16", "-o", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["toy-model-F16.gguf", "toy-model-Q8_0.gguf"]
    assert done.stdout.splitlines()[-1].endswith(f"llamalite run {tmp_path / 'made' / 'toy-model-F16.gguf'}")


def test_several_types_do_not_go_into_one_file(checkpoint: Path, llamalite_command: Command) -> None:
    done = llamalite_command("convert", checkpoint, "-t", "Q8_0", "-t", "Q4_0", "-o", "x.gguf")
    assert done.returncode == 2
    assert "several types make several files: name a folder (-o converted), not x.gguf" in done.stderr


def test_a_folder_for_several_types_is_created_and_removed_on_failure(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    with pytest.raises(QuantizationError, match="importance matrix"):
        convert(checkpoint, out, qtype=["Q8_0", "IQ2_XXS"])
    assert not out.parent.exists()
    out.parent.mkdir()
    (out.parent / "mine").touch()

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, qtype=["Q8_0", "Q4_0"], progress=stop)
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    convert(checkpoint, out, qtype=["Q8_0", "Q4_0"])
    assert sorted(path.name for path in out.iterdir()) == ["toy-model-Q4_0.gguf", "toy-model-Q8_0.gguf"]
    with pytest.raises(OSError, match="mine"):
        convert(checkpoint, out.parent / "mine", qtype=["Q8_0", "Q4_0"])


def test_without_an_output_it_goes_into_the_models_folder(
    checkpoint: Path, models_folder: Path, llamalite_command: Command
) -> None:
    done = llamalite_command("convert", checkpoint)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in models_folder.glob("*.gguf")] == ["toy-model-Q4_K_M.gguf"]
    assert "bits per weight" in done.stdout
    wrote, _took, following = done.stdout.splitlines()
    assert wrote.startswith(f"wrote {models_folder / 'toy-model-Q4_K_M.gguf'}: Q4_K_M, ")
    assert "GiB" not in done.stdout  # units by size: a small checkpoint is not 0.00 of a large one
    assert following == "Next: llamalite run toy-model-Q4_K_M"


def test_the_plan_needs_no_weights(checkpoint: Path) -> None:
    planned = plan_of(checkpoint, "Q4_K_M", "F16")
    assert planned.n_params == sum(tensor.n_weights for tensor in planned.tensors)
    assert planned.bits_per_weight(1) == pytest.approx(16, rel=0.01)
    assert [tensor.name for tensor in planned.tensors][:3] == [
        "output.weight",
        "output_norm.weight",
        "token_embd.weight",
    ]


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Memory is the workers' buffers: a checkpoint four times as large must not need more."""
    measure = (
        "import re, sys; from llamalite.converters import convert;"
        "convert(sys.argv[1], sys.argv[2], qtype='Q8_0', n_threads=2);"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory of a fresh process is read from /proc")  # getrusage counts the parent's in
    peaks = []
    for n_layer in (4, 16):
        folder = write_checkpoint(tmp_path / f"toy-{n_layer}", n_layer=n_layer, n_embd=512, n_ff=2048, n_head=8)
        done = subprocess.run(
            [sys.executable, "-c", measure, folder, tmp_path / f"{n_layer}.gguf"],
            capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LLAMALITE_KERNELS": "ggml"},  # no Numba: 100 MB
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]


def test_a_source_that_changes_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / "model-00001-of-00002.safetensors"

    def touch(done: int, _total: int) -> None:
        os.utime(shard, ns=(1, 1))

    with pytest.raises(CheckpointError, match="changed while it was read"):
        convert(checkpoint, tmp_path / "out.gguf", progress=touch)
    assert not list(tmp_path.glob("out.gguf*"))


def test_a_second_conversion_to_the_same_file_is_refused(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out.gguf"
    refused: list[FileExistsError] = []

    def again(_done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(FileExistsError, match="being written by another conversion") as caught:
                convert(checkpoint, out)
            refused.append(caught.value)

    convert(checkpoint, out, progress=again)
    assert refused
    assert "is left over from a conversion that was stopped" not in caplog.text
    assert out.exists()


def test_an_fp8_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", dtype="F32")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n_header = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n_header])
    name = "model.layers.0.mlp.up_proj.weight"
    rows, columns = header[name]["shape"]
    header[name] = header[name] | {"dtype": "F8_E4M3", "shape": [rows, columns * 4]}
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + n_header :])
    with pytest.raises(UnsupportedArchitectureError, match="has dtype F8_E4M3: the checkpoint is already quantized"):
        convert(folder, tmp_path / "out.gguf")


@pytest.mark.parametrize("card", [
    "license: 5",
    "license: [a, 5]",
    "license: 2020-01-01",
    "model_name: [a]",
    "x: [",
    "a: &a [x, *a]",
    "a: &a [x]\n" + "\n".join(f"{b}: &{b} [{f'*{a}, ' * 9}]" for a, b in itertools.pairwise("abcdefghij")),
    "a: " + "[" * 5000,
])  # fmt: skip
def test_a_model_card_of_odd_types_is_left_out_with_a_warning(card: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_text(f"---\n{card}\n---\n")
    report = convert(checkpoint, tmp_path / "out.gguf", qtype="Q8_0")
    assert read_header(report.path).metadata["general.name"]
    (warning,) = report.warnings
    assert "is left out" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("value", ["1e300", '"\\ud800"', '["\\ud800"]'])
def test_metadata_that_gguf_cannot_hold_is_refused(value: str, checkpoint: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text(f'{{"general.author": {value}}}')
    with pytest.raises(CheckpointError, match="general.author cannot be written"):
        convert(checkpoint, tmp_path / "out.gguf", metadata=metadata)
    assert not list(tmp_path.glob("out.gguf*"))


def test_force_never_replaces_the_source(checkpoint: Path, tmp_path: Path) -> None:
    made = convert(checkpoint, tmp_path / "f16.gguf", qtype="F16").path
    (tmp_path / "hard.gguf").hardlink_to(made)
    (tmp_path / "soft.gguf").symlink_to(made)
    stopped = tmp_path / "stopped.gguf.part"
    stopped.hardlink_to(made)
    before = made.read_bytes()
    for source, out in [
        (made, made), (made, tmp_path / "hard.gguf"), (made, tmp_path / "soft.gguf"),
        (stopped, tmp_path / "stopped.gguf"), (checkpoint, checkpoint / "config.json"),
    ]:  # fmt: skip
        with pytest.raises(FileExistsError, match="belongs to the source"):
            convert(source, out, qtype="Q8_0", force=True)
    assert made.read_bytes() == stopped.read_bytes() == before
    assert json.loads((checkpoint / "config.json").read_text())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_special_file_is_neither_replaced_nor_written_through(checkpoint: Path, tmp_path: Path) -> None:
    pipe, precious = tmp_path / "pipe.gguf", tmp_path / "precious"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="is a device, not a file"):
        convert(checkpoint, pipe, force=True)
    assert pipe.is_fifo()
    precious.write_text("precious")
    (tmp_path / "a.gguf.part").symlink_to(precious)
    os.mkfifo(tmp_path / "b.gguf.part")
    for name in ("a.gguf", "b.gguf"):
        with pytest.raises(FileExistsError, match="is in the way and is not a plain file"):
            convert(checkpoint, tmp_path / name)
    assert precious.read_text() == "precious"


def test_one_type_twice_is_wrong_usage(checkpoint: Path, tmp_path: Path, llamalite_command: Command) -> None:
    done = llamalite_command("convert", checkpoint, "-t", "Q8_0", "-t", "q8_0", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "a type is repeated in Q8_0, Q8_0" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["general.", "general.a\\u0000", "general.\\ud800", "general." + "k" * 70000])
def test_metadata_keys_that_no_reader_takes_are_refused(key: str, checkpoint: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text(f'{{"{key}": "a"}}')
    with pytest.raises(CheckpointError, match="cannot be set"):
        convert(checkpoint, tmp_path / "out.gguf", metadata=metadata)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a file without an end")
def test_files_without_an_end_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a device or a folder"):
        convert(checkpoint, tmp_path / "out.gguf", metadata="/dev/zero")
    with pytest.raises(GGUFError, match="is a device"):
        Importance.load("/dev/zero")


def test_a_pattern_that_fails_in_lower_case_is_wrong_usage(checkpoint: Path, llamalite_command: Command) -> None:
    done = llamalite_command("convert", checkpoint, "--tensor-type", "(?P<X>a)=Q6_K")
    assert done.returncode == 2
    assert "is not a regular expression" in done.stderr


def test_float64_beyond_float32_is_reported_in_one_line(tmp_path: Path, llamalite_command: Command) -> None:
    folder = write_checkpoint(tmp_path / "toy", dtype="F64", n_layer=1, n_embd=64, n_ff=96)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-8:] = np.float64(1e300).tobytes()
    path.write_bytes(raw)
    done = llamalite_command("convert", folder, "-t", "F32", "-o", tmp_path / "out.gguf")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "lm_head.weight holds infinity, or a value beyond F32" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_write_that_fails_names_the_file_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    program = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "runpy.run_module('llamalite', run_name='__main__')\n"
    )
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-c", program, "convert", checkpoint, "-o", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {out}.part: File too large\n"
    assert not list(tmp_path.glob("out.gguf*"))


def test_an_absurd_number_of_threads_is_wrong_usage(checkpoint: Path, llamalite_command: Command) -> None:
    assert llamalite_command("convert", checkpoint, "--threads", 10**20).returncode == 2


# -- the plan of --dry-run --------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, models_folder: Path, llamalite_command: Command
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = llamalite_command("convert", checkpoint, "-t", "Q4_K_M", "-t", "F16", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert not models_folder.exists()
    planned = plan_of(checkpoint, "Q4_K_M", "F16")
    lines = done.stdout.splitlines()
    row = next(line.split() for line in lines if line.startswith("blk.1.attn_v.weight"))
    assert row == ["blk.1.attn_v.weight", "128", "x", "256", "BF16", "->", "Q6_K", "26.2", "KiB", "F16", "64.0", "KiB"]
    assert [line.split()[0] for line in lines[: len(planned.tensors)]] == [tensor.name for tensor in planned.tensors]
    norm = next(line for line in lines if line.startswith("blk.0.attn_norm.weight"))
    assert "1.00 KiB" in norm  # no size is 0.00 of something
    files = convert(checkpoint, tmp_path, qtype=["Q4_K_M", "F16"]).outputs
    total = sum(output.n_bytes for output in files)
    assert lines[-1].startswith(f"That is {total / 2**20:.2f} MiB on disk.")
    for output in files:
        assert any(
            line.startswith(f"{output.qtype}: ") and f"{output.bits_per_weight:.2f} bits" in line for line in lines
        )
    assert sum("memory to run it" in line for line in lines) == 2


def test_fallbacks_are_summed_up_by_kind_and_listed_with_v(tmp_path: Path, llamalite_command: Command) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_embd=96, n_ff=160, n_layer=3)
    few = llamalite_command("convert", folder, "--dry-run").stdout.splitlines()
    why = "as rows do not fill the 256 weights of a block of"
    assert [line for line in few if why in line] == [
        f"  20 tensors, such as token_embd.weight: Q5_0, {why} Q4_K (-v: all)",
        f"  2 tensors, such as blk.2.attn_v.weight: Q8_0, {why} Q6_K (-v: all)",
    ]
    every = llamalite_command("convert", folder, "--dry-run", "-v").stdout.splitlines()
    listed = [line.partition(":")[0].strip() for line in every if "a block of" in line]
    assert sorted(listed) == sorted(tensor.name for tensor in plan_of(folder).tensors if tensor.types[0].instead_of)
    done = llamalite_command("convert", folder)
    assert "% larger than Q4_K_M promises" in done.stdout
    fallback = "is Q5_0 instead of Q4_K, because its rows do not fill whole blocks; so are 21 more tensors: the file is"
    assert f"  token_embd.weight {fallback} " in done.stdout


def test_a_dry_run_checks_the_metadata_and_counts_it(
    checkpoint: Path, tmp_path: Path, llamalite_command: Command
) -> None:
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"general.description": "x" * 200_000}))
    sizes = [
        llamalite_command("convert", checkpoint, "--dry-run", *more).stdout.splitlines()[-1]
        for more in ([], ["--metadata", metadata])
    ]
    assert sizes[0] != sizes[1]
    metadata.write_text('{"llama.block_count": 3}')
    refused = llamalite_command("convert", checkpoint, "--dry-run", "--metadata", metadata)
    assert refused.returncode == 1
    assert "'llama.block_count' cannot be set" in refused.stderr
