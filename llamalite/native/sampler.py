"""Samples a token from a row of logits, as `SamplingParams` say, with llama.cpp's samplers.

    sampler = NativeSampler(model, SamplingParams(temperature=0.7, seed=1), prompt=ids)
    token = sampler.sample(context.logits()[0])

The order is llama.cpp's (``common_sampler_init``, common/sampling.cpp): bias, penalties, top_k, top_p, min_p,
temperature, draw. A grammar first checks the token drawn, and filters all candidates only if it forbids that token,
since filtering a whole vocabulary takes milliseconds. llama.cpp aborts the process when a grammar has to accept a token
that it forbids. This module never lets that happen: if a grammar allows no token, it raises ``LlamaliteError``.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite.errors import LlamaliteError
from llamalite.native.library import collect_errors, error_text, llama, stderr_of_c
from llamalite.native.model import NativeModel
from llamalite.sampling import SamplingParams

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data (llama.h)
# The parser recurses for each bracket, and its check for left recursion for each rule: more overflow the stack.
_MAX_GRAMMAR_NESTING, _MAX_GRAMMAR_RULES = 200, 4000
# MAX_REPETITION_THRESHOLD (llama-grammar.cpp): `parse_sequence` refuses a larger minimum, and ignores a larger maximum.
# It does not notice a maximum below the minimum: `max_times - min_times` wraps, and it writes rules forever.
_MAX_REPETITIONS = 2000
_MAX_REPEATED = 1_000_000  # characters of all repetitions written out
_GRAMMAR_ITEM = re.compile(
    # what `parse_sequence` reads: a literal, a class or a token; a repetition; a comment; any other character
    r"""(?P<item>"(?:\\.|[^"\\])*"|\[(?:\\.|[^]\\])*\]|<[^>]*>)|\{(?P<times>(?:#[^\r\n]*[\r\n]|[^}#])*)\}|#[^\r\n]*|[^\s]""",
    re.DOTALL,
)
_COMMENT = re.compile(r"#[^\r\n]*")
_TIMES = re.compile(r"\s*([0-9]+)\s*(?:(,)\s*([0-9]*)\s*)?", re.ASCII)


@functools.lru_cache(maxsize=2)
def _blank(n_vocab: int) -> npt.NDArray[Any]:
    """Return all tokens of a vocabulary as candidates without logits: every draw begins with them."""
    candidates = np.zeros(n_vocab, _CANDIDATE)
    candidates["id"] = np.arange(n_vocab)
    return candidates


class NativeSampler:
    """The samplers of one generation and their state (penalties, random numbers, grammar).

    `prompt` holds the tokens that penalties count at the beginning. The attribute `seed` is the seed in use, drawn
    if the parameters have none. Raises ``ValueError`` for a bias outside the vocabulary, and for a grammar that
    llama.cpp cannot parse, with its message.
    """

    def __init__(self, model: NativeModel, params: SamplingParams, *, prompt: Sequence[int] = ()) -> None:
        self._chain: Any = None
        self._grammar: Any = None
        self._model = model
        self._n_vocab = model.n_vocab
        self._utf8 = codecs.getincrementaldecoder("utf-8")()  # strict: for grammars
        drawn = int.from_bytes(os.urandom(8), "little") % (2**32 - 1)  # the module secrets takes longer to import
        self.seed = params.seed if params.seed is not None else 0 if params.reproducible else drawn
        for name, tokens in (("logit_bias", params.logit_bias), ("stop", params.stop_tokens)):
            if outside := [token for token in tokens if token >= model.n_vocab]:
                raise ValueError(f"{name} names token {outside[0]}, and the vocabulary has {model.n_vocab}")
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        if params.grammar is not None:
            self._grammar = _grammar(model, params.grammar)
        self._argmax = params.is_greedy and not params.has_penalties and self._grammar is None
        if self._argmax:
            return
        self._chain = self._build(params)
        self._array = llama().llama_token_data_array()
        self._candidates = _blank(self._n_vocab).copy()  # llama.cpp sorts and shortens this in place
        if params.has_penalties:
            for token in list(prompt)[-params.repeat_last_n :]:
                llama().llama_sampler_accept(self._chain, token)

    def _build(self, params: SamplingParams) -> Any:
        lib = llama()
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        links = []
        if params.has_penalties:
            links.append(
                lib.llama_sampler_init_penalties(
                    self._n_vocab,
                    params.repeat_last_n,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.is_greedy:
            links.append(lib.llama_sampler_init_greedy())
        else:
            if params.top_k:
                links.append(lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1:
                links.append(lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                links.append(lib.llama_sampler_init_min_p(params.min_p, 1))
            links.append(lib.llama_sampler_init_temp(params.temperature))
            links.append(lib.llama_sampler_init_dist(self.seed))
        for link in links:
            lib.llama_sampler_chain_add(chain, link)
        return chain

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """Sample a token from `logits`, float32 [n_vocab], and update the state with it; `logits` is not changed.

        Raises ``LlamaliteError`` when there is no token to choose: the logits are not numbers, or the grammar and the
        bias together forbid every token.
        """
        if len(self._bias_ids):
            logits = logits.copy()
            logits[self._bias_ids] += self._bias
        if self._argmax:
            token = int(logits.argmax())
            if not math.isfinite(logits[token]):
                self._refuse(logits)
            return token
        token = self._draw(logits)
        if self._grammar is not None:
            token = self._allowed(token, logits)
            llama().llama_sampler_accept(self._grammar, token)
        llama().llama_sampler_accept(self._chain, token)
        return token

    def _allowed(self, token: int, logits: npt.NDArray[np.float32]) -> int:
        """Return `token` if the grammar allows it, else a token drawn from those that it allows.

        Tokens that would make the text invalid UTF-8 are forbidden too: llama.cpp's grammar takes any bytes after the
        first byte of a multi-byte character as its rest, even a closing quote (``decode_utf8``, llama-grammar.cpp).
        """
        if not self._allows(token):
            token = self._draw(logits, grammar_first=True)
        forbidden: list[int] = []
        while not self._is_utf8(token):
            forbidden.append(token)
            token = self._draw(logits, grammar_first=True, forbidden=forbidden)
        if not self._allows(token):
            raise LlamaliteError(_DEAD_END)
        self._utf8.decode(self._model.token_to_piece(token))
        return token

    def _is_utf8(self, token: int) -> bool:
        state = self._utf8.getstate()
        try:
            self._utf8.decode(self._model.token_to_piece(token))
            # Python refuses a surrogate only when it sees its third byte.
            return not (b"\xed\xa0" <= self._utf8.getstate()[0] < b"\xee")
        except UnicodeDecodeError:
            return False
        finally:
            self._utf8.setstate(state)

    def _draw(
        self, logits: npt.NDArray[np.float32], *, grammar_first: bool = False, forbidden: Sequence[int] = ()
    ) -> int:
        lib, array = llama(), self._array
        np.copyto(self._candidates, _blank(self._n_vocab))
        self._candidates["logit"] = logits
        self._candidates["logit"][list(forbidden)] = -np.inf
        array.data = ctypes.cast(self._candidates.ctypes.data, lib.llama_token_data_p)
        array.size, array.selected, array.sorted = self._n_vocab, -1, False
        if grammar_first:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        best = float(self._candidates["logit"].max())
        if not math.isfinite(best):
            self._refuse(self._candidates["logit"])
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise LlamaliteError("llama.cpp's samplers chose no token: try other sampling parameters")
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        lib = llama()
        candidate = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        array = lib.llama_token_data_array()
        array.data = ctypes.cast(candidate.ctypes.data, lib.llama_token_data_p)
        array.size, array.selected, array.sorted = 1, -1, False
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(candidate["logit"][0] != -np.inf)

    @staticmethod
    def _refuse(logits: npt.NDArray[Any]) -> None:
        if np.isnan(logits).any():
            raise LlamaliteError(
                "the model computed logits that are not numbers (NaN): the file is damaged, or overflows"
            )
        raise LlamaliteError(_DEAD_END)

    def close(self) -> None:
        """Free llama.cpp's samplers; closing twice does nothing."""
        for name in ("_chain", "_grammar"):
            pointer = getattr(self, name)
            if pointer:
                setattr(self, name, None)
                llama().llama_sampler_free(pointer)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit the library may be gone already
            self.close()


_DEAD_END = (
    "no token may follow: the grammar and logit_bias together forbid every token of this vocabulary; "
    "widen the grammar, or drop the bias"
)


def _grammar(model: NativeModel, text: str) -> Any:
    nesting = _nesting(text)
    if nesting > _MAX_GRAMMAR_NESTING:
        raise ValueError(f"the grammar nests brackets {nesting} deep, and {_MAX_GRAMMAR_NESTING} is the limit")
    if text.count("::=") > _MAX_GRAMMAR_RULES:
        raise ValueError(f"the grammar has {text.count('::=')} rules, and {_MAX_GRAMMAR_RULES} is the limit")
    if "\0" in text:
        raise ValueError("the grammar holds a NUL character: write it as \\x00")
    _check_repetitions(text)
    lib, vocab, raw = llama(), model.vocab, text.encode()
    with model.in_use(), collect_errors() as errors, stderr_of_c() as written:
        grammar = lib.llama_sampler_init_grammar(vocab, raw, b"root")
    # The parser writes its reason, followed by the rest of the grammar, line by line.
    reasons = [line.partition("error parsing grammar: ")[2] for line in written if "error parsing grammar: " in line]
    if not grammar:
        raise ValueError(f"llama.cpp cannot parse the grammar: {'; '.join(reasons) or error_text(errors)}")
    for line in written:  # from another thread
        os.write(2, line.encode("utf-8", "replace") + b"\n")
    return grammar


def _check_repetitions(text: str) -> None:
    """Raise ``ValueError`` for a repetition that llama.cpp would write out forever, or at excessive length."""
    length, total = 1, 0  # of the part that a repetition repeats; of all parts written out
    for item in _GRAMMAR_ITEM.finditer(text):
        times = _TIMES.fullmatch(_COMMENT.sub("", item["times"] or ""))
        if times is None:  # no repetition, or one that llama.cpp refuses itself
            length = len(item[0]) if item["item"] else length if item[0][0] == "#" else 1
            continue
        where = f"line {text.count(chr(10), 0, item.start()) + 1} of the grammar, {' '.join(item[0].split()):.40}"
        numbers = [digits.lstrip("0") or "0" for digits in (times[1], times[3]) if digits]
        if any(len(digits) > 4 or int(digits) > _MAX_REPETITIONS for digits in numbers):
            raise ValueError(f"{where}: llama.cpp allows at most {_MAX_REPETITIONS} repetitions")
        if int(numbers[-1]) < int(numbers[0]):
            raise ValueError(f"{where}: the maximum, {numbers[-1]}, is below the minimum, {numbers[0]}")
        length *= max(1, int(numbers[-1]))
        total += length
        if total > _MAX_REPEATED:
            raise ValueError(f"{where}: the repetitions up to here expand to {total} characters: repeat less")


def _nesting(text: str) -> int:
    """Return how deep "(" nests, counting those in literals too: an upper bound is enough."""
    depth = deepest = 0
    for char in text:
        if char == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif char == ")":
            depth = max(0, depth - 1)
    return deepest
