"""A loaded GGUF file: its metadata, its vocabulary, and the tokenizer that comes with it.

    with NativeModel("tiny.gguf") as model:
        ids = model.tokenize("Once upon a time", add_special=True, parse_special=False)  # int32 [n_tokens], BOS first
        text = b"".join(model.token_to_piece(i) for i in ids)

llama.cpp aborts the process on a token outside the vocabulary, and on any text if the file has no vocabulary, so
arguments are checked here first. Texts are UTF-8 bytes; pieces are bytes too, since one character may span several
tokens.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamalite.errors import LlamaliteError, ModelLoadError
from llamalite.gguf_check import Header, check_adapter, checked_header
from llamalite.native import devices, verdict
from llamalite.native.decode_thread import DecodeThread, is_daemon_at_exit
from llamalite.native.library import collect_errors, error_text, llama, on_deep_stack
from llamalite.native.lifetime import Lifetime

TokenIds = npt.NDArray[np.int32]
_logger = logging.getLogger(__name__)

# ``unicode_cpt_from_utf8`` takes this for a character, on which ``unicode_cpt_to_utf8`` then aborts (unicode.cpp).
_BEYOND_UNICODE = re.compile(rb"(?:\xf4[\x90-\xbf]|[\xf5-\xf7][\x80-\xbf])[\x80-\xbf]{2}")
_VOCAB_NONE = 0  # enum llama_vocab_type (llama.h)
# For these, llama.cpp splits a text with loops of its own; for others with std::regex, which recurses for every
# character of a match: on a normal stack, ten thousand letters or digits in a row would crash the process.
_FLAT_PRE_TOKENIZERS = frozenset("llama-bpe llama3 llama-v3 gpt-2 qwen2 deepseek-r1-qwen smollm".split())
_STACK_PER_BYTE = 2048  # bytes of stack per byte of text; libstdc++ takes about 500 per character, others more


class _Closable(Protocol):
    def close(self) -> None: ...


class NativeModel:
    """Weights and vocabulary of one GGUF file, in llama.cpp's memory.

    - `n_gpu_layers`: how many layers the GPU computes (-1: all); `device`: which GPU (`llamalite.native.devices`).
    - `vocab_only`: leave the weights out.
    - `progress`: called with a fraction in 0..1, in another thread, while the file is loaded; raising in it stops the
      load.
    - `header`: what `checked_header` returned for this file, if the caller has it; the file is then not checked again.
    - `extra_buffers`: let llama.cpp copy weights into an order made for the processor. None does so if
      `llamalite.native.verdict` found it to work.
    - `thread`: where all contexts of this model decode. Models that compute in turns share one; its creator
      closes it.

    Raises ``GGUFError`` for a file that contradicts itself, which never reaches llama.cpp, and ``ModelLoadError`` for a
    file that llama.cpp refuses, with its message, for weights of a type that this build computes wrongly, and for GPU
    layers if the build has no GPU backend.

    The contexts of a model must be closed before it; `close` closes those that were registered with `own`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        device: str | None = None,
        vocab_only: bool = False,
        progress: Callable[[float], None] | None = None,
        header: Header | None = None,
        extra_buffers: bool | None = None,
        thread: DecodeThread | None = None,
    ) -> None:
        self._ptr: Any = None
        self._owned: list[_Closable] = []
        self._has_own_thread = thread is None
        self.thread = thread or DecodeThread()
        self.lifetime = Lifetime()
        self.freeing = threading.RLock()  # held to free the model or one of its contexts, and to register a context
        self._adapters: dict[Path, Any] = {}  # freed by llama_model_free
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be a function of one number, found {progress!r:.80}")
        self.path = Path(path)
        if header is None or header.path != self.path:
            # llama.cpp aborts on some files that contradict themselves.
            header = checked_header(self.path, vocab_only=vocab_only)
        self._header = header
        params = llama().llama_model_default_params()
        params.n_gpu_layers = devices.offload(n_gpu_layers, device)
        if device is not None:
            device_array = devices.device_array(device)  # keeps the array alive, to which `params` has a pointer
            params.devices = ctypes.cast(device_array, ctypes.c_void_p)
        params.vocab_only = vocab_only
        if extra_buffers is None:
            extra_buffers = vocab_only or _extra_buffers_work(header)
        params.use_extra_bufts = extra_buffers
        self._load(params, progress)
        self._read_facts()

    def _load(self, params: Any, progress: Callable[[float], None] | None) -> None:
        lib, raised, stop = llama(), list[BaseException](), threading.Event()

        def report(fraction: float, _user_data: Any) -> bool:
            if stop.is_set():
                return False
            try:
                if progress is not None:
                    progress(fraction)
            except BaseException as error:  # noqa: BLE001 - it cannot pass through C: raised again below
                raised.append(error)
                return False
            return True

        # Set even without `progress`: with it Ctrl-C stops the load, which takes seconds.
        params.progress_callback = lib.llama_progress_callback(report)

        def load() -> None:
            self._ptr = lib.llama_model_load_from_file(os.fsencode(self.path), params)

        # In a thread that ends afterwards, as does its OpenMP team: loading computes too (weights are copied into an
        # order for AMX), and with a team left in the caller's thread every decode would take half as long again.
        loading = DecodeThread()
        with collect_errors() as errors:
            try:
                loading.run(load, stop.set)
            finally:
                loading.close()
        if not self._ptr:
            if raised:
                raise raised[0]
            raise ModelLoadError(f"llama.cpp cannot load {self.path}: {error_text(errors)}")

    def _read_facts(self) -> None:
        lib = llama()
        self._vocab = lib.llama_model_get_vocab(self._ptr)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._ptr)
        self.n_embd: int = lib.llama_model_n_embd(self._ptr)
        self.n_layer: int = lib.llama_model_n_layer(self._ptr)
        # Without weights there are no layers, and llama.cpp aborts when it is asked about layer 0.
        self.n_head_kv: int = lib.llama_model_n_head_kv(self._ptr) if self.n_layer else 0
        self.size_bytes: int = lib.llama_model_size(self._ptr)
        self.n_params: int = lib.llama_model_n_params(self._ptr)
        self.has_vocab: bool = lib.llama_vocab_type(self._vocab) != _VOCAB_NONE
        self.has_encoder: bool = lib.llama_model_has_encoder(self._ptr)
        self.has_decoder: bool = lib.llama_model_has_decoder(self._ptr)
        # A state space model keeps one state for all tokens so far, which cannot be rewound to an earlier token.
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self._ptr) or lib.llama_model_is_hybrid(self._ptr)
        self.n_swa: int = lib.llama_model_n_swa(self._ptr)  # tokens of the sliding window, 0 without one
        self.desc: str = _text(lambda buffer, size: lib.llama_model_desc(self._ptr, buffer, size))
        self.metadata: dict[str, str] = self._read_metadata()
        self.bos: int = lib.llama_vocab_bos(self._vocab) if self.has_vocab else -1  # -1: the vocabulary has none
        self.eos: int = lib.llama_vocab_eos(self._vocab) if self.has_vocab else -1
        self.add_bos: bool = self.has_vocab and lib.llama_vocab_get_add_bos(self._vocab)
        self.add_eos: bool = self.has_vocab and lib.llama_vocab_get_add_eos(self._vocab)
        pre_tokenizer = self.metadata.get("tokenizer.ggml.pre", "default")
        kind = self.metadata.get("tokenizer.ggml.model")
        self._decodes_utf8 = self.has_vocab and kind != "llama"
        self._recurses = kind == "gpt2" and pre_tokenizer not in _FLAT_PRE_TOKENIZERS
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._eog: dict[int, bool] = {}
        self._control: dict[str, int] | None = None

    def _read_metadata(self) -> dict[str, str]:
        """Return the scalar keys of the file, with the values as llama.cpp spells them; arrays are left out."""
        lib, metadata = llama(), {}
        for i in range(lib.llama_model_meta_count(self._ptr)):
            key = _text(lambda b, n, i=i: lib.llama_model_meta_key_by_index(self._ptr, i, b, n))  # type: ignore[misc]
            metadata[key] = _text(lambda b, n, i=i: lib.llama_model_meta_val_str_by_index(self._ptr, i, b, n))  # type: ignore[misc]
        return metadata

    @property
    def ptr(self) -> Any:
        """The ``llama_model *``; ``ValueError`` once the model is closed."""
        if self._ptr is None:
            raise ValueError("this model is closed")
        return self._ptr

    @property
    def vocab(self) -> Any:
        """The ``llama_vocab *`` of this model."""
        self.ptr  # noqa: B018 - refuses a closed model
        return self._vocab

    def adapter(self, path: str | os.PathLike[str]) -> Any:
        """Return the ``llama_adapter_lora *`` of a LoRA adapter in GGUF form, loaded once and freed with the model."""
        path = Path(path)
        if path not in self._adapters:
            check_adapter(path, self._header)
            with collect_errors() as errors:
                adapter = llama().llama_adapter_lora_init(self.ptr, os.fsencode(path))
            if not adapter:
                raise ModelLoadError(f"llama.cpp cannot load the LoRA adapter {path}: {error_text(errors)}")
            self._adapters[path] = adapter
        return self._adapters[path]

    def own(self, resource: _Closable) -> None:
        """Make `close` close `resource` first: llama.cpp's contexts must not outlive their model."""
        with self.freeing:
            self._owned.append(resource)

    def disown(self, resource: _Closable) -> None:
        """Forget a resource that was closed."""
        with self.freeing:
            self._owned = [owned for owned in self._owned if owned is not resource]

    def in_use(self) -> contextlib.AbstractContextManager[None]:
        """Return a ``with`` block, which should be short, during which this model is not freed.

        Raises ``ValueError`` if the model is closed, ``GenerationCancelled`` if another thread is closing it.
        """
        self.ptr  # noqa: B018 - refuses a closed model
        return self.lifetime.hold()

    def close(self) -> None:
        """Abort what other threads compute with this model, wait until they have ended, and free its memory.

        Closing twice does nothing. Raises ``LlamaliteError`` when this thread itself is computing with the model, for
        instance in a callback of ``generate_batch``.
        """
        self.lifetime.end()
        with self.freeing:
            for resource in reversed(list(self._owned)):
                resource.close()
            self._owned.clear()
            if self._ptr is not None and not is_daemon_at_exit():
                pointer, self._ptr = self._ptr, None
                llama().llama_model_free(pointer)
        if self._has_own_thread:
            self.thread.close()

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit the library may be gone already
            self.close()

    # ── vocabulary ──────────────────────────────────────────────────────────────────────────────────────────────

    def _check_vocab(self) -> None:
        if not self.has_vocab:
            raise LlamaliteError(f"{self.path.name} has no vocabulary: it works on token ids only")

    def check_tokens(self, tokens: Sequence[int] | npt.NDArray[Any]) -> TokenIds:
        """Return `tokens` as int32 [n_tokens]; ``ValueError`` names the first that this model does not have."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"token ids must be whole numbers in one dimension, found {ids.dtype} {list(ids.shape)}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.n_vocab):
            index = int(np.flatnonzero((ids < 0) | (ids >= self.n_vocab))[0])
            raise ValueError(f"token {int(ids[index])} at place {index} is outside the vocabulary of {self.n_vocab}")
        return ids.astype(np.int32, copy=False)

    def tokenize(self, text: bytes | str, *, add_special: bool, parse_special: bool) -> TokenIds:
        """Return the token ids of `text`, int32 [n_tokens].

        `add_special` adds BOS and EOS where the file asks for them. With `parse_special`, text that spells a control
        token becomes that token: for the output of templates, never for what a user typed.
        """
        self._check_vocab()
        if add_special and ((self.add_bos and self.bos < 0) or (self.add_eos and self.eos < 0)):
            raise LlamaliteError(
                f"{self.path.name} asks for BOS or EOS around texts, but its vocabulary has no such token"
            )
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        if self._decodes_utf8 and (beyond := _BEYOND_UNICODE.search(raw)):
            raise LlamaliteError(
                f"byte {beyond.start()} of the text begins {beyond[0].hex(' ')}, a character beyond Unicode's last, "
                "U+10FFFF: the text is damaged, or is not text"
            )
        lib, vocab = llama(), self.vocab
        room = len(raw) + 8
        for _ in range(2):
            ids = np.empty(room, np.int32)
            pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            call = functools.partial(
                lib.llama_tokenize, vocab, raw, len(raw), pointer, room, add_special, parse_special
            )
            with self.in_use():
                n: int = (
                    on_deep_stack(_STACK_PER_BYTE * len(raw), call) if self._recurses and len(raw) > 1024 else call()
                )
            if n >= 0:
                return ids[:n].copy() if n < room // 2 else ids[:n]
            if n == -(2**31):
                break
            room = -n
        raise ValueError(f"a text of {len(raw)} bytes has more tokens than llama.cpp can count")

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the text of `token` as bytes, ``b""`` for a control token unless `special`."""
        piece = self._pieces.get((token, special))
        if piece is None:
            self._check_vocab()
            self.check_tokens([token])
            piece = self._pieces[token, special] = self._piece(token, special)
        return piece

    def _piece(self, token: int, special: bool) -> bytes:
        lib, size = llama(), 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            with self.in_use():
                n: int = lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int] | TokenIds, *, special: bool = False) -> bytes:
        """Return the text of `tokens` as bytes, without the leading space that SentencePiece adds."""
        self._check_vocab()
        ids = np.ascontiguousarray(self.check_tokens(tokens))
        lib, size = llama(), 16 * len(ids) + 64
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        while True:
            buffer = ctypes.create_string_buffer(size)
            with self.in_use():
                n: int = lib.llama_detokenize(self.vocab, pointer, len(ids), buffer, size, False, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def is_eog(self, token: int) -> bool:
        """Tell whether `token` ends a generation (EOS, end of turn, ...)."""
        is_eog = self._eog.get(token)
        if is_eog is None:
            self.check_tokens([token])
            with self.in_use():
                is_eog = self._eog[token] = bool(llama().llama_vocab_is_eog(self.vocab, token))
        return is_eog

    def difference(self, other: NativeModel) -> str | None:
        """Return in words how the vocabulary of `other` differs from this one, None if all tokens are the same."""
        if self.n_vocab != other.n_vocab:
            return f"it has {other.n_vocab} tokens, and {self.path.name} has {self.n_vocab}"
        lib, mine, theirs = llama(), self.vocab, other.vocab
        for token in range(self.n_vocab if self.has_vocab else 0):
            texts = lib.llama_vocab_get_text(mine, token), lib.llama_vocab_get_text(theirs, token)
            if texts[0] != texts[1]:
                own_text, other_text = (text.decode("utf-8", "replace") for text in texts)
                return f"its token {token} is {other_text!r}, and that of {self.path.name} is {own_text!r}"
        return None

    def control_tokens(self) -> dict[str, int]:
        """Return spelling → id of every control token. It is built once; a large vocabulary takes tens of ms."""
        if self._control is None:
            with self.in_use():
                lib, vocab = llama(), self.vocab
                ids = (i for i in range(self.n_vocab) if lib.llama_vocab_is_control(vocab, i)) if self.has_vocab else ()
                spellings = {self.token_to_piece(i, special=True).decode("utf-8", "replace"): i for i in ids}
            self._control = {text: i for text, i in spellings.items() if text}
        return self._control

    def is_control(self, token: int) -> bool:
        """Tell whether `token` is a control token, which plain text never becomes."""
        self.check_tokens([token])
        with self.in_use():
            return bool(llama().llama_vocab_is_control(self.vocab, token))


@functools.cache
def _warn_once(text: str) -> None:
    _logger.warning("%s", text)


def _extra_buffers_work(header: Header) -> bool:
    """Tell whether extra buffers work here; ``ModelLoadError`` if weights of a type in `header` do not."""
    library_verdict = verdict.current()
    types = {tensor.type.name for tensor in header.all_tensors if len(tensor.shape) > 1}
    for name in sorted(types):
        if (how := library_verdict.refused(name)) is not None:
            raise ModelLoadError(
                f"{header.path.name} has {name} weights, with which the installed llama-cpp-python fails on this "
                f"processor ({how}). {verdict.repair()}"
            )
    if (text := library_verdict.warning()) is not None:
        _warn_once(text)
    return library_verdict.extra_buffers


def _text(fill: Callable[[Any, int], int]) -> str:
    """Return the string that the C function `fill(buffer, size)` writes; it returns the length that it needs."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = fill(buffer, size)
        if n < size:
            return buffer.value.decode("utf-8", "replace")
        size = n + 1
