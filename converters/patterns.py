r"""Regular expressions for tensor names, as llama-quantize has them, searched in a time that no pattern can blow up.

    >>> Pattern(r"blk\.(0|[1-3])\.ffn_.*").search("blk.2.ffn_down.weight")
    True
    >>> Pattern(r"(a+)+$").search("a" * 60 + "!")        # a backtracking engine would not live to see the end of it
    False

llama-quantize searches with ``std::regex`` (src/llama-quant.cpp, ``llama_tensor_get_type``), whose grammar is
ECMAScript's. All of it is here but back references (``\1``). A part of a pattern maps a position of the name to the set
of positions at which it can end, and each part does so once for each position; what a part matched is not kept, as only
*whether* a name matches is asked.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import NoReturn

_MAX_LENGTH = 1000
_MAX_DEPTH = 50
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_ESCAPED = {"d": frozenset(string.digits), "w": _WORD, "s": frozenset(" \t\n\r\f\v")}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_POSIX = {
    "alnum": string.ascii_letters + string.digits, "alpha": string.ascii_letters, "digit": string.digits,
    "lower": string.ascii_lowercase, "upper": string.ascii_uppercase, "xdigit": string.hexdigits,
    "space": " \t\n\r\f\v", "punct": string.punctuation,
}  # fmt: skip


@dataclass(frozen=True)
class _One:
    """One character, among `characters` or, `negated`, not among them."""

    characters: frozenset[str]
    negated: bool = False


@dataclass(frozen=True)
class _Edge:
    r"""A position: ``^``, ``$``, ``b`` (a border of a word) or ``B``."""

    kind: str


@dataclass(frozen=True)
class _Ahead:
    """What follows is, or is not, matched by `part`; nothing of it is taken."""

    part: _Part
    negated: bool


@dataclass(frozen=True)
class _All:
    """One part after another."""

    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Any:
    """One of the parts."""

    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Repeat:
    """`part` at least `low` times and, unless that is None, at most `high` times."""

    part: _Part
    low: int
    high: int | None


_Part = _One | _Edge | _Ahead | _All | _Any | _Repeat


class Pattern:
    """A pattern, compiled; ``ValueError`` says where it is not one."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._part = _Parser(source).parse()

    def search(self, name: str) -> bool:
        """Tell whether the pattern matches anywhere in `name`."""
        match = _Match(name)
        return any(match.ends(self._part, start) for start in range(len(name) + 1))


class _Match:
    """The ends of every part from every position of one name, each found once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, part: _Part, start: int) -> frozenset[int]:
        key = (id(part), start)
        if key not in self._known:
            self._known[key] = self._ends(part, start)
        return self._known[key]

    def _ends(self, part: _Part, start: int) -> frozenset[int]:
        here = frozenset({start})
        if isinstance(part, _One):
            matched = start < len(self._name) and (self._name[start] in part.characters) is not part.negated
            return frozenset({start + 1}) if matched else frozenset()
        if isinstance(part, _Edge):
            return here if self._is_edge(part.kind, start) else frozenset()
        if isinstance(part, _Ahead):
            return here if bool(self.ends(part.part, start)) is not part.negated else frozenset()
        if isinstance(part, _Any):
            return frozenset().union(*(self.ends(one, start) for one in part.parts))
        if isinstance(part, _All):
            for one in part.parts:
                here = self._after(one, here)
            return here
        return self._repeated(part, here)

    def _after(self, part: _Part, starts: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(self.ends(part, start) for start in starts))

    def _repeated(self, part: _Repeat, here: frozenset[int]) -> frozenset[int]:
        # A path of more steps than there are positions stays somewhere: after twice as many nothing changes any more.
        enough = 2 * len(self._name) + 2
        for _ in range(min(part.low, enough)):
            here = self._after(part.part, here)
        found = newest = here
        for _ in range(enough if part.high is None else min(part.high - part.low, enough)):
            newest = self._after(part.part, newest) - found
            if not newest:
                break
            found |= newest
        return found

    def _is_edge(self, kind: str, at: int) -> bool:
        if kind in "^$":
            return at == (0 if kind == "^" else len(self._name))
        before, after = (i in range(len(self._name)) and self._name[i] in _WORD for i in (at - 1, at))
        return (before is not after) is (kind == "b")


class _Parser:
    """Recursive descent over ECMAScript's grammar of patterns."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0

    def parse(self) -> _Part:
        if len(self._source) > _MAX_LENGTH:
            raise ValueError(f"the pattern has {len(self._source):,} characters, expected at most {_MAX_LENGTH:,}")
        part = self._alternatives()
        if self._at < len(self._source):
            self._refuse("')' without '('")
        return part

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{what} at character {min(self._at, len(self._source)) + 1} of {self._source!r}")

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        taken = self._peek(text)
        self._at += len(text) if taken else 0
        return taken

    def _next(self) -> str:
        if self._at == len(self._source):
            self._refuse("an unexpected end")
        self._at += 1
        return self._source[self._at - 1]

    def _alternatives(self) -> _Part:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._refuse(f"more than {_MAX_DEPTH} parentheses in one another")
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        self._depth -= 1
        return _Any(tuple(parts)) if len(parts) > 1 else parts[0]

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._source) and not self._peek("|") and not self._peek(")"):
            part = self._atom()
            parts.append(part if isinstance(part, _Edge | _Ahead) else self._quantified(part))
        return _All(tuple(parts))

    def _atom(self) -> _Part:
        character = self._next()
        if character in "^$":
            return _Edge(character)
        if character == ".":
            return _One(frozenset("\n\r\u2028\u2029"), negated=True)
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character in "*+?{":
            self._at -= 1
            self._refuse(f"{character!r} with nothing to repeat")
        return _One(frozenset(character))

    def _group(self) -> _Part:
        ahead = next((one for one in ("?=", "?!") if self._take(one)), None)
        if ahead is None and not self._take("?:") and self._peek("?"):
            self._refuse("'(?' followed by none of ':', '=' and '!'")
        part = self._alternatives()
        if not self._take(")"):
            self._refuse("a missing ')'")
        return _Ahead(part, negated=ahead == "?!") if ahead else part

    def _escape(self) -> _Part:
        character = self._next()
        if character in "bB":
            return _Edge(character)
        if character in "123456789":
            self._at -= 1
            self._refuse("a back reference, which is not supported,")
        self._at -= 1
        characters, negated = self._escaped()
        return _One(characters, negated)

    def _escaped(self) -> tuple[frozenset[str], bool]:
        """What follows a backslash, in a class too: characters, and whether all but these are meant."""
        character = self._next()
        if character.lower() in _ESCAPED:
            return _ESCAPED[character.lower()], character.isupper()
        if character in "xu":
            digits = self._source[self._at : self._at + (2 if character == "x" else 4)]
            if len(digits) < (2 if character == "x" else 4) or not set(digits) <= set(string.hexdigits):
                self._refuse(f"no hexadecimal number after '\\{character}'")
            self._at += len(digits)
            return frozenset(chr(int(digits, 16))), False
        if character.isalnum() and character not in _CONTROLS:
            self._at -= 1
            self._refuse(f"'\\{character}', which means nothing,")
        return frozenset(_CONTROLS.get(character, character)), False

    def _class(self) -> _Part:
        negated = self._take("^")
        found: set[str] = set()
        while not self._take("]"):
            first = self._member()
            if self._peek("-") and not self._peek("-]") and len(first) == 1:
                self._at += 1
                last = self._member()
                if len(last) != 1 or min(last) < min(first):
                    self._refuse("a range that does not rise, ending")
                first = frozenset(map(chr, range(ord(min(first)), ord(min(last)) + 1)))
            found |= first
        return _One(frozenset(found), negated)

    def _member(self) -> frozenset[str]:
        if self._take("[:"):
            name = next((one for one in _POSIX if self._take(f"{one}:]")), None)
            return frozenset(_POSIX[name]) if name else self._refuse("an unknown '[:name:]'")
        character = self._next()
        if character != "\\":
            return frozenset(character)
        if self._take("b"):
            return frozenset("\b")
        characters, negated = self._escaped()
        return frozenset(map(chr, range(128))) - characters if negated else characters

    def _quantified(self, part: _Part) -> _Part:
        for sign, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._take(sign):
                self._take("?")  # lazy: the same names match
                return self._unrepeated(_Repeat(part, low, high))
        if self._take("{"):
            low = self._number()
            comma = self._take(",")
            high = (None if self._peek("}") else self._number()) if comma else low
            if not self._take("}") or (high is not None and high < low):
                self._refuse("no '{n}', '{n,}' or '{n,m}'")
            self._take("?")
            return self._unrepeated(_Repeat(part, low, high))
        return part

    def _unrepeated(self, part: _Repeat) -> _Repeat:
        if self._at < len(self._source) and self._source[self._at] in "*+?{":
            self._refuse("a repetition of a repetition")
        return part

    def _number(self) -> int:
        digits = ""
        while self._at < len(self._source) and self._source[self._at] in string.digits:
            digits += self._next()
        if not 0 < len(digits) <= 6:
            self._refuse("no number of repetitions")
        return int(digits)
