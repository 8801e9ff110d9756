"""Finds the strings of a GGUF string array without making a Python object for each.

    >>> buffer = b"".join(len(s).to_bytes(8, "little") + s for s in (b"<s>", b"hello"))
    >>> spans = packed_spans(buffer, 0, 2)
    >>> [buffer[start:end] for start, end in spans.tolist()]
    [b'<s>', b'hello']

An array of strings is ``u64 length, bytes, u64 length, bytes, ...``: a string's start is known only after reading the
one before it. A vocabulary of 128,256 tokens and its 280,147 merges are 400,000 steps: too many for a loop in Python.
`packed_spans` guesses all starts at once, from the six zero bytes that end the length of any string shorter than
64 KiB, and then *proves* the guess: if the first starts at the beginning and each next one starts where the one before
it ends, the guess is what the loop would have found. From the first wrong guess on (after a string that holds zero
bytes, for example) the loop, `packed_spans_slowly`, takes over.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int64]  # [n_strings, 2]: first byte, and the byte after the last


_CHUNK = 1 << 18  # bytes searched at a time: they fit into a core's cache
_FEW = 256  # strings: for fewer the loop is faster


def packed_spans(buffer: bytes, start: int, n: int) -> Spans | None:
    """Return the spans of `n` strings from byte `start` on, int64 [n, 2]; None if the buffer ends before they do."""
    if n < _FEW:
        return packed_spans_slowly(buffer, start, n)
    begin = _likely_starts(buffer, start, n)
    octets = np.frombuffer(buffer, np.uint8)
    # The six upper bytes of each length are zero: the search looked for them.
    after = begin + 8 + octets[begin] + octets[begin + 1].astype(np.int64) * 256
    wrong = np.flatnonzero(begin != np.concatenate([[start], after[:-1]]))
    n_proved = int(wrong[0]) if len(wrong) else len(begin)
    if n_proved and after[n_proved - 1] > len(buffer):
        return None
    proved = np.stack([begin[:n_proved] + 8, after[:n_proved]], axis=1)
    rest = packed_spans_slowly(buffer, int(after[n_proved - 1]) if n_proved else start, n - n_proved)
    return None if rest is None else np.concatenate([proved, rest])


def packed_spans_slowly(buffer: bytes, start: int, n: int) -> Spans | None:
    """As `packed_spans`, one string after the other."""
    spans = np.empty((n, 2), np.int64)
    after, size, from_bytes, ends = start, len(buffer), int.from_bytes, []
    for _ in range(n):
        after += 8 + from_bytes(buffer[after : after + 8], "little")
        if after > size:
            return None
        ends.append(after)
    spans[:, 1] = ends
    spans[:1, 0] = start + 8
    spans[1:, 0] = spans[:-1, 1] + 8
    return spans


def _likely_starts(buffer: bytes, start: int, n: int) -> npt.NDArray[np.int64]:
    """Return the first `n` places from `start` on where a string seems to start.

    There, two bytes are followed by six zeros and a byte that is not zero.
    """
    starts: list[npt.NDArray[np.int64]] = []
    n_found = 0
    chunk = min(_CHUNK, 32 * n)
    for at in range(start, len(buffer), chunk):
        zero = np.frombuffer(buffer, np.uint8, min(chunk + 8, len(buffer) - at), at) == 0
        two = zero[:-1] & zero[1:]
        six = two[2:-4] & two[4:-2] & two[6:]  # six[i]: the bytes i + 2 ... i + 7 of this chunk are all zero
        places = np.flatnonzero(six[:-1] & ~six[1:])
        starts.append(places + at)
        n_found += len(places)
        if n_found >= n:
            break
    return np.concatenate(starts)[:n] if starts else np.empty(0, np.int64)
