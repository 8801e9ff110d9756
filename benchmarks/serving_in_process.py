"""Many conversations on one `Model` against llama-server, in turns, and what they gain over one after another.

    python benchmarks/serving_in_process.py MODEL.gguf --llama-cpp FOLDER [--pairs 3] [--only one,many,long,chats]

- one: what a lone stream must not lose: tg128 and pp512 against ``llama-bench``, the first token and the peak memory of
  a process against ``llama-completion``.
- many: 8 and 16 simultaneous `Model.astream`s, prompts of 30 tokens, 64 new tokens each, against llama-server with as
  many slots, against one after another, and against `Model.generate_batch` (``--before FOLDER``: that of another
  checkout); then 16 that come at random moments within two seconds, against 16 at once.
- long: while a prompt of 6,000 tokens is read, the longest pause of seven running streams, and the first tokens of
  short requests; then the same of llama-server.
- chats: 8 conversations of 6 turns that begin with one system prompt of 1,000 tokens: the tokens that are read in all,
  against those that are new.

Prompts are pieces of a text, new ones in every round, as token ids on both sides; answers are greedy and cannot end.
Where figures are compared with a promise, the other side is the promised number.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import generation
import side_by_side as bench
import startup
from answering import Answer, InProcess, Prompts, Side, ends
from llama_server import LlamaServer
from side_by_side import ROOT, Figure, Peers

from llamalite.model import Model

ALL = ("one", "many", "long", "chats")
FIRST_S, PAUSE_S, SHORT_FIRST_S, JOIN_S = 0.3, 0.25, 1.0, 2.0
RUNNING = 7  # streams beside a long prompt
ENDLESS = 1_500  # tokens of each of them, more than come while the prompt is read
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `quick` is for trying the benchmark itself."""

    streams: tuple[int, ...] = (8, 16)
    n_prompt: int = 30
    n_new: int = 64
    n_long: int = 6_000
    n_chats: int = 8
    n_turns: int = 6
    n_system: int = 1_000

    @classmethod
    def quick(cls) -> Sizes:
        return cls(streams=(4,), n_new=16, n_long=1_000, n_chats=3, n_turns=3, n_system=200)


@dataclass(frozen=True)
class Setting:
    """What every measurement needs."""

    path: Path
    peers: Peers
    pairs: int
    n_threads: int
    sizes: Sizes
    before: Path = ROOT  # the checkout whose generate_batch runs

    def model(self, n_ctx: int) -> Model:
        return Model(self.path, n_ctx=n_ctx, n_threads=self.n_threads, n_parallel=16)

    def server(self, model: Model, n_ctx: int, n_slots: int, *, unified: bool = False) -> LlamaServer:
        server = LlamaServer(
            self.peers.program("llama-server"),
            self.path,
            n_ctx=n_ctx,
            n_slots=n_slots,
            n_threads=self.n_threads,
            unified=unified,
        )
        server.forbid(ends(model))
        return server


def promised(name: str, promise: str, values: Sequence[float], bounds: Sequence[float] | float) -> Figure:
    """Return the figure of a time that must not be longer than its bound."""
    bounds = [bounds] * len(values) if isinstance(bounds, float) else list(bounds)
    return Figure(name, promise, "s", list(values), bounds, 1.0)


def in_rounds(n: int, sides: dict[str, Callable[[int], Result]]) -> dict[str, list[Result]]:
    """Call each side with the number of the round, `n` times, in turn: every other round in the opposite order."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(n):
        for name in sorted(sides, key=list(sides).index, reverse=bool(number % 2)):
            results[name].append(sides[name](number))
            print(f"  round {number + 1} of {n}, {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return results


# ── one stream ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_one(on: Setting) -> Iterator[Figure]:
    for figure in generation.measure(on.path, on.peers, on.pairs, n_threads=on.n_threads, only=("tg", "pp", "rss")):
        yield figure if figure.unit == "MiB" else dataclasses.replace(figure, target=0.99)
    yield startup.first_token(on.path, on.peers, on.pairs, on.n_threads)


# ── many streams ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Load:
    """What many answers took in all, and the wait for the first token: the median, and the 95th percentile."""

    tok_per_s: float
    first_s: float
    late_first_s: float

    def __str__(self) -> str:
        return f"{self.tok_per_s:.1f} tok/s, first token after {self.first_s:.3f} s"

    @classmethod
    def of(cls, answers: Sequence[Answer], n_new: int) -> Load:
        took = max(answer.ended for answer in answers) - min(answer.began for answer in answers)
        firsts = [answer.first_s for answer in answers]
        return cls(len(answers) * n_new / took, statistics.median(firsts), late(firsts))


def late(seconds: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


async def at(side: Side, moments: Sequence[float], prompts: Sequence[Sequence[int]], n_new: int) -> Load:
    """Ask for all answers, each at its moment, in seconds from now."""

    async def one(moment: float, prompt: Sequence[int]) -> Answer:
        await asyncio.sleep(moment)
        return await side.answer(prompt, n_new)

    return Load.of(await asyncio.gather(*map(one, moments, prompts)), n_new)


async def one_by_one(side: Side, prompts: Sequence[Sequence[int]], n_new: int) -> Load:
    began = time.perf_counter()
    answers = [await side.answer(prompt, n_new) for prompt in prompts]
    for answer in answers:
        answer.began = began  # all of them wait from the beginning
    return Load.of(answers, n_new)


_BATCH = """
import json, sys, time
from pathlib import Path
from llamalite.model import Model
path, n_threads, n_new, prompts = json.loads(Path(sys.argv[1]).read_text())
with Model(path, n_ctx=4096, n_threads=n_threads) as model:
    ends = {token: -float("inf") for token in range(model.native.n_vocab) if model.native.is_eog(token)}
    model.generate_batch(prompts, max_tokens=2, temperature=0, logit_bias=ends)
    model.clear()
    began = time.perf_counter()
    answers = model.generate_batch(prompts, max_tokens=n_new, temperature=0, logit_bias=ends)
    print(sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - began))
"""


def batch(on: Setting, prompts: Sequence[Sequence[int]]) -> Load:
    """`Model.generate_batch` in a process of its own, which may run another version of llamalite."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps([str(on.path), on.n_threads, on.sizes.n_new, prompts]))
        ran = bench.process([sys.executable, "-c", _BATCH, asked], {"PYTHONPATH": str(on.before)})
    return Load(float(ran.output.split()[-1]), float("nan"), float("nan"))


def measure_many(on: Setting) -> Iterator[Figure]:
    with on.model(4096) as model:
        for n_streams in on.sizes.streams:
            with on.server(model, 4096, n_streams) as server:
                yield from measure_streams(on, model, server, n_streams, joining=n_streams == on.sizes.streams[-1])


def measure_streams(
    on: Setting, model: Model, server: LlamaServer, n_streams: int, *, joining: bool
) -> Iterator[Figure]:
    """Yield the figures of so many streams; with `joining`, of those that come at random moments too."""
    ours, n_new = InProcess(model), on.sizes.n_new

    def prompts(number: int) -> list[list[int]]:
        return Prompts(model, 1000 * n_streams + number).pieces(n_streams, on.sizes.n_prompt)

    def here(load: Coroutine[Any, Any, Load]) -> Load:
        model.clear()
        return asyncio.run(load)

    def there(load: Coroutine[Any, Any, Load]) -> Load:
        with server.awake():
            return asyncio.run(load)

    def joined(number: int) -> Load:
        return here(at(ours, Prompts(model, number).moments(n_streams, JOIN_S), prompts(number), n_new))

    at_once = [0.0] * n_streams
    there(at(server, at_once, prompts(-1), 8))
    here(at(ours, at_once, prompts(-1), 8))
    loads = in_rounds(
        on.pairs,
        {
            "at once": lambda number: here(at(ours, at_once, prompts(number), n_new)),
            "llama-server": lambda number: there(at(server, at_once, prompts(number), n_new)),
            "one after another": lambda number: here(one_by_one(ours, prompts(number), n_new)),
            "generate_batch": lambda number: batch(on, prompts(number)),
            **({"joining": joined} if joining else {}),
        },
    )
    speeds = {name: [load.tok_per_s for load in of_one] for name, of_one in loads.items()}
    firsts = {name: [load.first_s for load in of_one] for name, of_one in loads.items()}
    name = f"{n_streams} streams at once, {n_new} tokens each"
    earlier = "generate_batch" if on.before == ROOT else f"generate_batch of {on.before.name}"
    for peer, side, target in (
        (f"llama-server -np {n_streams}", "llama-server", 1.0),
        (earlier, "generate_batch", 1.0),
        ("one after another", "one after another", 2.5),
    ):
        yield Figure(name, peer, "tok/s", speeds["at once"], speeds[side], target)
    name = f"{n_streams} streams at once, first token in the median"
    yield promised(name, f"the promised {FIRST_S:g} s", firsts["at once"], FIRST_S)
    yield Figure(name, "llama-server", "s", firsts["at once"], firsts["llama-server"])
    yield Figure(name, "one after another", "s", firsts["at once"], firsts["one after another"])
    if joining:
        name = f"{n_streams} streams within {JOIN_S:g} s"
        yield Figure(name, f"{n_streams} at once", "tok/s", speeds["joining"], speeds["at once"], 0.9)
        yield promised(f"{name}, first token in the median", f"the promised {FIRST_S:g} s", firsts["joining"], FIRST_S)


# ── beside a long prompt ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Beside:
    """How others fare while a long prompt is read, in seconds."""

    pause_s: float
    step_s: float
    short_first_s: float
    long_first_s: float

    def __str__(self) -> str:
        return (
            f"longest pause {self.pause_s:.3f} s (a step took {self.step_s:.3f} s before), first token of short "
            f"requests {self.short_first_s:.3f} s at worst, of the long one {self.long_first_s:.1f} s"
        )


async def beside_long(side: Side, running: list[list[int]], short: list[list[int]], long: list[int]) -> Beside:
    """Read `long` while `running` are answered, and ask for the answers of `short` one after another meanwhile."""
    streams = [Answer() for _ in running]
    tasks = [
        asyncio.create_task(side.answer(prompt, ENDLESS, stream))
        for prompt, stream in zip(running, streams, strict=True)
    ]
    await until(lambda: all(len(stream.times) >= 16 for stream in streams))
    step_s = statistics.median(b - a for stream in streams for a, b in itertools.pairwise(stream.times[-8:]))
    reading = Answer()
    reader = asyncio.create_task(side.answer(long, 1, reading))
    firsts: list[float] = []
    await asyncio.sleep(0.2)
    while not reader.done():
        firsts.append((await side.answer(short[len(firsts) % len(short)], 8)).first_s)
        await asyncio.sleep(0.3)
    await reader
    ended = reading.times[0]
    await until(lambda: any(task.done() for task in tasks) or all(stream.times[-1] > ended for stream in streams))
    if any(task.done() for task in tasks):
        raise SystemExit("a stream ended before the prompt was read: raise ENDLESS")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    pauses = (
        b - a for stream in streams for a, b in itertools.pairwise(stream.times) if b > reading.began and a < ended
    )
    return Beside(max(pauses), step_s, max(firsts), reading.first_s)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def measure_long(on: Setting) -> Iterator[Figure]:
    n_ctx = on.sizes.n_long + (RUNNING + 1) * (ENDLESS + 64)
    with on.model(n_ctx) as model:
        # No longer than the model was trained for, with room for an answer: llama-server cuts its slots to that.
        n_long = min(on.sizes.n_long, int(model.metadata["llama.context_length"]) - 100)
        ours = InProcess(model)
        with on.server(model, n_ctx, 16, unified=True) as server:

            def load(side: Side, number: int) -> Coroutine[Any, Any, Beside]:
                prompts = Prompts(model, 5000 + number)
                running, short = prompts.pieces(RUNNING, on.sizes.n_prompt), prompts.pieces(16, on.sizes.n_prompt)
                return beside_long(side, running, short, prompts.piece(n_long))

            def here(number: int) -> Beside:
                model.clear()
                return asyncio.run(load(ours, number))

            def there(number: int) -> Beside:
                with server.awake():
                    return asyncio.run(load(server, number))

            asyncio.run(at(ours, [0.0] * 8, Prompts(model, 0).pieces(8, on.sizes.n_prompt), 8))
            found = in_rounds(on.pairs, {"llamalite": here, "llama-server": there})
    mine, other = found["llamalite"], found["llama-server"]
    bounds = [max(PAUSE_S, 2 * one.step_s) for one in mine]
    beside = f"beside a prompt of {n_long:,} tokens"
    name = f"longest pause of {RUNNING} streams {beside}"
    yield promised(name, f"the promised {PAUSE_S:g} s, or two steps", [one.pause_s for one in mine], bounds)
    yield Figure(name, "llama-server", "s", [one.pause_s for one in mine], [one.pause_s for one in other], 1.0)
    name = f"first token of short requests {beside}, the slowest"
    yield promised(name, f"the promised {SHORT_FIRST_S:g} s", [one.short_first_s for one in mine], SHORT_FIRST_S)
    yield Figure(name, "llama-server", "s", [one.short_first_s for one in mine], [one.short_first_s for one in other])
    name = f"first token of the prompt of {n_long:,} tokens beside {RUNNING} streams"
    yield Figure(name, "llama-server", "s", [one.long_first_s for one in mine], [one.long_first_s for one in other])


# ── chats with one system prompt ────────────────────────────────────────────────────────────────────────────────────


async def chats(
    ask: Callable[[list[int]], Coroutine[Any, Any, Answer]],
    system: list[int],
    questions: list[list[list[int]]],
    *,
    together: bool,
) -> tuple[int, int]:
    """Hold a conversation for each list of questions; return how many tokens were read, and how many were new.

    They take turns, or, `together`, all go on at once. New are the system prompt, the questions, and the last token of
    each answer, which was sampled and not read.
    """
    histories = [list(system) for _ in questions]
    n_new = len(system)

    async def turn(number: int, question: list[int]) -> int:
        nonlocal n_new
        n_new += len(question) + (len(histories[number]) > len(system))
        histories[number] += question
        answer = await ask(histories[number])
        histories[number] += answer.tokens
        return answer.n_read

    async def all_turns(number: int) -> int:
        return sum([await turn(number, question) for question in questions[number]])

    if together:
        n_read = sum(await asyncio.gather(*(all_turns(number) for number in range(len(questions)))))
    else:
        in_turn = [
            (number, question) for round_ in zip(*questions, strict=True) for number, question in enumerate(round_)
        ]
        n_read = sum([await turn(number, question) for number, question in in_turn])
    return n_read, n_new


def measure_chats(on: Setting) -> Iterator[Figure]:
    sizes = on.sizes
    # llama-server shares no cells between its slots: twice as many would not hold all conversations.
    with on.model(8192) as model, on.server(model, 4 * 8192, sizes.n_chats, unified=True) as server:
        ours, prompts = InProcess(model), Prompts(model, 7000)
        for how, together in (("taking turns", False), ("all at once", True)):
            system = prompts.piece(sizes.n_system)
            questions = [prompts.pieces(sizes.n_turns, 30) for _ in range(sizes.n_chats)]
            model.clear()
            n_read, n_new = asyncio.run(chats(lambda ids: ours.answer(ids, 32), system, questions, together=together))
            with server.awake():
                # Not streamed: the next turn needs every token of the answer.
                n_server, _ = asyncio.run(
                    chats(lambda ids: server.answer(ids, 32, stream=False), system, questions, together=together)
                )
            name = f"{sizes.n_chats} chats of {sizes.n_turns} turns, {how}, tokens read"
            yield Figure(name, "the new tokens", "tokens", [float(n_read)], [float(n_new)], 1.05)
            yield Figure(name, "llama-server", "tokens", [float(n_read)], [float(n_server)])


MEASURES: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "one": measure_one, "many": measure_many, "long": measure_long, "chats": measure_chats,
}  # fmt: skip


def measure(on: Setting, only: Collection[str] = ALL) -> Iterator[Figure]:
    for name in ALL:
        if name in only:
            yield from MEASURES[name](on)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--new", type=int, default=Sizes.n_new, help="tokens of each of many answers")
    parser.add_argument(
        "--before", type=Path, default=ROOT, metavar="FOLDER", help="checkout whose generate_batch runs"
    )
    parser.add_argument("--quick", action="store_true", help="one pair of everything, and less of it")
    options = parser.parse_args()
    sizes = Sizes.quick() if options.quick else Sizes(n_new=options.new)
    pairs = 1 if options.quick else options.pairs
    on = Setting(options.model, Peers.given(options), pairs, bench.threads(options), sizes, options.before.resolve())
    bench.report(measure(on, options.only.split(",")), options.json)


if __name__ == "__main__":
    main()
