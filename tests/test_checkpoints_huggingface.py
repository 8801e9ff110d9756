"""Hugging Face folders: which files are read, and that faults are reported before a weight is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Weights, as_pickles, load_safetensors, random_weights, save_safetensors, save_torch
from planned import plan_of
from toy_checkpoint import write_checkpoint

from llamalite.converters import convert
from llamalite.converters.checkpoints import model_name, open_checkpoint, safetensors
from llamalite.converters.checkpoints.json_file import MAX_BYTES
from llamalite.errors import CheckpointError, GGUFError, UnsupportedArchitectureError
from llamalite.model import Model
from llamalite.store.meaning import meaning_of

W = {"w": random_weights((2, 3)), "v": random_weights((4,), "BF16", 1)}


def folder_of(path: Path, **files: dict[str, Weights]) -> Path:
    """A folder with an empty config and these weights' files, by their names without suffix."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    for stem, tensors in files.items():
        save_safetensors(path / f"{stem.replace('_of_', '-of-')}.safetensors", tensors)
    return path


def index(folder: Path, weight_map: Any, form: str = "model.safetensors") -> None:
    (folder / f"{form}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refused(folder: Path, message: str, kind: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(folder).close()
    assert "\n" not in str(caught.value)


# -- which files are read ---------------------------------------------------------------------------------------------


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == W.keys()


def test_other_files_in_the_folder_are_not_taken_for_weights(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W, consolidated={"x": random_weights((1,))})
    for name in ("training_args.bin", "optimizer.bin", "scheduler.pt"):
        (folder / name).write_bytes(b"a pickle of a trainer")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == W.keys()


@pytest.mark.parametrize("n_shards", [1, 3])
def test_pickles_are_found_with_and_without_an_index(tmp_path: Path, n_shards: int) -> None:
    folder = as_pickles(write_checkpoint(tmp_path / "hf", n_layer=1), tmp_path / "bin", n_shards)
    with open_checkpoint(folder) as checkpoint:
        with_index = set(checkpoint.tensors)
    (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == with_index
        assert len(checkpoint.files) == n_shards


def test_a_folder_without_a_checkpoint_is_reported_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    refused(tmp_path, r"neither config.json nor params.json \(found nothing\)")
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, r"found notes.txt")
    refused(tmp_path / "notes.txt", "is not a GGUF file: pass one, or the folder")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"no model\*.safetensors and no pytorch_model\*.bin \(found config.json, notes.txt\)")


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        folder = folder_of(tmp_path / name)
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")
        refused(folder, f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`")


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates/a.jinja"),
        *("model.safetensors.index.json", "README.md"),
    ],
)
def test_a_git_lfs_pointer_is_recognized_in_the_place_of_any_file(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")
    if "index" in name:
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        convert(folder, tmp_path / "toy.gguf", qtype="F32")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_git_lfs_pointer_is_recognized_in_the_place_of_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")
    refused(path, "toy.gguf is a Git LFS pointer")
    with pytest.raises(GGUFError, match="it is a Git LFS pointer"):
        Model(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "not a regular file")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("TinyLlama-1.1B", "TinyLlama-1.1B"),
        ("a/TinyLlama-1.1B/", "TinyLlama-1.1B"),
        ("hub/models--org--Yi-6B/snapshots/0123abcd", "Yi-6B"),
        ("Llama-3.2-1B/original", "Llama-3.2-1B"),
        ("hub/models--meta-llama--Llama-3.2-1B/snapshots/0123abcd/original", "Llama-3.2-1B"),
        ("toy-F16.gguf", "toy"),
        ("toy.f32.gguf", "toy"),
        ("toy-1.1B.gguf", "toy-1.1B"),
        ("toy-BF16-00001-of-00003.gguf", "toy"),
        ("toy.GGUF", "toy"),
    ],
)
def test_a_model_is_called_after_its_folder_or_file(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


def test_a_model_in_this_folder_is_called_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path / "toy")
    assert model_name(Path()) == "toy"


# -- what others have made of a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "method"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes, 8 bits"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes, 4 bits"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
    ],
)
def test_quantized_weights_are_recognized_by_their_tensors(tmp_path: Path, tensor: str, method: str) -> None:
    folder = folder_of(tmp_path, model=W | {tensor: random_weights((2, 2))})
    refused(
        folder,
        rf"is already quantized \({method}, as {tensor} shows\); llamalite supports",
        UnsupportedArchitectureError,
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_a_quantization_config_beside_plain_weights_is_a_remnant(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, quantization_config={"quant_method": method})
    open_checkpoint(folder).close()
    assert caplog.messages == [
        f"config.json has a quantization_config ({method}), but no tensor is quantized: it is ignored"
    ]


@pytest.mark.parametrize(
    ("method", "odd", "shown"),
    [
        ("hqq", {"model.layers.0.mlp.up_proj.W_q": Weights("U8", np.zeros((2, 2), np.uint8))}, "up_proj.W_q"),
        ("fp8", {"model.norm.weight": Weights("F8_E4M3", np.zeros((2, 2), np.uint8))}, "model.norm.weight"),
        ("bitnet", {}, "its config"),
    ],
)
def test_quantized_weights_are_recognized_by_config_and_tensors(
    tmp_path: Path, method: str, odd: dict[str, Weights], shown: str
) -> None:
    folder = folder_of(tmp_path, model={"model.embed_tokens.weight": random_weights((2, 3)), **odd})
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    message = f"already quantized by {method}, as .*{shown} shows; llamalite supports F64, F32"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        plan_of(folder)


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "MixtralForCausalLM", "GemmaForCausalLM", "BertModel"])
def test_other_architectures_are_named_with_what_is_supported(tmp_path: Path, architecture: str) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1, architectures=[architecture])
    message = f"architecture {architecture}; llamalite supports LlamaForCausalLM and MistralForCausalLM"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        plan_of(folder)


def test_an_adapter_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, r"is an adapter \(LoRA\), not a whole model: merge it", UnsupportedArchitectureError)
    # A trainer may leave the base model's config in the folder.
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    refused(tmp_path, r"is an adapter \(LoRA\) of org/base, not a whole model: .* --lora", UnsupportedArchitectureError)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UnsupportedArchitectureError, match="is an adapter"):
        meaning_of(tmp_path)


# -- the order of files: one test for each row of the table in docs/converter.md -------------------------------------


def values_read(folder: Path) -> set[str]:
    """The files from which the tensors of the checkpoint in `folder` would be read."""
    with open_checkpoint(folder) as checkpoint:
        return {file.path.name for file in checkpoint.files}


WHOLE, SHARD = "model.safetensors", "model-00001-of-00001.safetensors"
WHOLE_BIN, SHARD_BIN = "pytorch_model.bin", "pytorch_model-00001-of-00001.bin"


@pytest.mark.parametrize("shards_exist", [True, False])
def test_a_whole_file_comes_before_the_index_of_an_older_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shards_exist: bool
) -> None:
    folder = folder_of(tmp_path, model=W)
    index(folder, dict.fromkeys(W, SHARD))
    if shards_exist:
        save_safetensors(folder / SHARD, W)
    assert values_read(folder) == {WHOLE}
    expected = (
        f"{WHOLE} is read, as in transformers; {WHOLE}.index.json names other files and is ignored: an older save"
    )
    assert caplog.messages == [expected]


@pytest.mark.parametrize("weight_map", [dict.fromkeys(W, WHOLE), {"w": WHOLE}])
def test_an_index_of_the_whole_file_itself_is_no_reason_to_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weight_map: dict[str, str]
) -> None:
    folder = folder_of(tmp_path, model=W)
    index(folder, weight_map)
    assert values_read(folder) == {WHOLE}
    assert caplog.messages == []


def test_a_damaged_index_beside_a_whole_file_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, model=W)
    (folder / f"{WHOLE}.index.json").write_text("{")
    assert values_read(folder) == {WHOLE}
    assert "the index beside it is ignored" in caplog.text


@pytest.mark.parametrize(
    ("present", "read"),
    [
        ([WHOLE, SHARD, WHOLE_BIN, SHARD_BIN], WHOLE),
        ([SHARD, f"{WHOLE}.index.json", WHOLE_BIN], SHARD),
        ([SHARD, WHOLE_BIN, SHARD_BIN, f"{WHOLE_BIN}.index.json"], WHOLE_BIN),
        ([SHARD, SHARD_BIN, f"{WHOLE_BIN}.index.json"], SHARD_BIN),
        ([SHARD, SHARD_BIN], SHARD),
        ([SHARD_BIN], SHARD_BIN),
    ],
)
def test_weights_are_taken_in_the_order_of_transformers(tmp_path: Path, present: list[str], read: str) -> None:
    folder = folder_of(tmp_path)
    for name in present:
        if name.endswith(".index.json"):
            whole = name.removesuffix(".index.json")
            index(folder, dict.fromkeys(W, SHARD if whole == WHOLE else SHARD_BIN), whole)
        else:
            (save_safetensors if name.endswith(".safetensors") else save_torch)(folder / name, W)
    assert values_read(folder) == {read}


def test_a_file_named_in_the_config_comes_first(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W, best=W)
    (folder / "config.json").write_text('{"transformers_weights": "best.safetensors"}')
    assert values_read(folder) == {"best.safetensors"}
    index(folder, dict.fromkeys(W, "best.safetensors"), "last.safetensors")
    (folder / "config.json").write_text('{"transformers_weights": "last.safetensors.index.json"}')
    assert values_read(folder) == {"best.safetensors"}
    for wrong, message in (("../x.safetensors", "own folder"), ("x.bin", "expected a file of safetensors"),
                           ("gone.safetensors", "lacks gone.safetensors")):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"transformers_weights": wrong}))
        refused(folder, message)


@pytest.mark.parity
@pytest.mark.parametrize("name", [WHOLE, WHOLE_BIN])
@pytest.mark.parametrize("with_index", [True, False])
def test_transformers_takes_the_same_files(tmp_path: Path, name: str, with_index: bool) -> None:
    modeling_utils = pytest.importorskip("transformers.modeling_utils")
    folder = folder_of(tmp_path)
    for file in (WHOLE_BIN, SHARD_BIN, *((WHOLE, SHARD) if name == WHOLE else ())):
        (save_safetensors if file.endswith(".safetensors") else save_torch)(folder / file, W)
    if with_index:
        index(folder, dict.fromkeys(W, SHARD if name == WHOLE else SHARD_BIN), name)
    files, _ = modeling_utils._get_resolved_checkpoint_files(str(folder), None, None, None, None, False)
    assert {Path(file).name for file in files} == values_read(folder)


# -- names of tensors and of architectures ----------------------------------------------------------------------------


def without_prefix(folder: Path, prefix: str = "") -> None:
    tensors = load_safetensors(folder / WHOLE)
    save_safetensors(
        folder / WHOLE,
        {name.replace("model.", prefix, 1) if "lm_head" not in name else name: t for name, t in tensors.items()},
    )


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM"])
@pytest.mark.parametrize("has_prefix", [True, False])
def test_a_model_saved_without_its_prefix_or_under_another_name_is_the_same(
    tmp_path: Path, architecture: str, has_prefix: bool
) -> None:
    same = convert(write_checkpoint(tmp_path / "toy", n_layer=1), tmp_path / "a.gguf", qtype="F32").path.read_bytes()
    folder = write_checkpoint(tmp_path / "other" / "toy", n_layer=1, architectures=[architecture])
    if not has_prefix:
        without_prefix(folder)
    assert convert(folder, tmp_path / "b.gguf", qtype="F32").path.read_bytes() == same


def test_the_value_head_of_a_training_run_is_left_out(tmp_path: Path) -> None:
    same = convert(write_checkpoint(tmp_path / "toy", n_layer=1), tmp_path / "a.gguf", qtype="F32").path.read_bytes()
    folder = write_checkpoint(tmp_path / "other" / "toy", n_layer=1)
    head = {"v_head.summary.weight": random_weights((1, 256)), "v_head.summary.bias": random_weights((1,))}
    save_safetensors(folder / WHOLE, load_safetensors(folder / WHOLE) | head)
    assert convert(folder, tmp_path / "b.gguf", qtype="F32").path.read_bytes() == same


def test_a_prefix_that_nobody_expects_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1)
    without_prefix(folder, "module.model.")
    refused(folder, "the tensors of .* begin with 'module.model.', expected 'model.': they were saved from")


# -- shards and their index -------------------------------------------------------------------------------------------


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model_00002_of_00003=W)
    index(folder, {"w": "model_00002-of-00003.safetensors", "x": "gone.safetensors"})
    refused(folder, "lacks gone.safetensors of 2 shards")


def test_missing_shards_are_noticed_without_an_index(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    save_safetensors(folder / "model-00001-of-00003.safetensors", W)
    refused(folder, "has 1 of 3 shards, and no model.safetensors.index.json")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_name_in_two_shards_is_refused(tmp_path: Path, suffix: str) -> None:
    folder = folder_of(tmp_path)
    stem, save = ("model", save_safetensors) if suffix == "safetensors" else ("pytorch_model", save_torch)
    for i in (1, 2):
        save(folder / f"{stem}-0000{i}-of-00002.{suffix}", W)
    refused(folder, f"w is in two shards of .*, one of them {stem}-00002-of-00002.{suffix}")


def test_an_index_and_shards_that_differ_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model_a=W)
    index(folder, {"w": "model_a.safetensors", "v": "model_a.safetensors", "x": "model_a.safetensors"})
    refused(folder, "names x, which no shard holds")
    index(folder, {"w": "model_a.safetensors"})
    refused(folder, "the shards hold v, which .* does not name")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"w": 1}, {"w": None}, "model.safetensors"])
def test_an_index_of_wrong_types_is_refused(tmp_path: Path, weight_map: Any) -> None:
    folder = folder_of(tmp_path, model_a=W)
    index(folder, weight_map)
    refused(folder, "has no weight_map from tensor names to file names")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", ""])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str, form: str) -> None:
    save_safetensors(tmp_path / "secret.safetensors", W)
    folder = folder_of(tmp_path / "inner")
    index(folder, {"w": name}, form)
    refused(folder, "must be in the checkpoint's own folder")


# -- links ------------------------------------------------------------------------------------------------------------

links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


@links
def test_links_in_a_loop_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "model.safetensors").symlink_to("model.safetensors")
    refused(folder, "model.safetensors is a link that leads (back to itself|nowhere)")


@links
def test_a_link_to_a_neighbour_with_the_same_beginning_is_refused(tmp_path: Path) -> None:
    folder, neighbour = folder_of(tmp_path / "model"), folder_of(tmp_path / "model-2", model=W)
    (folder / "model.safetensors").symlink_to(neighbour / "model.safetensors")
    refused(folder, "outside its folder")


@links
def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    save_safetensors(folder / "weights.of.monday", W)
    (folder / "model.safetensors").symlink_to("weights.of.monday")
    (tmp_path / "latest").symlink_to(folder)
    with open_checkpoint(tmp_path / "latest") as checkpoint:
        assert checkpoint.tensors.keys() == W.keys()


@links
def test_the_links_of_the_hub_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    snapshot, blobs = repo / "snapshots" / "abc", repo / "blobs"
    snapshot.mkdir(parents=True)
    real = folder_of(tmp_path / "real", model=W)
    shutil.copytree(real, blobs)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.tensors.keys() == W.keys()
    (snapshot / "original").mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / "original" / name).symlink_to(Path("../../../blobs") / name)
    open_checkpoint(snapshot / "original").close()
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(real / "model.safetensors")
    refused(snapshot, "outside its folder")


# -- safetensors ------------------------------------------------------------------------------------------------------


def entry(dtype: str = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SIX = {"w": random_weights((2, 3))}
HEADERS: dict[str, tuple[Any, str]] = {
    "a gap": ({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(shape=[4], offsets=[8, 24])},
              "starts at byte 8, expected 4"),
    "an overlap": ({"a": entry(shape=[4], offsets=[0, 16]), "b": entry(shape=[3], offsets=[12, 24])},
                   "expected 16: a gap"),
    "a gap at the front": ({"w": entry(shape=[5], offsets=[4, 24])}, "starts at byte 4, expected 0"),
    "bytes left over": ({"w": entry(shape=[5], offsets=[0, 20])}, "expected .* by its header"),
    "more than the file": ({"w": entry(shape=[7], offsets=[0, 28])}, "expected .* by its header"),
    "a shape of another size": ({"w": entry(shape=[2, 2])}, r"w has 24 bytes, but F32 \[2, 2\] needs 16"),
    "a dtype of another size": ({"w": entry("F64")}, r"w has 24 bytes, but F64 \[2, 3\] needs 48"),
    "an absurd shape": ({"w": entry(shape=[1 << 50, 1 << 50])}, "needs 5070602400912917605986812821504"),
    "a size beyond 60 bits": ({"w": entry(shape=[1 << 60])}, "has shape"),
    "a negative size": ({"w": entry(shape=[-2, -3])}, "has shape"),
    "a size that is a truth": ({"w": entry(shape=[True, 6])}, "has shape"),
    "too many dimensions": ({"w": entry(shape=[1] * 9)}, "has shape"),
    "no shape": ({"w": entry(shape=None)}, "has shape None"),
    "offsets the wrong way": ({"w": entry(offsets=[24, 0])}, "ends at byte 0, before it starts at 24"),
    "three offsets": ({"w": entry(offsets=[0, 12, 24])}, "data_offsets"),
    "negative offsets": ({"w": entry(offsets=[-24, 0])}, "data_offsets"),
    "no entry": ({"w": 7}, "data_offsets None"),
    "no object": ([1], "holds a list, expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HEADERS)
def test_a_safetensors_header_is_checked_against_the_file(tmp_path: Path, fault: str) -> None:
    header, message = HEADERS[fault]
    folder = folder_of(tmp_path)
    save_safetensors(folder / "model.safetensors", SIX, header)
    refused(folder, message)


def test_a_dtype_that_nobody_knows_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    save_safetensors(folder / "model.safetensors", SIX, {"w": entry("F12")})
    refused(folder, r"w has dtype 'F12', expected one of \['F64', 'F32', 'F16', 'BF16'\]", UnsupportedArchitectureError)


@pytest.mark.parametrize("n_header", [1 << 20, safetensors.MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path, n_header: int) -> None:
    folder = folder_of(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", n_header) + b"{}")
    if n_header == safetensors.MAX_HEADER_BYTES + 1:
        os.truncate(path, 2 * n_header)  # the file could hold it; no header is that long
    refused(folder, f"says that its header has {n_header:,} bytes")


@pytest.mark.parametrize("text", [b'{"w": NaN}', b'{"w": 1, "w": 2}', b"[" * 100_000, b"{", b"\xff\xfe", b""])
def test_a_header_that_is_not_json_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = folder_of(tmp_path)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refused(folder, "header of .* (is not valid JSON|holds NaN|key 'w' twice|nested too deeply)")


def test_a_file_that_ends_early_is_reported_wherever_it_ends(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for end in range(0, len(data), 5):
        path.write_bytes(data[:end])
        refused(folder, "model.safetensors")


@pytest.mark.parametrize(
    ("text", "found"),
    [("null", "null"), ("[]", "a list"), ('"a"', "a text"), ("3", "a number"), ("true", "true or false")],
)
def test_json_that_is_not_an_object_is_reported_in_jsons_terms(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, f"config.json holds {found}, expected an object")


@pytest.mark.parametrize("same", [True, False])
def test_a_separate_output_matrix_is_kept_with_a_warning_if_the_config_ties_it(
    tmp_path: Path, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path / "toy", n_layer=1)
    tensors = load_safetensors(folder / "model.safetensors")
    if same:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        save_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "output.weight" in [tensor.name for tensor in plan_of(folder).tensors]
    assert ("lm_head.weight is not the embedding: it is kept as it is" in caplog.text) is not same


@pytest.mark.parametrize(
    ("family", "window", "is_told"),
    [("mistral", 64, True), ("mistral", None, False), ("mistral", 4096, False), ("llama", 64, False)],
)
def test_a_window_that_llama_cpp_does_not_have_is_a_warning(
    tmp_path: Path, family: str, window: int | None, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    architectures = ["MistralForCausalLM" if family == "mistral" else "LlamaForCausalLM"]
    plan_of(write_checkpoint(tmp_path / "toy", n_layer=1, architectures=architectures, model_type=family,
                          max_position_embeddings=2048, sliding_window=window))  # fmt: skip
    assert ("sliding_window is 64, but llama.cpp attends to the whole context of 2048" in caplog.text) is is_told


def test_a_json_file_of_unreasonable_size_is_not_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W)
    os.truncate(folder / "config.json", MAX_BYTES + 1)
    refused(folder, "config.json has 268,435,457 bytes")


def test_weights_that_change_while_they_are_read_are_noticed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W)
    with open_checkpoint(folder) as checkpoint:
        checkpoint.check_unchanged()
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.check_unchanged()


def test_a_file_cut_short_after_it_was_opened_is_reported(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model=W)
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 100)
        with pytest.raises(CheckpointError, match="changed while it was read: convert again when it is complete"):
            checkpoint.tensors["v"].read_rows(0, 1, np.empty(8, np.uint8))
