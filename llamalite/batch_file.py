"""Prompts in a JSON Lines file, answers in another: a run that was stopped goes on where it was.

    {"prompt": "Once upon a time", "max_tokens": 32}                →  {"line": 1, "text": "...", ...}
    {"messages": [{"role": "user", "content": "hi"}], "id": 7}      →  {"line": 2, "id": 7, "text": "...", ...}

A line holds ``prompt`` or ``messages``, and may hold ``id`` and fields of `SamplingParams`. An answer carries its
line's number and a digest of the line, by which a second run knows what is done; answers stand in the order they were
finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llamalite.errors import LlamaliteError
from llamalite.generation.completion import Completion
from llamalite.model import Model
from llamalite.sampling import SamplingParams

OnProblem = Callable[[int, str], None]
_BEGINNING = b'{"line": 0, "digest": "'  # of every answer, but for the number


@dataclass(frozen=True)
class Line:
    """A usable line: its `number` from 1 on, its `digest`, and what it asks."""

    number: int
    digest: str
    prompt: list[int]
    params: SamplingParams
    id: Any = None


@dataclass(frozen=True)
class BatchReport:
    """How many lines were answered now, were answered by an earlier run, and could not be used."""

    n_answered: int
    n_before: int
    n_bad: int
    n_tokens: int


def answer_file(
    model: Model,
    source: Path,
    target: Path,
    *,
    parallel: int = 16,
    params: SamplingParams | None = None,
    raw: bool = False,
    on_problem: OnProblem | None = None,
    on_answer: Callable[[int, int], None] | None = None,
) -> BatchReport:
    """Answer every line of `source` that `target` does not answer yet, and append the answers, each flushed.

    A ``prompt`` is put to a model with a chat template as a user's message; with `raw` it is continued as it is.
    A bad line is given to `on_problem` with its number, and stops nothing. `on_answer` is called with (done, total).
    ``LlamaliteError`` when `target` is `source`, or holds anything but answers to it; then nothing is changed.
    """
    if target.exists():
        if not target.is_file():
            raise LlamaliteError(f"{target} is no regular file: answers are read again there, and appended")
        if target.samefile(source):
            raise LlamaliteError(f"{target} holds the prompts: give the answers another name")
    problems: list[int] = []

    def problem(number: int, why: str) -> None:
        problems.append(number)
        if on_problem is not None:
            on_problem(number, why)

    lines = _read(model, source, params or model.defaults, raw or not model.has_chat_template, problem)
    done, whole = _answered(target)
    for line in lines:
        if done.get(line.number, line.digest) != line.digest:
            raise LlamaliteError(
                f"{target} answers another file: its line {line.number} differs from that of {source}; "
                "give the answers another name, or remove it"
            )
    left = [line for line in lines if line.number not in done]
    n_tokens = n_done = 0
    with target.open("a", encoding="utf-8", newline="\n") as out:
        out.truncate(whole)

        def write(index: int, completion: Completion) -> None:
            nonlocal n_tokens, n_done
            if completion.finish_reason == "cancelled":
                return  # it is asked again by the next run
            _append(out, left[index], completion)
            n_tokens += completion.totals.n_generated
            n_done += 1
            if on_answer is not None:
                on_answer(len(lines) - len(left) + n_done, len(lines))

        model.generate_batch(
            [line.prompt for line in left], [line.params for line in left], parallel=parallel, on_completion=write
        )
    return BatchReport(n_done, len(lines) - len(left), len(problems), n_tokens)


def _append(out: IO[str], line: Line, completion: Completion) -> None:
    answer = {"line": line.number, "digest": line.digest} | ({"id": line.id} if line.id is not None else {})
    answer |= {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "n_prompt": completion.totals.n_prompt,
        "n_generated": completion.totals.n_generated,
        "seed": completion.totals.seed,
    }
    if completion.logprobs is not None:
        answer |= {"tokens": list(completion.tokens), "logprobs": list(completion.logprobs)}
    out.write(json.dumps(answer, ensure_ascii=False) + "\n")
    out.flush()


def _read(model: Model, source: Path, defaults: SamplingParams, as_text: bool, problem: OnProblem) -> list[Line]:
    lines = []
    for number, line in enumerate(source.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            lines.append(_line(model, number, line, defaults, as_text))
        except (ValueError, TypeError, LlamaliteError) as error:
            problem(number, " ".join(str(error).split("\n")))
        except (ArithmeticError, AttributeError, LookupError, RecursionError) as error:
            problem(number, f"it cannot be used ({type(error).__name__}: {error})")
    return lines


def _line(model: Model, number: int, raw: bytes, defaults: SamplingParams, as_text: bool) -> Line:
    try:
        asked = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(asked, dict) or ("prompt" in asked) == ("messages" in asked):
        raise ValueError('a line is an object with either "prompt" or "messages"')
    identity: Any = asked.pop("id", None)
    try:
        kept = json.dumps(identity, ensure_ascii=False).encode()
        if kept.count(b"[") + kept.count(b"{") > 100:  # it is written, and read again, from deeper down than here
            raise ValueError('"id" holds more than 100 brackets')
    except UnicodeEncodeError:
        raise ValueError('"id" holds half a character (a lone surrogate)') from None
    prompt: Any = asked.pop("prompt", None)
    messages: Any = asked.pop("messages", None)
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f'"prompt" is a text, found {prompt!r:.60}')
    if messages is not None and not (isinstance(messages, list) and all(isinstance(m, dict) for m in messages)):
        raise ValueError('"messages" is a list of objects with "role" and "content"')
    for name, kind, told in (("logit_bias", dict, "an object"), ("grammar", str | None, "a text")):
        if name in asked and not isinstance(asked[name], kind):
            raise ValueError(f'"{name}" is {told}, found {asked[name]!r:.60}')
    if "logit_bias" in asked:  # JSON's keys are texts
        asked["logit_bias"] = {int(token): bias for token, bias in asked["logit_bias"].items()}
    params = defaults.replace(**asked)
    if prompt is not None:
        messages = prompt if as_text else [{"role": "user", "content": prompt}]
    ids = model.prompt_tokens(messages)
    model.validate(ids, params)
    return Line(number, hashlib.sha256(raw.strip()).hexdigest()[:16], ids, params, identity)


def _answered(target: Path) -> tuple[dict[int, str], int]:
    """Return number → digest of the lines answered in `target`, and how many bytes they are.

    After them may come half an answer, of a run that was killed; anything else is refused.
    """
    raw = target.read_bytes() if target.exists() else b""
    whole = raw.rfind(b"\n") + 1
    lines = raw[:whole].splitlines()
    done = dict(_answer(target, number, line) for number, line in enumerate(lines, 1))
    half = re.sub(rb'^\{"line": \d+', b'{"line": 0', raw[whole:])
    if not (half.startswith(_BEGINNING) or _BEGINNING.startswith(half)):
        raise _no_answer(target, len(lines) + 1)
    return done, whole


def _answer(target: Path, number: int, line: bytes) -> tuple[int, str]:
    try:
        answer = json.loads(line)
        return int(answer["line"]), str(answer["digest"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise _no_answer(target, number) from None


def _no_answer(target: Path, number: int) -> LlamaliteError:
    return LlamaliteError(f"{target}, line {number}: this is no answer of llamalite batch")
