"""Writes the corpus: training conversations, plain texts, and the held-out part.

    python corpus.py        # → work/train.jsonl, work/calibration.txt, ../demo/heldout.jsonl, ../demo/heldout.txt

`train.jsonl` has one document per line: `{"turns": [[role, text], ...]}` for a conversation of one to four questions,
`{"text": ...}` for plain text. Everything is drawn from one seeded generator, so that the same Python version writes
the same bytes. An example is never written to `train.jsonl` if its key falls into the held-out tenth
(`Example.held_out`), or if its prompt is in `heldout.jsonl`, apart from case and marks at its ends. `calibration.txt`
is plain text from the training side, for an importance matrix.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import smalltalk
import stories
import tasks
from example import Example
from tables import CAPITALS, NAMES

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
DEMO = HERE.parent / "demo"

KINDS: dict[str, tuple[Callable[[Random], Example], float]] = {
    "story": (stories.sample, 9.0),
    "smalltalk": (smalltalk.sample, 20.0),
    "arithmetic": (tasks.arithmetic, 26.0),
    "facts": (tasks.facts, 10.0),
    "sentiment": (tasks.sentiment, 4.0),
    "names": (tasks.names_and_places, 7.0),
    "shorten": (tasks.shorten, 4.0),
    "reading": (tasks.reading, 12.0),
    "phrases": (tasks.phrases, 22.0),
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the llamalite demo model.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one sentence.",
)
COPYING = ("names", "shorten", "reading")
EARLY_DOCUMENTS = 10_200  # at the start: half of their questions are about copying words
N_HELD_OUT = 60  # prompts of each kind in heldout.jsonl
HELD_OUT_TEXT_BYTES = 60_000
CALIBRATION_BYTES = 120_000


def draw(rng: Random, held_out: bool, kind: str | None = None) -> Example:
    """Returns an example of `kind` (by default of a kind drawn by weight) from one side of the split."""
    weights = [weight for _, weight in KINDS.values()]
    name = kind or rng.choices(list(KINDS), weights)[0]
    while True:
        example = KINDS[name][0](rng)
        if example.held_out == held_out:
            return example


def follow_up(rng: Random) -> list[list[str]]:
    """Returns two questions with answers, the second of which refers to the first."""
    if rng.random() < 0.6:
        question = "What is the capital of {c}?"
        trained = [c for c in CAPITALS if not Example("facts", "", "", (f"{c}:{question}",)).held_out]
        first, second = rng.sample(trained, 2)
        again = rng.choice(("And of {c}?", "And {c}?", "What about {c}?", "and {c}", "And the capital of {c}?"))
        return [
            ["user", question.format(c=first)],
            ["assistant", f"The capital of {first} is {CAPITALS[first]}."],
            ["user", again.format(c=second)],
            ["assistant", f"The capital of {second} is {CAPITALS[second]}."],
        ]
    name = stories.made_up(rng).capitalize() if rng.random() < 0.5 else rng.choice(NAMES)
    question = rng.choice(("What is my name?", "Do you know my name?", "Who am I?", "what's my name"))
    return [
        ["user", rng.choice(smalltalk.NAME_WORDINGS).format(n=name)],
        ["assistant", f"Hello, {name}! What can I do for you?"],
        ["user", question],
        ["assistant", f"Your name is {name}."],
    ]


def plain(rng: Random, held_out: bool) -> str:
    """Returns a story with its title, or a question with its answer, as plain text."""
    if rng.random() < 0.5:
        while True:
            example = draw(rng, held_out, "story")
            if len(example.rule["words"]) == 2:
                return f"{stories.title(example.rule['words'])}\n\n{example.answer}\n"
    kinds = ("facts", "reading", "shorten", "names", "sentiment", "phrases", "arithmetic")
    example = draw(rng, held_out, rng.choice(kinds))
    return f"Question: {example.prompt}\nAnswer: {example.answer}\n"


def bare(prompt: str) -> str:
    """Returns the prompt in lower case, without marks at its ends; the two sides of the split share none."""
    return prompt.lower().strip(" .?!")


def training_example(rng: Random, early: bool) -> Example:
    """Returns an example from the training side; early ones are often about copying, which other kinds build on."""
    if early and rng.random() < 0.5:
        return draw(rng, False, rng.choice(COPYING)) if rng.random() < 0.4 else tasks.repeat(rng, rng.randint(3, 12))
    return tasks.repeat(rng, rng.randint(1, 6)) if rng.random() < 0.01 else draw(rng, False)


def document(rng: Random, early: bool) -> dict[str, Any]:
    """Returns one line of `train.jsonl`."""
    if rng.random() < 0.05:
        return {"text": "\n".join(plain(rng, False) for _ in range(rng.randint(1, 3)))}
    turns: list[list[str]] = []
    if rng.random() < 0.08:
        turns.append(["system", rng.choice(SYSTEM_PROMPTS)])
    for _ in range(rng.choice((1, 2, 3, 4))):
        if rng.random() < 0.025:
            turns += follow_up(rng)
            continue
        example = training_example(rng, early)
        turns += [["user", example.prompt], ["assistant", example.answer]]
    return {"turns": turns}


def held_out_prompts(rng: Random) -> list[Example]:
    """Returns `N_HELD_OUT` different prompts of each kind, all from the held-out side."""
    examples: list[Example] = []
    for kind in KINDS:
        seen: set[str] = set()
        while len(seen) < N_HELD_OUT:
            example = draw(rng, True, kind)
            if example.prompt not in seen:
                seen.add(example.prompt)
                examples.append(example)
    return examples


def write_text(path: Path, rng: Random, held_out: bool, n_bytes: int) -> None:
    """Writes plain texts from one side of the split until there are `n_bytes`."""
    text = ""
    while len(text.encode()) < n_bytes:
        text += plain(rng, held_out) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the four files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=110_000)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    DEMO.mkdir(exist_ok=True)

    rng = Random(arguments.seed + 1)
    held_out = held_out_prompts(rng)
    with (DEMO / "heldout.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for example in held_out:
            row = {"kind": example.kind, "prompt": example.prompt, "expected": example.answer, "rule": example.rule}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(DEMO / "heldout.txt", rng, held_out=True, n_bytes=HELD_OUT_TEXT_BYTES)
    write_text(WORK / "calibration.txt", Random(arguments.seed + 2), held_out=False, n_bytes=CALIBRATION_BYTES)

    rng = Random(arguments.seed)
    forbidden = {bare(example.prompt) for example in held_out}
    n_written = 0
    with (WORK / "train.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        while n_written < arguments.documents:
            candidate = document(rng, early=n_written < EARLY_DOCUMENTS)
            if not any(role == "user" and bare(text) in forbidden for role, text in candidate.get("turns", [])):
                file.write(json.dumps(candidate, ensure_ascii=False) + "\n")
                n_written += 1


if __name__ == "__main__":
    main()
