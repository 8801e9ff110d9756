"""Long runs over one model: nothing leaks, no answer is wrong, nothing waits forever.

    python tests/soak/soak.py                      # all of them at full length: about half an hour
    python tests/soak/soak.py --scale 0.01 chat    # a hundredth of one

A toy model answers greedily. An answer is correct if a separate computation gives each of its tokens a logit within
0.05 of the largest (the weights are F32, so only the order of sums differs). Memory is this process's resident memory;
it is compared between the end of the warm-up, a tenth of a run, and the end. A wait of two minutes ends the run with
every thread's stack.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import numpy as np  # noqa: E402 - found beside this folder
from faults import write_endless  # noqa: E402

from llamalite.chat import ChatSession  # noqa: E402
from llamalite.generation.completion import Completion  # noqa: E402
from llamalite.hardware.process_memory import resident_bytes  # noqa: E402
from llamalite.model import Model  # noqa: E402
from llamalite.native.context import NativeContext  # noqa: E402
from llamalite.native.context_options import ContextOptions  # noqa: E402

WITHIN = 0.05  # of the largest logit
GROWTH = 0.05  # of the memory held after the warm-up
HANG_S = 120


@dataclass
class Found:
    """The result of a run: how many answers it gave, how many were checked by a separate computation, memory."""

    n: int
    what: str
    n_checked: int
    warm_bytes: int
    end_bytes: int
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        return self.end_bytes / self.warm_bytes - 1

    def __str__(self) -> str:
        return (
            f"{self.n:,} {self.what} in {self.seconds:.0f} s, {self.n_checked:,} answers checked, "
            f"{self.warm_bytes / 2**20:.1f} MiB after the warm-up, {self.end_bytes / 2**20:.1f} at the end "
            f"({self.growth:+.1%})"
        )


class Judge:
    """A separate context that computes prompt and answer in one go, from scratch.

    Making it fills both contexts once: memory that is touched for the first time later would look like a leak.
    """

    def __init__(self, model: Model) -> None:
        self._context = NativeContext(model.native, ContextOptions(n_ctx=model.n_ctx, n_batch=model.n_ctx, n_threads=1))
        self._turn = threading.Lock()
        full = [5] * (model.n_ctx - 1)
        model.generate(full, max_tokens=1)
        self._context.decode(full, np.arange(len(full)), 0, np.ones(len(full), bool))
        self.n_checked = 0

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Raise ``AssertionError`` if a token of `answer` was not the likeliest."""
        if not answer:
            return
        ids = [*prompt, *answer[:-1]]
        want = np.zeros(len(ids), bool)
        want[len(prompt) - 1 :] = True
        with self._turn:
            self._context.clear()
            self._context.decode(ids, np.arange(len(ids)), 0, want)
            logits = self._context.logits()  # float32 [n_answer, n_vocab]
            short = logits.max(axis=1) - logits[np.arange(len(answer)), np.array(answer)]
            self.n_checked += 1
        assert float(short.max()) < WITHIN, f"token {int(short.argmax())} of {len(answer)} is {short.max():.3f} short"


def tokens_of(completion: Completion) -> list[int]:
    return list(completion.tokens)


class Memory:
    """Resident memory at the end of the warm-up, the first tenth of `n` steps, and now."""

    def __init__(self, n: int) -> None:
        self._warm_at = max(1, n // 10)
        self.warm_bytes = 0

    def step(self, done: int) -> None:
        if not self.warm_bytes and done >= self._warm_at:
            self.warm_bytes = resident_bytes()


def generation(path: Path, scale: float) -> Found:
    """10,000 tokens in answers of a hundred, in a context of 512 that drops its oldest turns all the while."""
    n = max(300, int(10_000 * scale))
    memory, done = Memory(n), 0
    with Model(path, n_ctx=512, n_threads=1) as model:
        judge, chat = Judge(model), ChatSession(model, system="tell me", overflow="drop", temperature=0)
        while done < n:
            answer = chat.ask("and then?", max_tokens=100)
            done += answer.totals.n_generated
            prompt = model.chat_tokens(chat.messages[:-1])
            assert len(prompt) == answer.totals.n_prompt, "what was asked is not the history"
            judge.check(prompt, tokens_of(answer))
            memory.step(done)
        assert chat.n_dropped > 0
        assert chat.messages[0]["role"] == "system"
        return Found(done, "tokens with turns dropped", judge.n_checked, memory.warm_bytes, resident_bytes())


def chat(path: Path, scale: float) -> Found:
    """1,000 turns of one conversation, a few tokens each."""
    n = max(30, int(1_000 * scale))
    rng, memory = random.Random(0), Memory(n)
    with Model(path, n_ctx=1024, n_threads=1) as model:
        judge, talk = Judge(model), ChatSession(model, system="tell me", overflow="drop", temperature=0)
        for turn in range(n):
            text = rng.choice(["once", "and then?", "the story", f"yes {turn}"])
            answer = talk.ask(text, max_tokens=rng.randint(1, 12))
            read = answer.totals.n_prompt - answer.totals.n_cached
            assert talk.n_dropped or read < 60, f"turn {turn} reads {read} tokens again"
            if turn % 10 == 0:
                judge.check(model.chat_tokens(talk.messages[:-1]), tokens_of(answer))
            memory.step(turn + 1)
        return Found(n, "turns of a chat", judge.n_checked, memory.warm_bytes, resident_bytes())


def loads(path: Path, scale: float) -> Found:
    """100 loads and closes; memory counts from the third on."""
    n, warm, texts = max(10, int(100 * scale)), 0, set()
    for number in range(n):
        with Model(path, n_ctx=512, n_threads=1) as model:
            texts.add(model.generate("once upon a time", max_tokens=8, temperature=0).text)
        if number == 2:
            warm = resident_bytes()
    assert len(texts) == 1
    return Found(n, "loads and closes", n, warm, resident_bytes())


def prompts(path: Path, scale: float) -> Found:
    """50,000 short prompts through `generate_batch`, 2,500 a call."""
    n = max(400, int(50_000 * scale))
    size = min(2_500, n // 4)
    rng, memory, done = random.Random(0), Memory(n), 0
    words = ["once", "upon", "the story", "tell me", "yes", "no", "time", "there was"]
    with Model(path, n_ctx=512, n_threads=1) as model:
        judge = Judge(model)
        while done < n:
            texts = [f"{rng.choice(words)} {rng.choice(words)} {rng.randrange(1000)}" for _ in range(size)]
            told: list[tuple[int, Completion]] = []
            answers = model.generate_batch(
                texts, max_tokens=3, temperature=0, parallel=16, on_completion=functools.partial(_keep, told)
            )
            assert sorted(number for number, _ in told) == list(range(size))
            for i in rng.sample(range(size), min(size, 25)):
                judge.check(model.prompt_tokens(texts[i]), tokens_of(answers[i]))
            done += size
            memory.step(done)
        return Found(done, "prompts in batches", judge.n_checked, memory.warm_bytes, resident_bytes())


def _keep(told: list[tuple[int, Completion]], number: int, completion: Completion) -> None:
    told.append((number, completion))


def threads(path: Path, scale: float) -> Found:
    """Eight threads on one model for ten minutes; two answers in five are cancelled or closed at a random moment."""
    lasts_s = max(4.0, 600 * scale)
    counts: dict[str, int] = {}
    failures: list[BaseException] = []
    with Model(path, n_ctx=512, n_threads=1) as model:
        judge, began = Judge(model), time.monotonic()

        def work(number: int) -> None:
            rng = random.Random(number)
            try:
                while time.monotonic() - began < lasts_s and not failures:
                    ending = one_answer(model, judge, rng)
                    counts[ending] = counts.get(ending, 0) + 1
            except BaseException as error:  # noqa: BLE001 - raised by the main thread
                failures.append(error)

        crew = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for one in crew:
            one.start()
        warm, n_before = 0, 0
        while any(one.is_alive() for one in crew):
            time.sleep(0.2)
            if not warm and time.monotonic() - began > lasts_s / 10:
                warm = resident_bytes()
            if (now := sum(counts.values())) != n_before:  # somebody got on: no deadlock
                n_before = now
                faulthandler.dump_traceback_later(HANG_S, exit=True)
        for one in crew:
            one.join()
        if failures:
            raise failures[0]
        assert model.generate("once", max_tokens=2).finish_reason == "length"
        told = ", ".join(f"{n} {ending}" for ending, n in sorted(counts.items()))
        return Found(sum(counts.values()), f"answers to 8 threads ({told})", judge.n_checked, warm, resident_bytes())


def one_answer(model: Model, judge: Judge, rng: random.Random) -> str:
    """Ask for one answer, perhaps end it early, check what came of it, and return how it ended."""
    text = f"{rng.choice(['once upon', 'tell me', 'the story was'])} {rng.randrange(50)} " * rng.choice([1, 1, 20])
    prompt, choice = model.prompt_tokens(text), rng.random()
    if choice < 0.05:
        answers = model.generate_batch([text, "once"], max_tokens=4, temperature=0, parallel=2)
        judge.check(prompt, tokens_of(answers[0]))
        return "in batches"
    stream = model.stream(prompt, max_tokens=rng.randint(1, 30), temperature=0)
    timer = threading.Timer(rng.uniform(0, 0.05), stream.cancel)
    if choice < 0.3:
        timer.start()
    tokens: list[int] = []
    ending = "closed"
    with stream:
        for piece in stream:
            if piece.token is not None:
                tokens.append(piece.token)
            if piece.finish_reason:
                ending = piece.finish_reason
            elif choice > 0.85 and len(tokens) > 3:
                break
    if choice < 0.3:
        timer.cancel()
        timer.join()
    if rng.random() < 0.2:
        judge.check(prompt, tokens)
    return ending


RUNS: dict[str, Callable[[Path, float], Found]] = {
    "generation": generation, "chat": chat, "loads": loads, "prompts": prompts, "threads": threads,
}  # fmt: skip


def run(name: str, scale: float) -> Found:
    """Do a run at `scale` of its length."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.gguf"
        write_endless(path, n_layer=2, n_embd=64)
        faulthandler.dump_traceback_later(HANG_S if name == "threads" else 7200, exit=True)
        began = time.monotonic()
        try:
            found = RUNS[name](path, scale)
        finally:
            faulthandler.cancel_dump_traceback_later()
        found.seconds = time.monotonic() - began
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all when none is named")
    parser.add_argument("--scale", type=float, default=1.0, help="the part of the full length to do")
    args = parser.parse_args()
    too_much = 0
    for name in args.runs or RUNS:
        found = run(name, args.scale)
        sys.stdout.write(f"{name:<11} {found}\n")
        sys.stdout.flush()
        too_much += found.growth > GROWTH
    if too_much:
        sys.stdout.write(f"{too_much} of them grew by more than {GROWTH:.0%}\n")
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
