"""What the YAML files beside this one name: where the questions come from, and how an answer is scored.

The questions are the demo model's held-out prompts (`heldout.jsonl` of the checkpoint that ships with llamalite: 60 of
a kind, written by a script of this project, none of them in its training). A chat model is asked with `--chat`; a base
model needs `--few-shot N` to see what an answer looks like.
"""

from __future__ import annotations

import collections
import json
import re
import string
from collections.abc import Iterable
from typing import Any

from llamalite import store

_LAST_NUMBER = re.compile(r"-?\d+(?=\D*$)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def questions(kind: str, **_metadata: Any) -> dict[str, Any]:
    """Return ``{"test": dataset}`` with the columns `prompt`, `expected` and `any` (all right answers)."""
    from datasets import Dataset

    lines = (store.demo_checkpoint() / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    return {
        "test": Dataset.from_list(
            [
                {
                    "prompt": row["prompt"],
                    "expected": row["expected"],
                    "any": sorted({row["expected"], *row["rule"].get("any", [])}),
                }
                for row in rows
            ]
        )
    }


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space: SQuAD's rule (Rajpurkar et al., 2016)."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLE.sub(" ", kept).split())


def f1(found: Iterable[str], expected: Iterable[str]) -> float:
    """Return 2PR / (P + R) of two bags: 1.0 where both are empty, 0.0 where only one is or nothing is shared."""
    one, other = collections.Counter(found), collections.Counter(expected)
    if not one or not other:
        return float(one == other)
    shared = (one & other).total()
    return 2 * shared / (one.total() + other.total())


def entities(answer: str) -> list[str]:
    """Return the entities of ``Names: Ann, Bo. Places: Rome.`` as ``["names:ann", "names:bo", "places:rome"]``."""
    found = []
    for label, listed in re.findall(r"(names|places):([^:]*?)(?=\.?\s*(?:names:|places:|$))", answer.strip().lower()):
        items = (item.strip(" .\n") for item in listed.split(","))
        found += [f"{label}:{item}" for item in items if item not in ("", "none")]
    return found


def arithmetic(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """exact_match: the last number of the answer is the result."""
    found, expected = _LAST_NUMBER.search(results[0]), _LAST_NUMBER.search(doc["expected"])
    assert expected is not None  # the data hold one in every line
    return {"exact_match": float(found is not None and found[0] == expected[0])}


def answering(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """exact_match and f1 over normalized words."""
    found, expected = normalized(results[0]), normalized(doc["expected"])
    return {"exact_match": float(found == expected), "f1": f1(found.split(), expected.split())}


def named_entities(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """exact_match and f1 over the labelled entities."""
    found, expected = entities(results[0]), entities(doc["expected"])
    return {"exact_match": float(sorted(found) == sorted(expected)), "f1": f1(found, expected)}


def translation(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """exact_match with any right translation; bleu and chrf over the whole corpus, by sacrebleu."""
    answer = results[0].strip()
    pair = (doc["expected"], answer)
    return {"exact_match": float(answer in doc["any"]), "bleu": pair, "chrf": pair}


def summary(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """rouge1, rouge2 and rougeL (F-measures of google-research's rouge_score, with stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scores = RougeScorer(names, use_stemmer=True).score(doc["expected"], results[0])
    return {name: scores[name].fmeasure for name in names}
