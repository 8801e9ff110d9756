"""One question with its answer, and the small irregularities of real prompts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from random import Random

HELD_OUT_SHARE = 10  # one key in ten is held out


@dataclass(frozen=True)
class Example:
    """A prompt, the answer to learn, and the rule by which other answers are right.

    Each of `keys` names something that is held out as a whole (a sentence, a fact in one wording); an example is held
    out if one of its keys is, and never if it has none. `rule` is what `evaluate.score` needs beyond the exact answer:
    `{"words": [...]}` for stories, `{"any": [...]}` if several answers are right.
    """

    kind: str
    prompt: str
    answer: str
    keys: tuple[str, ...] = ()
    rule: dict[str, list[str]] = field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Whether a key falls into the tenth that training never sees."""
        return any(zlib.crc32(f"{self.kind}:{key}".encode()) % HELD_OUT_SHARE == 0 for key in self.keys)


def roughen(rng: Random, prompt: str) -> str:
    """Types the prompt as people do: sometimes in lower case, without its last mark, or after a greeting."""
    if rng.random() < 0.15:
        prompt = prompt.lower()
    if rng.random() < 0.18:
        prompt = prompt.rstrip(".?!")
    if rng.random() < 0.03:
        prompt = rng.choice(("Hey, ", "Hi, ", "So, ", "OK, ", "Hello! ", "Hi! ")) + prompt
    if rng.random() < 0.02:
        prompt = prompt.rstrip(".?!") + ", please"
    return prompt
