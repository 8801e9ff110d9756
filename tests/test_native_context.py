"""A context: what a decode computes, what it refuses before llama.cpp aborts, and how it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import toy

from llamalite.errors import ContextOverflowError, GenerationCancelled
from llamalite.native.context import AbortFlag, NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return NativeModel(toy.write_toy(tmp_path_factory.mktemp("context") / "toy.gguf"))


@pytest.fixture
def context(model: NativeModel) -> Iterator[NativeContext]:
    with NativeContext(
        model, ContextOptions(n_ctx=256, n_batch=64, n_ubatch=16, n_seq_max=2, n_threads=1, exact=True)
    ) as made:
        yield made


IDS = np.array([1, 319, 323, 330, 327, 259, 198], np.int32)


def test_logits_come_in_the_order_they_were_asked_for(context: NativeContext) -> None:
    context.decode(IDS, np.arange(7), 0, True)
    every = context.logits().copy()
    assert every.shape == (7, context.model.n_vocab)
    assert every.dtype == np.float32
    context.clear()
    context.decode(IDS, np.arange(7), 0, [0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(context.logits(), every[[2, 6]], atol=1e-5)


def test_logits_are_a_view_of_llama_cpps_buffer(context: NativeContext) -> None:
    context.decode(IDS[:2], [0, 1], 0, [0, 1])
    first = context.logits()
    assert not first.flags.owndata
    context.decode_next(int(IDS[2]), 2)
    assert context.logits() is first  # the same rows of the same buffer: no new view was made


def test_one_token_at_a_time_equals_all_at_once(context: NativeContext) -> None:
    context.decode(IDS, np.arange(7), 0, [0] * 6 + [1])
    whole = context.logits()[0].copy()
    for position, token in enumerate(IDS):
        context.decode([token], [position], 1, True)
    np.testing.assert_allclose(context.logits()[0], whole, atol=1e-4)
    assert context.seq_pos_max(0) == context.seq_pos_max(1) == 6


@pytest.mark.parametrize(
    ("tokens", "positions", "seq_ids", "message"),
    [
        ([1] * 65, range(65), 0, r"a batch holds 1\.\.64 tokens \(n_batch\), found 65"),
        ([], [], 0, r"a batch holds 1\.\.64 tokens"),
        ([10**6], [0], 0, "token 1000000 at place 0 is outside the vocabulary"),
        ([1], [0], 2, r"sequence 2 does not exist: this context has 0\.\.1"),
        ([1], [0], -1, "sequence -1 does not exist"),
        ([1], [-1], 0, "positions start at 0, found -1"),
        ([1], [9], 0, None),  # nothing is held: llama.cpp lets a sequence begin anywhere
        ([1, 1], [3, 2], 0, "llama.cpp refuses the batch: .*decreasing"),
        ([1, 1], [0, 5], 0, "llama.cpp refuses the batch: .*not continuous"),
    ],
)
def test_what_llama_cpp_would_abort_on_is_refused(
    context: NativeContext, tokens: list[int], positions: list[int], seq_ids: int, message: str | None
) -> None:
    if message is None:
        context.decode(tokens, positions, seq_ids, True)
        return
    with pytest.raises(ValueError, match=message):
        context.decode(tokens, list(positions), seq_ids, True)
    with pytest.raises(ValueError, match="there are no logits"):
        context.logits()
    context.decode(IDS, np.arange(7), 0, True)  # it is usable as before


def test_a_full_context_says_so(model: NativeModel) -> None:
    with NativeContext(model, ContextOptions(n_ctx=256, n_batch=256, n_threads=1)) as context:
        context.decode([1] * 256, range(256), 0, False)
        with pytest.raises(ContextOverflowError, match="no room for 1 more tokens in a context of 256"):
            context.decode([1], [256], 0, True)
        assert context.seq_pos_max(0) == 255


def test_separate_caches_copy_whole_sequences_only(context: NativeContext) -> None:
    context.decode(IDS, np.arange(7), 0, [0] * 6 + [1])
    with pytest.raises(ValueError, match="cannot be copied between separate caches: use kv_unified=True"):
        context.seq_cp(0, 1, 0, 3)
    context.seq_cp(0, 1)
    assert context.seq_pos_max(1) == 6


def test_a_unified_cache_shares_a_prefix(model: NativeModel) -> None:
    with NativeContext(
        model, ContextOptions(n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=True, exact=True)
    ) as context:
        context.decode(IDS, np.arange(7), 0, [0] * 6 + [1])
        want = context.logits()[0].copy()
        context.seq_cp(0, 1, 0, 6)
        context.decode(IDS[6:], [6], 1, True)
        np.testing.assert_allclose(context.logits()[0], want, atol=1e-4)


def test_what_is_forgotten_is_not_seen(context: NativeContext) -> None:
    context.decode(IDS[:3], np.arange(3), 0, [0, 0, 1])
    want = context.logits()[0].copy()
    context.decode(IDS[3:], np.arange(3, 7), 0, True)
    assert context.seq_rm(0, 2)
    assert context.seq_pos_max(0) == 1
    context.decode(IDS[2:3], [2], 0, True)
    np.testing.assert_allclose(context.logits()[0], want, atol=1e-4)
    context.clear()
    assert context.seq_pos_max(0) == -1


def test_abort_stops_a_decode_and_keeps_finished_micro_batches(model: NativeModel) -> None:
    with NativeContext(model, ContextOptions(n_ctx=1024, n_batch=1024, n_ubatch=8, n_threads=1)) as context:
        tokens = np.tile(IDS, 143)[:1000]
        timer = threading.Timer(0.02, context.abort)
        timer.start()
        with pytest.raises(GenerationCancelled):
            context.decode(tokens, np.arange(1000), 0, False)
        timer.join()
        kept = context.seq_pos_max(0) + 1
        assert kept % 8 == 0
        assert kept < 1000
        with pytest.raises(GenerationCancelled):  # the flag stands until it is taken back
            context.decode(tokens[kept:], np.arange(kept, 1000), 0, False)
        context.clear_abort()
        context.decode(tokens[kept:], np.arange(kept, 1000), 0, False)
        assert context.seq_pos_max(0) == 999


def test_the_abort_flag_is_a_c_function_that_reads_memory() -> None:
    import ctypes

    callback = AbortFlag.function(ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p))
    flag = AbortFlag()
    assert callback(flag.address) is False
    flag.set()
    assert callback(flag.address) is True
    assert flag.is_set()
    flag.clear()
    assert callback(flag.address) is False


def test_exact_mode_is_an_f32_cache_without_flash_attention(model: NativeModel) -> None:
    with NativeContext(model, ContextOptions(n_ctx=256, kv_type="Q8_0", exact=True)) as context:
        assert (context.options.kv_type, context.options.flash_attn) == ("F32", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "Q4_K"}, "kv_type must be one of F32, F16, .*, found 'Q4_K'"),
        ({"flash_attn": "on"}, "flash_attn must be 'auto', True or False, found 'on'"),
        ({"kv_type": "Q8_0", "flash_attn": False}, "a Q8_0 cache needs flash attention"),
        ({"n_ctx": 0}, r"n_ctx must be a whole number in 1\.\."),
        ({"n_seq_max": 1000}, r"n_seq_max must be a whole number in 1\.\.256, found 1000"),
        ({"n_seq_max": 9, "n_batch": 8}, r"n_seq_max must be a whole number in 1\.\.8, found 9"),
        ({"n_threads": 0}, r"n_threads must be a whole number in 1\.\.512, found 0"),
        ({"n_threads": 1000}, r"n_threads must be a whole number in 1\.\.512, found 1000"),
    ],
)
def test_settings_that_no_context_can_have_are_refused(
    model: NativeModel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NativeContext(model, ContextOptions(**{"n_ctx": 256, **options}))  # type: ignore[arg-type]


def test_closing_the_model_closes_its_contexts(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = NativeModel(toy.write_toy(tmp_path_factory.mktemp("close") / "toy.gguf"))
    context = NativeContext(model, ContextOptions(n_ctx=256))
    model.close()
    with pytest.raises(ValueError, match="this context is closed"):
        context.decode([1], [0], 0, True)
