"""Scores the answers to the held-out prompts, kind by kind.

    python evaluate.py                                  # the BF16 checkpoint in ../demo, with PyTorch
    python evaluate.py --gguf a.BF16.gguf a.Q4_K_M.gguf # GGUF files, through llamalite.Model

An answer is right if it equals the expected one, or one of `rule["any"]`. A story is right if it contains every
requested word, has three to six sentences, ends like a sentence, repeats no sentence, and stopped by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stories import sentences

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo"
MAX_TOKENS = 200
Answerer = Callable[[list[str]], list[str | None]]  # None: no end-of-turn within MAX_TOKENS


@dataclass(frozen=True)
class Question:
    """One line of `heldout.jsonl`."""

    kind: str
    prompt: str
    expected: str
    rule: dict[str, list[str]]


def read_questions(path: Path) -> list[Question]:
    """Returns the held-out prompts in file order."""
    return [Question(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def score(question: Question, answer: str | None) -> bool:
    """Returns whether the answer is right by the rule of its kind."""
    if answer is None:
        return False
    answer = answer.strip()
    if question.kind == "story":
        parts = sentences(answer)
        return (
            all(word in answer.lower() for word in question.rule["words"])
            and 3 <= len(parts) <= 6
            and len(set(parts)) == len(parts)
            and answer.endswith((".", "!", "?"))
        )
    return answer in {question.expected, *question.rule.get("any", [])}


def tally(questions: Iterable[Question], answers: Iterable[str | None]) -> dict[str, tuple[int, int]]:
    """Returns `{kind: (right, asked)}`."""
    counts: dict[str, tuple[int, int]] = {}
    for question, answer in zip(questions, answers, strict=True):
        right, asked = counts.get(question.kind, (0, 0))
        counts[question.kind] = (right + score(question, answer), asked + 1)
    return counts


def gguf_answerer(path: str) -> Answerer:
    """Answers greedily through llamalite's public API, in a new chat for each prompt."""

    def answer(prompts: list[str]) -> list[str | None]:
        import llamalite

        with llamalite.Model(path) as model:
            replies = [
                model.generate([{"role": "user", "content": prompt}], temperature=0, max_tokens=MAX_TOKENS)
                for prompt in prompts
            ]
        return [reply.text if reply.finish_reason == "stop" else None for reply in replies]

    return answer


def torch_answerer(bits: int | None) -> Answerer:
    """Answers with the network of `model.py` from `../demo`, its matrices rounded to `bits` (None: as stored)."""

    def answer(prompts: list[str]) -> list[str | None]:
        from generate import load_demo, reply
        from rounding import rounded

        model, tokenizer = load_demo(DEMO)
        with rounded(model, bits):
            return reply(model, tokenizer, prompts, MAX_TOKENS)

    return answer


def table(columns: dict[str, dict[str, tuple[int, int]]]) -> str:
    """Returns a Markdown table with a row for each kind and a column for each file."""
    kinds = list(next(iter(columns.values())))
    lines = ["| kind | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for kind in kinds:
        cells = [f"{right / asked:.0%}" for right, asked in (counts[kind] for counts in columns.values())]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and each wrong answer with `--wrong`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", nargs="+", default=[], metavar="FILE", help="GGUF files instead of the checkpoint")
    parser.add_argument("--bits", nargs="+", type=int, default=[], help="also round the checkpoint's matrices, as in 4")
    parser.add_argument("--prompts", type=Path, default=DEMO / "heldout.jsonl")
    parser.add_argument("--wrong", action="store_true", help="print each wrong answer")
    arguments = parser.parse_args()

    answerers: dict[str, Answerer] = {Path(path).stem: gguf_answerer(path) for path in arguments.gguf}
    if not answerers:
        answerers = {"BF16": torch_answerer(None)} | {f"{b} bits": torch_answerer(b) for b in arguments.bits}
    questions = read_questions(arguments.prompts)
    columns = {}
    for name, answerer in answerers.items():
        answers = answerer([question.prompt for question in questions])
        columns[name] = tally(questions, answers)
        for question, answer in zip(questions, answers, strict=True):
            if arguments.wrong and not score(question, answer):
                print(f"{name} {question.kind}: {question.prompt}\n  got      {answer}\n  expected {question.expected}")
    print(table(columns))


if __name__ == "__main__":
    main()
