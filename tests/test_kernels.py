"""The fast kernels make ggml's bytes, whatever the weights; ggml's own are used if they do not or cannot."""

from __future__ import annotations

import functools
import logging
import os
import platform
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalite.converters import kernels
from llamalite.converters.kernels import fast
from llamalite.converters.kernels.fast import contractions
from llamalite.converters.kernels.fast.contractions import by_likelihood
from llamalite.converters.kernels.fast.recipes import RECIPES
from llamalite.converters.kernels.fast.trial_rows import trial_rows
from llamalite.errors import QuantizationError
from llamalite.native.quantize import dequantize_rows, quantize_rows
from llamalite.quant_types import TENSOR_TYPES, TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

TYPES = [name for name in RECIPES if name != "F32"]
WEIGHTED = [name for name in TYPES if RECIPES[name].weighted is not None]
needs_numba = pytest.mark.skipif(not fast.numba_is_installed(), reason="needs Numba: pip install '.[fast]'")


CONTRACTIONS = by_likelihood()  # the one that fits the installed ggml comes first once a kernel was chosen


@functools.cache
def kernel(name: str) -> fast.Kernel:
    """The kernel that contracts as the installed ggml does; `test_every_kernel_passes_its_trial` fails without one."""
    made = fast.chosen(TENSOR_TYPES[name], CONTRACTIONS)
    if made is None:
        pytest.skip("this ggml's compiler contracts in a way that is not known")
    return made


def ggml_is_plain() -> bool:
    """Whether ggml was certainly compiled without fused multiply-add: for plain x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def made_by_kernel(name: str, rows: Floats, importance: Floats | None = None) -> Bytes:
    tensor_type = TENSOR_TYPES[name]
    out = np.empty((len(rows), tensor_type.row_bytes(rows.shape[1])), np.uint8)
    n_blocks = rows.size // tensor_type.block_size
    kernel(name)(rows.reshape(-1).view(np.uint8), "F32", n_blocks, importance, out.reshape(-1))
    return out


def assert_same_bytes(name: str, rows: Floats, importance: Floats | None = None) -> None:
    expected = quantize_rows(TENSOR_TYPES[name], rows, importance=importance)
    made = made_by_kernel(name, rows, importance)
    wrong = np.flatnonzero((expected != made).any(axis=1))
    assert not wrong.size, f"{name}: rows {wrong[:8]} differ, the first is {rows[wrong[0]][:8]}..."


def normal(*shape: int, seed: int = 1) -> Floats:
    values: Floats = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values


def outlier_ridden(*shape: int) -> Floats:
    rows: Floats = normal(*shape, seed=2) * np.float32(0.02)
    rows.reshape(-1)[::37] *= np.float32(50)
    rows.reshape(-1)[5::331] *= np.float32(-3000)
    return rows


PATTERNS: dict[str, Floats] = {
    **{f"normal, scale {scale}": normal(9, 512) * np.float32(scale) for scale in (1e-20, 1e-6, 0.02, 1.0, 1e4, 1e15)},
    "heavy tails": np.random.default_rng(3).standard_t(2, (9, 512)).astype(np.float32),
    "uniform": np.random.default_rng(4).uniform(-1, 1, (9, 512)).astype(np.float32),
    "positive": np.abs(normal(9, 512)) + np.float32(0.01),
    "negative": -np.abs(normal(9, 512)) - np.float32(0.01),
    "far from zero": normal(9, 512) * np.float32(1e-6) - np.float32(1),
    "outlier-ridden": outlier_ridden(9, 512),
    "one weight that is not zero": np.eye(9, 512, 77, dtype=np.float32) * np.float32(-0.3),
    "zero": np.zeros((9, 512), np.float32),
    "minus zero": np.full((9, 512), -0.0, np.float32),
    "constant": np.full((9, 512), 0.7, np.float32),
    "negative constant": np.full((9, 512), -0.7, np.float32),
    "two values": np.where(normal(9, 512) > 0, np.float32(0.5), np.float32(-0.25)),
    "on a grid": np.round(normal(9, 512) * np.float32(4)) * np.float32(0.125),
    "rows of integers": np.arange(9 * 512, dtype=np.float32).reshape(9, 512) % np.float32(33) - np.float32(16),
    "tiny": normal(9, 512) * np.float32(1e-30),
    "at the edge of all zero": normal(9, 512) * np.float32(1e-15),
    "partly denormal": normal(9, 512) * np.float32(1e-38),
    "denormal": normal(9, 512) * np.float32(1e-41),
    "the smallest": np.sign(normal(9, 512)) * np.float32(1.5e-45),
    "scales beyond 16-bit floats": normal(9, 512) * np.float32(1e10),
    "huge": normal(9, 512) * np.float32(1e30),
    "the largest": np.sign(normal(9, 512)) * np.float32(3.4e38),
    "blocks of every size": normal(9, 512) * np.repeat(np.logspace(-24, 7, 32, dtype=np.float32), 144).reshape(9, 512),
    "sub-blocks next to empty ones": normal(9, 512) * np.repeat(normal(9, 16) > 0, 32, axis=1),
}


@needs_numba
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bytes_are_those_of_ggml(name: str, pattern: str) -> None:
    assert_same_bytes(name, PATTERNS[pattern])


@needs_numba
@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bytes_with_an_importance_matrix_are_those_of_ggml(name: str, pattern: str) -> None:
    importance = np.random.default_rng(5).exponential(1.0, 512).astype(np.float32)
    assert_same_bytes(name, PATTERNS[pattern], importance)
    importance[::3] = 0
    importance[32:64] = 0
    assert_same_bytes(name, PATTERNS[pattern], importance * np.float32(1e-4))


@needs_numba
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1, 256), (1, 8192), (2, 2816), (31, 256), (32, 256), (33, 256), (5, 3328)])
def test_any_number_of_rows_and_columns(name: str, shape: tuple[int, int]) -> None:
    rows = normal(*shape) * np.float32(0.05)
    assert_same_bytes(name, rows)
    if name in WEIGHTED:
        assert_same_bytes(name, rows, np.linspace(0.1, 3, shape[1], dtype=np.float32))


@needs_numba
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_rows_that_fill_no_block_of_256(name: str) -> None:
    assert_same_bytes(name, normal(7, 96))


FINITE_BITS = st.integers(0, 0x7F7FFFFF) | st.integers(0x80000000, 0xFF7FFFFF)


@st.composite
def strange_rows(draw: st.DrawFn) -> Floats:
    """Two rows of 512 weights: every 16 of them random at a scale of their own, with some bit patterns strewn in."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponents = draw(st.lists(st.integers(-44, 30) | st.just(-2), min_size=1, max_size=64))
    offsets = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, -1.0, 100.0]), min_size=1, max_size=8))
    exact = rng.standard_normal(1024) + np.resize(np.repeat(offsets, 16), 1024)
    rows: Floats = (exact * 10.0 ** np.resize(np.repeat(exponents, 16), 1024)).astype(np.float32)
    strewn = draw(st.lists(st.tuples(st.integers(0, 1023), FINITE_BITS), max_size=20))
    for place, bits in strewn:
        rows.view(np.uint32)[place] = bits
    return rows.reshape(2, 512)


@needs_numba
@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=60, deadline=None)
@given(rows=strange_rows())
def test_bytes_of_strange_rows_are_those_of_ggml(name: str, rows: Floats) -> None:
    assert_same_bytes(name, rows)


@needs_numba
@pytest.mark.parametrize("name", WEIGHTED)
@settings(max_examples=40, deadline=None)
@given(rows=strange_rows(), seed=st.integers(0, 2**32 - 1), power=st.sampled_from([0, 1, 4]))
def test_bytes_of_strange_rows_with_importance_are_those_of_ggml(
    name: str, rows: Floats, seed: int, power: int
) -> None:
    importance = np.random.default_rng(seed).random(512) ** power
    assert_same_bytes(name, rows, importance.astype(np.float32))


@pytest.fixture(params=["fast", "ggml"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fast" and not fast.numba_is_installed():
        pytest.skip("needs Numba: pip install '.[fast]'")
    monkeypatch.setenv("LLAMALITE_KERNELS", request.param)
    return str(request.param)


SOURCE_DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "Q4_0", "Q5_0", "BF16", "F16"])
@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
def test_source_bytes_are_quantized_as_their_floats(mode: str, name: str, dtype: str) -> None:
    values = normal(5, 768) * np.float32(0.02)
    held = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values.astype(SOURCE_DTYPES[dtype])
    source = held.reshape(-1).view(np.uint8)
    rows = kernels.widen(source, dtype, np.empty((5, 768), np.float32))
    expected = quantize_rows(TENSOR_TYPES[name], rows)
    assert np.array_equal(kernels.quantize(TENSOR_TYPES[name], rows), expected)
    out = np.empty_like(expected)
    assert kernels.quantize_source(TENSOR_TYPES[name], source, dtype, 768, out) is out
    assert np.array_equal(out, expected)


def test_every_16_bit_float_is_widened_exactly(mode: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    wide = kernels.widen(every.view(np.uint8), "F16", np.empty(65536, np.float32))
    assert np.array_equal(wide, every.view(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(wide), every >= 0x8000)
    bits = kernels.widen(every.view(np.uint8), "BF16", np.empty(65536, np.float32)).view(np.uint32)
    assert np.array_equal(bits, every.astype(np.uint32) << 16)


@pytest.mark.parametrize("n_weights", [1, 31, 32, 33])
def test_any_number_of_weights_is_widened_and_no_byte_behind_it_written(mode: str, n_weights: int) -> None:
    held = normal(n_weights).astype(np.float16)
    source, f32 = held.view(np.uint8), TENSOR_TYPES["F32"]
    widened, quantized = np.full((2, n_weights + 40), 7, np.float32)
    kernels.widen(source, "F16", widened[:n_weights])
    kernels.quantize_source(f32, source, "F16", n_weights, quantized[:n_weights].view(np.uint8))
    for room in (widened, quantized):
        assert np.array_equal(room[:n_weights], held.astype(np.float32))
        assert (room[n_weights:] == 7).all()


def test_source_bytes_may_be_read_only_and_lie_anywhere(mode: str) -> None:
    held = normal(256).astype(np.float16)
    source = np.frombuffer(b"!" + held.tobytes(), np.uint8)[1:]
    expected = quantize_rows(TENSOR_TYPES["Q4_K"], held.astype(np.float32).reshape(1, 256))
    assert np.array_equal(kernels.quantize_source(TENSOR_TYPES["Q4_K"], source, "F16", 256), expected)


def test_importance_is_used_or_ignored_as_ggml_does(mode: str) -> None:
    rows, importance = normal(3, 512), np.linspace(0, 9, 512, dtype=np.float32)
    for name in (*TYPES, "Q5_1", "IQ4_NL"):
        expected = quantize_rows(TENSOR_TYPES[name], rows, importance=importance)
        made = kernels.quantize(TENSOR_TYPES[name], rows, None, importance)
        assert np.array_equal(made, expected), name


def test_input_that_ggml_would_abort_on_is_refused_by_both(mode: str) -> None:
    q4_k = TENSOR_TYPES["Q4_K"]
    with pytest.raises(ValueError, match=r"300 weights does not fill blocks of 256"):
        kernels.quantize(q4_k, np.zeros((1, 300), np.float32))
    with pytest.raises(ValueError, match=r"C-contiguous"):
        kernels.quantize(q4_k, np.zeros((256, 256), np.float32).T[:, ::1])
    with pytest.raises(ValueError, match=r"out holds 5 bytes, and 144 are needed"):
        kernels.quantize(q4_k, np.zeros((1, 256), np.float32), np.empty(5, np.uint8))
    with pytest.raises(ValueError, match=r"importance must be float32 \[256\]"):
        kernels.quantize(q4_k, np.zeros((1, 256), np.float32), None, np.zeros(255, np.float32))


# --- which kernels are used


@needs_numba
@pytest.mark.parametrize("name", RECIPES)
def test_every_kernel_passes_its_trial(name: str) -> None:
    assert fast.chosen(TENSOR_TYPES[name], CONTRACTIONS) is not None


@needs_numba
@pytest.mark.skipif(not ggml_is_plain(), reason="another ggml may be the one of this compiler")
@pytest.mark.parametrize("name", ["Q2_K", "Q4_0"])
def test_a_kernel_that_contracts_as_another_compiler_does_is_not_used(name: str) -> None:
    assert fast.accepted(TENSOR_TYPES[name], fast.load(name, contractions.GCC)) is None


@needs_numba
def test_the_contraction_that_fits_one_type_is_the_first_to_be_tried_for_the_next() -> None:
    first, second = [contractions.GCC, contractions.PLAIN], [contractions.PLAIN, contractions.GCC]
    made = fast.chosen(TENSOR_TYPES["Q4_0"], first)
    assert made is fast.chosen(TENSOR_TYPES["Q4_0"], second) is fast.load("Q4_0", first[0])
    assert first == second
    assert fast.chosen(TENSOR_TYPES["Q8_0"], first[::-1]) is fast.load("Q8_0", contractions.PLAIN)


# The places in each type's kernel; FIRST_RANGE is left out, as no row was found that shows it.
_RANGES = contractions.STATEMENT | contractions.SECOND | contractions.LEVELS | contractions.RANGES | contractions.FITTED
_SYMMETRIC = contractions.ACROSS | contractions.SYMMETRIC | contractions.FIRST_SYMMETRIC
HAS_PLACES = {
    "Q2_K": _RANGES | contractions.ACROSS | contractions.BLOCK_SQUARES,
    "Q3_K": _SYMMETRIC | contractions.STATEMENT | contractions.BLOCK_SQUARES,
    "Q4_K": _RANGES | contractions.ACROSS | contractions.BLOCK_SQUARES | contractions.SQUARES,
    "Q5_K": _RANGES | contractions.ACROSS | contractions.BLOCK_SQUARES | contractions.SQUARES,
    "Q6_K": _SYMMETRIC | contractions.STATEMENT | contractions.CALLED,
}


@needs_numba
@pytest.mark.slow
@pytest.mark.parametrize("name", HAS_PLACES)
def test_the_trial_tells_the_known_contractions_apart(name: str) -> None:
    rows, tensor_type = trial_rows("F32"), TENSOR_TYPES[name]
    seen: dict[bytes, int] = {}
    for how in by_likelihood():
        both = np.empty((2, len(rows) * tensor_type.row_bytes(rows.shape[1])), np.uint8)
        for out, importance in zip(both, (None, np.linspace(0, 2, rows.shape[1], dtype=np.float32)), strict=True):
            fast.load(name, how)(rows.reshape(-1).view(np.uint8), "F32", rows.size // 256, importance, out)
        places = how.places & HAS_PLACES[name]
        assert seen.setdefault(both.tobytes(), places) == places, how


def test_no_two_contractions_are_the_same() -> None:
    known = by_likelihood()
    assert len({way.places for way in known}) == len({way.compiler for way in known}) == len(known)
    assert set(known) == {value for value in vars(contractions).values() if isinstance(value, contractions.Contraction)}


def test_candidates_are_added_up_in_float32_rounded_as_the_compiler_does() -> None:
    plain, fused = (RECIPES["Q2_K"].plain(how)[0] for how in (contractions.PLAIN, contractions.GCC))
    step, steps = np.float32(0.1), np.arange(16, dtype=np.float32)
    assert np.array_equal(plain, np.float32(-0.5) + step * steps + np.float32(3))
    exact = [Fraction(float(step)) * i + Fraction(-0.5) for i in range(16)]
    assert np.array_equal(fused, np.array(exact, np.float32) + np.float32(3))
    assert not np.array_equal(plain, fused)


def test_a_kernel_whose_bytes_differ_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def one_off(source: Bytes, dtype: str, n_blocks: int, importance: Floats | None, out: Bytes) -> None:
        rows = source.view(np.float32).reshape(-1, 768)
        out[:] = quantize_rows(TENSOR_TYPES["Q8_0"], rows).reshape(-1)
        out[1000] ^= 1

    with caplog.at_level(logging.DEBUG):
        assert fast.accepted(TENSOR_TYPES["Q8_0"], one_off) is None
    assert "Q8_0 from F32: 1 of" in caplog.text


@needs_numba
@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ2_XS", "IQ3_S", "IQ4_NL", "TQ2_0"])
def test_blocks_are_read_as_gguf_py_reads_them(name: str) -> None:
    kind, rows = TENSOR_TYPES[name], np.random.default_rng(3).normal(size=(5, 512)).astype(np.float32)
    blocks = quantize_rows(kind, rows, importance=np.ones(512, np.float32))
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.ggml_type)).reshape(rows.shape)
    for actual, wanted in (
        (dequantize_rows(kind, blocks, 512), expected),
        (dequantize_rows(kind, blocks[::2], 512), expected[::2]),  # rows that do not lie together
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)
        assert np.array_equal(actual, wanted) or not ggml_is_plain()
    with pytest.raises(ValueError, match=f"5 rows of 768 {name} weights, found {blocks.nbytes} bytes"):
        dequantize_rows(kind, blocks, 768)
    with pytest.raises(ValueError, match="ggml cannot read I32 as float32"):
        dequantize_rows(TENSOR_TYPES["I32"], np.zeros((1, 4), np.uint8), 1)


def test_few_weights_are_left_to_ggml_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_KERNELS", "auto")
    q8_0 = TENSOR_TYPES["Q8_0"]
    cache = fast.KernelCache()
    assert cache.get(q8_0, 1000) is None
    cache.expect(1 << 40)
    assert cache.get(q8_0, 1000) is not None


@needs_numba
def test_while_one_thread_loads_a_kernel_another_continues_with_ggml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_KERNELS", "auto")
    entered, leave = threading.Event(), threading.Event()

    class Slow(fast.KernelCache):
        def make(self, tensor_type: TensorType, mode: str) -> fast.Kernel | None:
            entered.set()
            assert leave.wait(60)
            return super().make(tensor_type, mode)

    cache = Slow()
    cache.expect(1 << 40)
    first: list[fast.Kernel | None] = []
    thread = threading.Thread(target=lambda: first.append(cache.get(TENSOR_TYPES["Q8_0"], 1)))
    thread.start()
    assert entered.wait(60)
    assert cache.get(TENSOR_TYPES["Q8_0"], 1) is None
    leave.set()
    thread.join()
    assert first == [cache.get(TENSOR_TYPES["Q8_0"], 1)]


def test_an_empty_choice_of_kernels_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_KERNELS", "")
    assert fast.chosen_mode() == "auto"


def test_an_unknown_choice_of_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMALITE_KERNELS", "numba")
    with pytest.raises(ValueError, match=r"LLAMALITE_KERNELS is 'numba'; expected one of auto, fast, ggml"):
        kernels.quantize(TENSOR_TYPES["Q8_0"], np.zeros((1, 32), np.float32))


def run_python(code: str, **environment: str) -> str:
    """Run `code` in a process of its own, and return what it printed."""
    before = (
        "import numpy as np; from llamalite.converters import kernels\nfrom llamalite.quant_types import TENSOR_TYPES\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None\n"


def test_without_numba_ggml_quantizes_whatever_there_is() -> None:
    code = WITHOUT_NUMBA + (
        "kernels.expect(1 << 40)\n"
        "rows = np.random.default_rng(1).standard_normal((4, 768)).astype(np.float32)\n"
        "print(kernels.quantize(TENSOR_TYPES['Q4_K'], rows).tobytes().hex())"
    )
    rows = np.random.default_rng(1).standard_normal((4, 768)).astype(np.float32)
    expected = quantize_rows(TENSOR_TYPES["Q4_K"], rows).tobytes().hex()
    assert run_python(code, LLAMALITE_KERNELS="auto").strip() == expected


def test_asking_for_fast_kernels_without_numba_names_the_extra() -> None:
    code = WITHOUT_NUMBA + (
        "try: kernels.quantize(TENSOR_TYPES['Q4_K'], np.zeros((1, 256), np.float32))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = run_python(code, LLAMALITE_KERNELS="fast").strip()
    assert said == f"{QuantizationError.__name__} LLAMALITE_KERNELS=fast needs Numba: pip install numba"


def test_a_numba_that_does_not_work_is_reported_once_and_ggml_used() -> None:
    code = (
        "import importlib.util, logging, sys, types; logging.basicConfig(format='%(message)s', stream=sys.stdout)\n"
        "broken = types.ModuleType('numba'); broken.__spec__ = importlib.util.spec_from_loader('numba', None)\n"
        "sys.modules['numba'] = broken\n"
        "kernels.expect(1 << 40)\n"
        "for name in ('Q8_0', 'Q4_0'): print(kernels.quantize(TENSOR_TYPES[name], np.ones((1, 32), np.float32)).any())"
    )
    first, *rest = run_python(code, LLAMALITE_KERNELS="auto").splitlines()
    assert first.startswith("Numba is installed but does not work, so ggml's kernels are used: ")
    assert rest == ["True", "True"]


QUANTIZE_ONCE = (
    "rows = np.ones((1, 32), np.float32)\n"
    "kernels.quantize(TENSOR_TYPES['Q8_0'], rows)\n"
    "from llamalite.converters.kernels.fast import compiler; print(compiler.kernel_folder())"
)


@needs_numba
def test_machine_code_is_kept_in_a_folder_of_the_users_and_found_again(tmp_path: Path) -> None:
    folder = Path(run_python(QUANTIZE_ONCE, LLAMALITE_KERNELS="fast", NUMBA_CACHE_DIR=str(tmp_path)).strip())
    assert folder.parent == tmp_path

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".nbi", ".nbc")}

    before = kept()
    assert len(before) == 2
    run_python(QUANTIZE_ONCE, LLAMALITE_KERNELS="fast", NUMBA_CACHE_DIR=str(tmp_path))
    assert kept() == before


@needs_numba
def test_kernels_are_compiled_again_if_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    package = Path(fast.__file__).parent
    before = set(package.rglob("*.nb?"))
    run_python(QUANTIZE_ONCE, LLAMALITE_KERNELS="fast", NUMBA_CACHE_DIR=str(tmp_path / "file" / "below"))
    assert set(package.rglob("*.nb?")) == before
