"""Where the strings of a GGUF string array lie, without making one Python object for each.

    >>> buffer = b"".join(len(s).to_bytes(8, "little") + s for s in (b"<s>", b"hello"))
    >>> spans = packed_spans(buffer, 0, 2)
    >>> [buffer[start:end] for start, end in spans.tolist()]
    [b'<s>', b'hello']

An array of strings is ``u64 length, bytes, u64 length, bytes, ...``: where one string begins is known only when the one
before it has been read. A vocabulary of 128,256 tokens and its 280,147 merges are 400,000 such steps, too many for a
loop. `packed_spans` guesses all beginnings at once, from the six zero bytes that end the length of a string shorter
than 64 KiB, and then *proves* the guess: if the first begins at the start and each next one begins where the one
before it ends, then the guess is what the loop would have found. From the first that does not prove right (after a
string with zero bytes in it, say) it is left to the loop, `packed_spans_slowly`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Spans = npt.NDArray[np.int64]  # [n_strings, 2]: first byte, and the byte after the last


_CHUNK = 1 << 18  # bytes looked at in one go: what fits a core's cache
_FEW = 256  # strings: below it the loop is the faster way


def packed_spans(buffer: bytes, start: int, n: int) -> Spans | None:
    """Return where the `n` strings from `start` lie, int64 [n, 2], or None when the buffer ends before they do."""
    if n < _FEW:
        return packed_spans_slowly(buffer, start, n)
    begin = _beginnings(buffer, start, n)
    octets = np.frombuffer(buffer, np.uint8)
    # The six upper bytes of each length are zero: that is how these places were found.
    after = begin + 8 + octets[begin] + octets[begin + 1].astype(np.int64) * 256
    wrong = np.flatnonzero(begin != np.concatenate([[start], after[:-1]]))
    n_proved = int(wrong[0]) if len(wrong) else len(begin)
    if n_proved and after[n_proved - 1] > len(buffer):
        return None
    proved = np.stack([begin[:n_proved] + 8, after[:n_proved]], axis=1)
    rest = packed_spans_slowly(buffer, int(after[n_proved - 1]) if n_proved else start, n - n_proved)
    return None if rest is None else np.concatenate([proved, rest])


def packed_spans_slowly(buffer: bytes, start: int, n: int) -> Spans | None:
    """Return what `packed_spans` returns, one string after the other."""
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


def _beginnings(buffer: bytes, start: int, n: int) -> npt.NDArray[np.int64]:
    """Return the first `n` places from `start` that are followed by six zero bytes and then by another byte."""
    found: list[npt.NDArray[np.int64]] = []
    n_found = 0
    chunk = min(_CHUNK, 32 * n)
    for at in range(start, len(buffer), chunk):
        zero = np.frombuffer(buffer, np.uint8, min(chunk + 8, len(buffer) - at), at) == 0
        two = zero[:-1] & zero[1:]
        six = two[2:-4] & two[4:-2] & two[6:]  # six[i]: the bytes i + 2 ... i + 7 of this chunk are all zero
        places = np.flatnonzero(six[:-1] & ~six[1:])
        found.append(places + at)
        n_found += len(places)
        if n_found >= n:
            break
    return np.concatenate(found)[:n] if found else np.empty(0, np.int64)
