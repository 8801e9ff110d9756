"""A context of a loaded model: its KV cache, one reusable batch, and the logits of the last decode.

    with NativeModel("tiny.gguf") as model, NativeContext(model, ContextOptions(n_ctx=512)) as context:
        ids = model.tokenize("Once upon a time", add_special=True, parse_special=False)
        want = np.zeros(len(ids), bool); want[-1] = True
        context.decode(ids, np.arange(len(ids)), 0, want)
        next_id = int(context.logits()[0].argmax())         # float32 [n_outputs, n_vocab], a view: copy to keep

The batch is made of NumPy arrays that llama.cpp reads in place, and logits are a view of llama.cpp's own buffer, valid
until the next decode. Where llama.cpp would abort the process (a batch larger than n_batch, a partial copy between
separate caches), a ``ValueError`` is raised instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.errors import ContextOverflowError, GenerationCancelled, LlamaliteError, OutOfMemoryError
from llamalite.native.context_options import POOLING, ContextOptions
from llamalite.native.decode_thread import is_daemon_at_exit
from llamalite.native.library import collect_errors, error_text, ggml_base, llama
from llamalite.native.lora import LoraAdapter
from llamalite.native.model import NativeModel
from llamalite.native.observer import MatrixObserver
from llamalite.quant_types import TENSOR_TYPES

IntSequence = Sequence[int] | npt.NDArray[Any]
_FLASH = {"auto": -1, False: 0, True: 1}  # enum llama_flash_attn_type (llama.h)


class AbortFlag:
    """Stops a decode between two operations of its graph, from any thread, without the GIL.

    llama.cpp calls a ``bool (*)(void *)`` hundreds of times a token. A Python function would have to take the GIL each
    time, and starve. ggml's own ``bool ggml_is_empty(const struct ggml_tensor *)`` (ggml.c) has that signature and just
    reads memory: it returns true if one of the tensor's four dimensions is 0. So the flag is a block of memory larger
    than that struct. While every 64-bit word of it is 1, the "tensor" is not empty; once all are 0, it is, and the
    decode stops. No offset within the struct matters. Only the CPU and Metal backends call the function; for the
    others, decodes must be small.
    """

    _WORDS = 256  # 2 KiB: sizeof(struct ggml_tensor) is 336 bytes

    def __init__(self) -> None:
        self._block = (ctypes.c_int64 * self._WORDS)(*[1] * self._WORDS)

    @property
    def address(self) -> int:
        return ctypes.addressof(self._block)

    @staticmethod
    def function(callback_type: Any) -> Any:
        """Return ``ggml_is_empty`` as a C function pointer of `callback_type`."""
        return ctypes.cast(ggml_base().ggml_is_empty, callback_type)

    def set(self) -> None:
        ctypes.memset(self._block, 0, ctypes.sizeof(self._block))

    def clear(self) -> None:
        self._block[:] = [1] * self._WORDS

    def is_set(self) -> bool:
        return self._block[0] == 0


@functools.cache
def _raw_logits() -> Any:
    """Return ``llama_get_logits``, typed to return an address: ctypes' float pointers take longer than the call."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    return prototype(("llama_get_logits", llama()._lib))


class NativeContext:
    """A KV cache for `model`, set up by `options`, and the functions that decode into it.

    `observer` sees matrix products while they are computed. Contexts that are to be aborted together share an
    `abort_flag`. llama.cpp may round the options: the attributes `n_ctx`, `n_ctx_seq` (the tokens of one sequence),
    `n_batch`, `n_ubatch`, `n_seq_max` and `n_threads` are what it uses. One thread at a time may use a context; only
    `abort` may be called from others. Raises ``OutOfMemoryError`` or ``LlamaliteError`` with llama.cpp's message.
    """

    def __init__(
        self,
        model: NativeModel,
        options: ContextOptions,
        *,
        observer: MatrixObserver | None = None,
        abort_flag: AbortFlag | None = None,
    ) -> None:
        self._ptr: Any = None
        self.model, self.options = model, options
        self.abort_flag = abort_flag or AbortFlag()
        self._observer = observer  # keeps the callback alive, to which C has a pointer
        lib, params = llama(), self._params()
        with model.in_use(), collect_errors() as errors:
            self._ptr = lib.llama_init_from_model(model.ptr, params)
            if self._ptr:
                model.own(self)
        if not self._ptr:
            reason = error_text(errors)
            kind = OutOfMemoryError if "alloc" in reason else LlamaliteError
            raise kind(f"llama.cpp cannot make a context of {options.n_ctx} tokens: {reason}")

        self.n_ctx: int = lib.llama_n_ctx(self._ptr)
        self.n_ctx_seq: int = lib.llama_n_ctx_seq(self._ptr)
        self.n_batch: int = lib.llama_n_batch(self._ptr)
        self.n_ubatch: int = lib.llama_n_ubatch(self._ptr)
        self.n_seq_max = options.n_seq_max
        self.n_threads: int = lib.llama_n_threads(self._ptr)
        self._memory = lib.llama_get_memory(self._ptr)
        self._n_outputs = 0
        self._view: npt.NDArray[np.float32] | None = None
        self._view_of = (0, 0)  # address and rows that `_view` was made for
        self._make_batch()

    def _params(self) -> Any:
        """Return the options as ``llama_context_params``."""
        lib, options = llama(), self.options
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_ubatch, params.n_seq_max = options.n_ctx, options.n_ubatch, options.n_seq_max
        params.n_batch = min(options.n_batch, options.n_ctx)  # as llama_context's constructor does (llama-context.cpp)
        if options.n_threads is not None:
            params.n_threads = params.n_threads_batch = options.n_threads
        params.type_k = params.type_v = TENSOR_TYPES[options.kv_type].ggml_type
        params.flash_attn_type = _FLASH[options.flash_attn]
        params.kv_unified = options.kv_unified
        if options.pooling is not None:
            params.embeddings, params.pooling_type = True, POOLING[options.pooling]
        params.abort_callback = AbortFlag.function(lib.ggml_abort_callback)
        params.abort_callback_data = self.abort_flag.address
        if self._observer is not None:
            params.cb_eval = self._observer.callback
        return params

    def _make_batch(self) -> None:
        lib, n = llama(), self.n_batch
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._seq_ids = np.zeros(n, np.int32)  # one sequence a token
        self._n_seq_ids = np.ones(n, np.int32)
        self._wanted = np.zeros(n, np.int8)
        addresses = self._seq_ids.ctypes.data + 4 * np.arange(n, dtype=np.uintp)
        self._seq_id_pointers = addresses.astype(np.uintp)

        def pointer(array: npt.NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        self._batch = lib.llama_batch(
            0,
            pointer(self._tokens, ctypes.c_int32),
            None,
            pointer(self._positions, ctypes.c_int32),
            pointer(self._n_seq_ids, ctypes.c_int32),
            pointer(self._seq_id_pointers, ctypes.POINTER(ctypes.c_int32)),
            pointer(self._wanted, ctypes.c_int8),
        )

    @property
    def ptr(self) -> Any:
        """The ``llama_context *``; ``ValueError`` once the context is closed."""
        if self._ptr is None:
            raise ValueError("this context is closed")
        return self._ptr

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Return a ``with`` block, which should be short, during which neither this context nor its logits are freed.

        If another thread closes the model meanwhile, or did so before, the block raises ``GenerationCancelled``.
        """
        return self.model.lifetime.hold(self.abort)

    def close(self) -> None:
        """Free the memory; closing twice does nothing."""
        with self.model.freeing:  # another thread may be closing the model
            if self._ptr is not None and not is_daemon_at_exit():
                pointer, self._ptr = self._ptr, None
                self._view, self._n_outputs = None, 0
                llama().llama_free(pointer)
                self.model.disown(self)

    def __enter__(self) -> NativeContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit the library may be gone already
            self.close()

    # ── decoding ────────────────────────────────────────────────────────────────────────────────────────────────

    def decode(
        self, tokens: IntSequence, positions: IntSequence, seq_ids: IntSequence | int, want_logits: npt.ArrayLike
    ) -> None:
        """Compute `tokens` at `positions` of `seq_ids` (each [n_tokens], or one sequence for all).

        `want_logits`, bool [n_tokens] or one bool for all, says which tokens have a row in `logits` afterwards. The
        positions of a sequence must continue where it ends, without gaps. Raises ``ValueError`` for arguments that
        llama.cpp would refuse, ``ContextOverflowError`` when there is no room left (then nothing was computed),
        ``GenerationCancelled`` after `abort` (finished micro-batches stay in the cache: see `seq_pos_max`), and
        ``LlamaliteError`` when the computation fails.
        """
        n = len(tokens)
        self._n_outputs = 0
        if not 0 < n <= self.n_batch:
            raise ValueError(f"a batch holds 1..{self.n_batch} tokens (n_batch), found {n}: decode in several calls")
        self._tokens[:n] = self.model.check_tokens(tokens)
        self._positions[:n] = positions
        self._seq_ids[:n] = seq_ids
        self._wanted[:n] = want_logits
        self._check(n)
        self._decode(n)

    def decode_next(self, token: int, position: int, seq_id: int = 0) -> None:
        """Compute one token and its logits: `decode` without the checks of arrays, for the loop over tokens."""
        if not (0 <= token < self.model.n_vocab and position >= 0 and 0 <= seq_id < self.n_seq_max):
            raise ValueError(f"token {token}, position {position} or sequence {seq_id} is out of range")
        self._tokens[0], self._positions[0], self._seq_ids[0], self._wanted[0] = token, position, seq_id, 1
        self._decode(1)

    def _check(self, n: int) -> None:
        seq_ids = self._seq_ids[:n]
        if int(seq_ids.min()) < 0 or int(seq_ids.max()) >= self.n_seq_max:
            wrong = int(seq_ids.min() if int(seq_ids.min()) < 0 else seq_ids.max())
            raise ValueError(f"sequence {wrong} does not exist: this context has 0..{self.n_seq_max - 1} (n_seq_max)")
        if int(self._positions[:n].min()) < 0:
            raise ValueError(f"positions start at 0, found {int(self._positions[:n].min())}")

    def _decode(self, n: int) -> None:
        self._batch.n_tokens = n
        self._n_outputs = 0
        with collect_errors() as errors:
            code = llama().llama_decode(self.ptr, self._batch)
        if self._observer is not None and self._observer.raised is not None:
            error, self._observer.raised = self._observer.raised, None
            raise error
        if code == 0:
            self._n_outputs = int(np.count_nonzero(self._wanted[:n]))
            return
        reason = error_text([line for line in errors if "failed to" not in line])
        if code == 1:
            raise ContextOverflowError(f"no room for {n} more tokens in a context of {self.n_ctx}: raise n_ctx")
        if code == 2:
            raise GenerationCancelled(f"a decode of {n} tokens was stopped")
        if code == -1:
            raise ValueError(f"llama.cpp refuses the batch: {reason}")
        raise LlamaliteError(f"llama.cpp could not compute a batch of {n} tokens (code {code}): {reason}")

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the rows asked for in the last decode, float32 [n_outputs, n_vocab], in the batch's order.

        This is a view of llama.cpp's buffer, which the next decode overwrites. Raises ``ValueError`` if the last decode
        asked for no rows or did not finish.
        """
        if not self._n_outputs:
            raise ValueError("there are no logits: the last decode asked for none, or did not finish")
        address = _raw_logits()(self.ptr)
        if self._view is None or self._view_of != (address, self._n_outputs):
            shape = (self._n_outputs, self.model.n_vocab)
            buffer = (ctypes.c_float * (shape[0] * shape[1])).from_address(address)
            self._view = np.ctypeslib.as_array(buffer).reshape(shape)  # float32 [n_outputs, n_vocab]
            self._view_of = (address, self._n_outputs)
        return self._view

    def pooled(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Return the vector of a sequence of the last decode, float32 [n_embd], not normalized: a copy.

        Raises ``ValueError`` if the options have no `pooling`, or the last decode did not hold the sequence.
        """
        self._check_sequence(seq_id)
        pointer = llama().llama_get_embeddings_seq(self.ptr, seq_id) if self.options.pooling else None
        if not pointer:
            raise ValueError(f"there is no vector for sequence {seq_id}: the context must pool, and decode it")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_embd,)).astype(np.float32)

    def abort(self) -> None:
        """Make the running decode, or else the next one, raise ``GenerationCancelled``; from any thread."""
        self.abort_flag.set()

    def clear_abort(self) -> None:
        """Undo `abort`, so that decodes run again."""
        self.abort_flag.clear()

    # ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────

    def _check_sequence(self, seq_id: int) -> None:
        if not 0 <= seq_id < self.n_seq_max:
            raise ValueError(f"sequence {seq_id} does not exist: this context has 0..{self.n_seq_max - 1} (n_seq_max)")

    def clear(self) -> None:
        """Forget all sequences.

        Their bytes stay in the cache, unused: overwriting gigabytes would not change any result.
        """
        self.ptr  # noqa: B018 - raises if the context is closed
        if self._memory:
            llama().llama_memory_clear(self._memory, False)
        self._n_outputs = 0

    def seq_rm(self, seq_id: int, start: int = 0, stop: int = -1) -> bool:
        """Forget positions [start, stop) of a sequence; a `stop` of -1 is its end.

        Returns False, and forgets nothing, if the memory cannot forget a part (recurrent models, sliding windows).
        """
        self.ptr  # noqa: B018
        self._check_sequence(seq_id)
        return bool(llama().llama_memory_seq_rm(self._memory, seq_id, start, stop)) if self._memory else start <= 0

    def seq_cp(self, source: int, target: int, start: int = 0, stop: int = -1) -> None:
        """Let `target`, which should be empty, share positions [start, stop) of `source`.

        Without `kv_unified` the sequences' caches are separate and only whole sequences can be copied. For a part,
        llama.cpp aborts (``llama_kv_cache::seq_cp``, llama-kv-cache.cpp), and this raises ``ValueError``.
        """
        self.ptr  # noqa: B018
        self._check_sequence(source)
        self._check_sequence(target)
        if not self.options.kv_unified and source != target and (start > 0 or stop >= 0):
            raise ValueError(f"positions {start}..{stop} cannot be copied between separate caches: use kv_unified=True")
        if self._memory:
            llama().llama_memory_seq_cp(self._memory, source, target, start, stop)

    def seq_pos_min(self, seq_id: int) -> int:
        """Return the first position of a sequence in the cache, -1 if there is none."""
        self.ptr  # noqa: B018
        self._check_sequence(seq_id)
        return int(llama().llama_memory_seq_pos_min(self._memory, seq_id)) if self._memory else -1

    def seq_pos_max(self, seq_id: int) -> int:
        """Return the last position of a sequence in the cache, -1 if there is none."""
        self.ptr  # noqa: B018
        self._check_sequence(seq_id)
        return int(llama().llama_memory_seq_pos_max(self._memory, seq_id)) if self._memory else -1

    def state(self, seq_id: int) -> npt.NDArray[np.uint8]:
        """Return a sequence's part of the cache, uint8 [n_bytes], for `set_state` in a context with equal options."""
        self._check_sequence(seq_id)
        lib, size = llama(), llama().llama_state_seq_get_size(self.ptr, seq_id)
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: lib.llama_state_seq_get_data(self.ptr, pointer, size, seq_id)]

    def set_state(self, seq_id: int, state: npt.NDArray[np.uint8]) -> None:
        """Replace a sequence with bytes that `state` returned.

        They must come from the same model, cache type and llama.cpp; `llamalite.generation.session_file` checks that.
        llama.cpp refuses only some other bytes: then this raises ``LlamaliteError`` with its message, and the sequence
        has to be cleared. Any others become the cache's content (``llama_kv_cache::state_read_meta`` and
        ``state_read_data``, llama-kv-cache.cpp).
        """
        self._check_sequence(seq_id)
        data = np.ascontiguousarray(state)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        with collect_errors() as errors:
            read = llama().llama_state_seq_set_data(self.ptr, pointer, len(data), seq_id)
        if read != len(data):
            raise LlamaliteError(f"llama.cpp cannot take this state back: {error_text(errors)}")

    def set_lora(self, adapters: Sequence[LoraAdapter]) -> None:
        """Add LoRA adapters to the weights in all later decodes; an empty list removes them."""
        lib = llama()
        pointers, scales = [], []
        for adapter in adapters:
            pointers.append(self.model.adapter(adapter.path))
            scales.append(adapter.scale)
        n = len(pointers)
        array = (lib.llama_adapter_lora_p_ctypes * n)(*pointers)
        if lib.llama_set_adapters_lora(self.ptr, array, n, (ctypes.c_float * n)(*scales)):
            raise LlamaliteError("llama.cpp cannot apply these LoRA adapters to this model")
