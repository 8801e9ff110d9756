"""One model for 32 threads and 32 tasks at once, in a context that is full all the time.

Each of them asks, again and again, for something drawn at random: an answer with a priority, perhaps cancelled or
dropped midway; a turn of a chat that drops its oldest turns; a small batch; a session that is saved, and loaded later;
a prompt that does not fit. Greedy answers are checked by a `Judge`; what else is promised is checked on the spot.
"""

from __future__ import annotations

import asyncio
import collections
import faulthandler
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from judge import HANG_S, Found, Judge

from llamalite.chat import ChatSession
from llamalite.errors import ContextOverflowError, QueueFullError
from llamalite.generation.completion import Completion, Piece
from llamalite.hardware.process_memory import resident_bytes
from llamalite.model import Model
from llamalite.sampling import SamplingParams

N_CLIENTS = 32  # threads, and as many tasks
N_CTX, N_PARALLEL, MAX_QUEUE = 512, 16, 40
PRIORITIES = (-1, 0, 0, 0, 0, 2)
BEGINNINGS = ("tell me the story ", "once upon a time there was ", "yes ", "the " * 30, "and then there was no " * 6)
WORDS = re.compile("[a-z ]*")
GREEDY = SamplingParams(temperature=0)


@dataclass
class Asked:
    """One request: its prompt and parameters, and whether its stream is cancelled or dropped midway."""

    prompt: list[int]
    params: SamplingParams
    cancel_after_s: float | None = None
    drop_after: int | None = None
    pieces: list[Piece] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces if piece.token is not None]


@dataclass
class Shared:
    """What all clients use, and what they count."""

    model: Model
    judge: Judge
    folder: Path
    until: float
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    counting: threading.Lock = field(default_factory=threading.Lock)
    was_cancelled: bool = False  # everything, by one of the clients
    longest_s: float = 0.0
    queued_s: dict[int, list[float]] = field(default_factory=lambda: {priority: [0.0, 0.0] for priority in PRIORITIES})
    failures: list[BaseException] = field(default_factory=list)
    reproducible: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until and not self.failures

    @property
    def n_done(self) -> int:
        with self.counting:
            return sum(self.counts.values())

    def count(self, ending: str, took_s: float) -> None:
        with self.counting:
            self.counts[ending] += 1
            self.longest_s = max(self.longest_s, took_s)

    def count_wait(self, priority: int, queued_s: float) -> None:
        with self.counting:
            self.queued_s[priority][0] += queued_s
            self.queued_s[priority][1] += 1

    def mean_wait_s(self, priority: int) -> float:
        total, n = self.queued_s[priority]
        return total / max(n, 1)


class Client:
    """One thread or task: draws what to ask for, and judges what came."""

    def __init__(self, shared: Shared, number: int) -> None:
        self.shared, self.model, self.rng = shared, shared.model, random.Random(number)
        self.session = shared.folder / f"{number}.session"
        self.saved: list[int] | None = None  # the tokens of the saved conversation
        self.chat = ChatSession(self.model, system="tell me", overflow="drop", params=GREEDY)

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt(self) -> list[int]:
        return self.model.tokenize(self.rng.choice(BEGINNINGS) + str(self.rng.randrange(60)))

    def asked(self) -> Asked:
        rng, params = self.rng, GREEDY.replace(max_tokens=self.rng.randint(1, 60))
        params = params.replace(priority=rng.choice(PRIORITIES))
        if rng.random() < 0.02:
            params = params.replace(max_tokens=None)  # goes on until the context is full
        one = Asked(self.prompt(), params)
        ending = rng.random()
        if ending < 0.15:
            one.cancel_after_s = rng.choice([0.0, rng.uniform(0, 0.2)])
        elif ending < 0.3:
            one.drop_after = rng.choice([0, 1, rng.randint(1, 30)])
        return one

    def special(self) -> Asked:
        """Return a request whose answer is not the greedy one: sampled, by a grammar, with a token forbidden."""
        kind, prompt = self.rng.randrange(4), self.prompt()
        if kind == 0:
            seed = self.rng.randrange(3)
            return Asked(self.model.tokenize("once"), SamplingParams(max_tokens=6, seed=seed, reproducible=True))
        if kind == 1:
            return Asked(prompt, GREEDY.replace(max_tokens=8, grammar="root ::= [a-z ]*"))
        if kind == 2:
            return Asked(prompt, SamplingParams(max_tokens=8, logprobs=3, stop=["e"]))
        return Asked(prompt, SamplingParams(max_tokens=8, logit_bias={self.rng.randrange(3, 300): -float("inf")}))

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────

    def judged(self, one: Asked) -> str:
        """Check what came of a request whose stream is over, and return how it ended."""
        tokens, params = one.tokens, one.params
        last = one.pieces[-1] if one.pieces else None
        ending = last.finish_reason if last is not None else None
        if ending is not None:
            assert last is not None
            totals = last.totals
            assert totals is not None
            assert totals.n_prompt == len(one.prompt)
            assert 0 <= totals.n_cached < totals.n_prompt, totals
            assert totals.n_generated == len(tokens), (totals, len(tokens))
            if ending == "length":
                self.shared.count_wait(params.priority, totals.queued_s)
        if ending == "length":
            assert len(tokens) == params.max_tokens
        if ending == "context":
            assert len(one.prompt) + len(tokens) >= N_CTX, (len(one.prompt), len(tokens))
        if ending == "cancelled":
            assert one.cancel_after_s is not None or self.shared.was_cancelled
        if params.reproducible and ending in ("length", "stop"):
            seed = params.seed or 0
            assert self.shared.reproducible.setdefault(seed, tuple(tokens)) == tuple(tokens), seed
        text = "".join(piece.text for piece in one.pieces)
        if params.grammar is not None:
            assert WORDS.fullmatch(text), text
        if params.stops:
            assert not any(stop in text for stop in params.stops), text
        if params.logprobs is not None:
            assert all(len(piece.top_logprobs) == params.logprobs for piece in one.pieces if piece.token is not None)
        assert not set(tokens) & set(params.logit_bias)
        if params == GREEDY.replace(max_tokens=params.max_tokens, priority=params.priority) and self.rng.random() < 0.2:
            self.shared.judge.check(one.prompt, tokens)
        return ending or "dropped"

    def judge_completion(self, prompt: list[int], completion: Completion) -> str:
        self.shared.judge.check(prompt, completion.tokens)
        return completion.finish_reason

    # ── what needs no stream ────────────────────────────────────────────────────────────────────────────────────

    def overflow(self) -> str:
        """Ask for more than the context holds, in one of two ways."""
        too_long = self.prompt() + [5] * N_CTX
        prompt, n = self.rng.choice([(too_long, 1), (self.prompt(), N_CTX)])
        try:
            self.model.stream(prompt, GREEDY, max_tokens=n)
        except ContextOverflowError:
            return "too long"
        raise AssertionError("a prompt that cannot fit was accepted")

    def batch(self) -> str:
        prompts = [self.prompt() for _ in range(self.rng.randint(1, 4))]
        answers = self.model.generate_batch(prompts, GREEDY, max_tokens=self.rng.randint(1, 8))
        for prompt, answer in zip(prompts, answers, strict=True):
            self.judge_completion(prompt, answer)
        return "batch"

    def talk(self) -> str:
        """Ask for the next turn of this client's chat; its oldest turns are dropped as it grows."""
        answer = self.chat.ask(self.rng.choice(["once", "and then?", "the story"]), max_tokens=self.rng.randint(1, 12))
        prompt = self.model.chat_tokens(self.chat.messages[:-1])
        assert len(prompt) == answer.totals.n_prompt, "what was asked is not the history"
        self.judge_completion(prompt, answer)
        return "turn of a chat"

    def save_or_load(self) -> str:
        if self.saved is None:
            prompt = self.prompt()
            answer = self.model.generate(prompt, GREEDY, max_tokens=8)
            self.saved = [*prompt, *answer.tokens]
            self.model.save_session(self.session, tokens=self.saved, extra={"tokens": self.saved})
            return "session saved"
        ids, self.saved = self.saved, None
        try:
            assert self.model.load_session(self.session) == {"tokens": ids}
        except ContextOverflowError:
            return "session without room"
        self.judge_completion(ids, self.model.generate(ids, GREEDY, max_tokens=4))
        return "session loaded"

    def without_stream(self) -> str:
        choice = self.rng.random()
        if choice < 0.01:
            self.shared.was_cancelled = True
            self.model.cancel()
            return "cancel of everything"
        if choice < 0.02:
            self.model.clear()
            return "clear"
        return self.rng.choice([self.overflow, self.batch, self.talk, self.save_or_load])()

    # ── a thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, one: Asked) -> None:
        stream = self.model.stream(one.prompt, one.params)
        timer = threading.Timer(one.cancel_after_s or 0.0, stream.cancel)
        if one.cancel_after_s is not None:
            timer.start()
        try:
            for piece in stream:
                one.pieces.append(piece)
                if one.drop_after is not None and len(one.pieces) > one.drop_after:
                    break  # and the stream is dropped, not closed
        finally:
            if one.cancel_after_s is not None:
                timer.cancel()
                timer.join()

    def step(self) -> str:
        choice = self.rng.random()
        if choice < 0.25:
            return self.without_stream()
        one = self.special() if choice < 0.35 else self.asked()
        self.stream(one)
        return self.judged(one)

    def work(self) -> None:
        """What a thread does until the end."""
        while self.shared.goes_on:
            began = time.monotonic()
            try:
                ending = self.step()
            except QueueFullError:
                ending = "refused"
                time.sleep(self.rng.uniform(0, 0.2))
            except BaseException as error:  # noqa: BLE001 - raised by the main thread
                self.shared.failures.append(error)
                return
            self.shared.count(ending, time.monotonic() - began)

    # ── a task ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def astream(self, one: Asked) -> None:
        """Stream an answer; to cancel it is to cancel the task, to drop it is to leave the iterator where it is."""
        task = asyncio.create_task(self._collect(one))
        if one.cancel_after_s is None:
            await task
            return
        await asyncio.wait([task], timeout=one.cancel_after_s)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _collect(self, one: Asked) -> None:
        async for piece in self.model.astream(one.prompt, one.params):
            one.pieces.append(piece)
            if one.drop_after is not None and len(one.pieces) > one.drop_after:
                break

    async def awork(self) -> None:
        """What a task does until the end."""
        while self.shared.goes_on:
            began = time.monotonic()
            one = self.special() if self.rng.random() < 0.1 else self.asked()
            try:
                await self.astream(one)
                ending = self.judged(one)
            except QueueFullError:
                ending = "refused"
                await asyncio.sleep(self.rng.uniform(0, 0.2))
            except BaseException as error:
                self.shared.failures.append(error)
                raise
            self.shared.count(f"{ending} in a task", time.monotonic() - began)


async def all_tasks(shared: Shared) -> None:
    await asyncio.gather(*(Client(shared, N_CLIENTS + number).awork() for number in range(N_CLIENTS)))


def serving(path: Path, scale: float) -> Found:
    """Ten minutes of everything at once."""
    lasts_s = max(4.0, 600 * scale)
    with Model(path, n_ctx=N_CTX, n_threads=1, n_parallel=N_PARALLEL, max_queue=MAX_QUEUE) as model:
        began = time.monotonic()
        shared = Shared(model, Judge(model), path.parent, began + lasts_s)
        crew = [threading.Thread(target=Client(shared, number).work) for number in range(N_CLIENTS)]
        crew.append(threading.Thread(target=run_tasks, args=(shared,)))
        for one in crew:
            one.start()
        warm, n_before = 0, 0
        while any(one.is_alive() for one in crew):
            time.sleep(0.2)
            if not warm and time.monotonic() - began > lasts_s / 10:
                warm = resident_bytes()
            if (now := shared.n_done) != n_before:  # somebody got on: no deadlock
                n_before = now
                faulthandler.dump_traceback_later(HANG_S, exit=True)
        for one in crew:
            one.join()
        if shared.failures:
            raise shared.failures[0]
        check_end(shared)
        told = ", ".join(f"{n} {ending}" for ending, n in sorted(shared.counts.items()))
        what = (
            f"requests of {N_CLIENTS} threads and {N_CLIENTS} tasks ({told}; the longest took {shared.longest_s:.1f} s)"
        )
        return Found(shared.n_done, what, shared.judge.n_checked, warm, resident_bytes())


def run_tasks(shared: Shared) -> None:
    try:
        asyncio.run(all_tasks(shared))
    except BaseException as error:  # noqa: BLE001 - raised by the main thread
        shared.failures.append(error)


def check_end(shared: Shared) -> None:
    """Raise ``AssertionError`` if something is still running, if cells are not free, or nobody ever had to wait."""
    model = shared.model
    until = time.monotonic() + 10
    while model.is_busy and time.monotonic() < until:  # what was dropped or cancelled last ends with its step
        time.sleep(0.01)
    assert not model.is_busy, (model.n_running, model.n_waiting)
    assert model.n_held <= N_CTX
    model.clear()
    assert model.n_held == 0
    first, last = shared.mean_wait_s(max(PRIORITIES)), shared.mean_wait_s(min(PRIORITIES))
    assert first < last, (first, last)
    assert shared.longest_s < HANG_S
    prompt = model.tokenize("once upon a time")
    shared.judge.check(prompt, model.generate(prompt, GREEDY, max_tokens=20).tokens)
