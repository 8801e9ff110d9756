"""``llamalite serve`` against llama-server: the same file, the same requests over HTTP.

    python benchmarks/serving.py MODEL.gguf --llama-cpp FOLDER [--pairs 3] [--minutes 10] [--only streams,load,...]

- streams: 8 at once, prompts of 30 tokens, 64 new tokens each: total speed, the first token (the median and the 95th
  percentile), the peak memory of both servers.
- load: `--minutes` of requests that arrive at random (Poisson), half as many as the machine can answer, then twice as
  many: the whole wait, and the memory at the end. An error other than 429 or 503 ends the benchmark.
- chats: 8 conversations of 6 turns that begin with one system prompt of 1,000 tokens: the tokens that are read.
- leaving: 1,000 clients that connect and leave at random moments: when the last slot is free. A wrong answer after
  that ends the benchmark.

Prompts are pieces of a text, as token ids; answers are greedy and cannot end. Requests are those of OpenAI's
``/v1/completions``; chats use ``/completion`` of both servers, which returns the tokens that the next turn needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import side_by_side as bench
from answering import Answer, Prompts, ends
from llama_server import HttpServer, LlamaliteServer, LlamaServer, RefusedError, checked
from serving_in_process import Load, at, chats, in_rounds, late, promised
from side_by_side import Figure, Peers

from llamalite.model import Model

ALL = ("streams", "load", "chats", "leaving")
N_SLOTS, N_WAITING = 8, 64
N_CTX = 4096
LEAVES_S = 1.5  # the longest that a client of "leaving" stays
FREE_S = 0.2  # within which a client that goes away ends its generation
FULL = (429, 503)


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `quick` is for trying the benchmark itself."""

    n_prompt: int = 30
    n_new: int = 64
    load_s: float = 600
    n_turns: int = 6
    n_system: int = 1_000
    n_leaving: int = 1_000
    leaving_s: float = 60

    @classmethod
    def quick(cls) -> Sizes:
        return cls(n_new=16, load_s=8, n_turns=2, n_system=200, n_leaving=50, leaving_s=4)


@dataclass(frozen=True)
class Setting:
    """What every measurement needs."""

    path: Path
    peers: Peers
    pairs: int
    n_threads: int
    sizes: Sizes

    @contextlib.contextmanager
    def servers(self, ours_n_ctx: int, theirs_n_ctx: int, *, unified: bool = False) -> Iterator[list[HttpServer]]:
        """Start llamalite's server and llama-server."""
        shared = {"n_slots": N_SLOTS, "n_threads": self.n_threads}
        program = self.peers.program("llama-server")
        with (
            LlamaliteServer(self.path, n_ctx=ours_n_ctx, n_waiting=N_WAITING, **shared) as ours,
            LlamaServer(program, self.path, n_ctx=theirs_n_ctx, unified=unified, **shared) as theirs,
        ):
            yield [ours, theirs]

    @contextlib.contextmanager
    def model(self) -> Iterator[Model]:
        """Open the model for its vocabulary; the servers are measured without it."""
        with Model(self.path, n_ctx=256, n_threads=1) as model:
            yield model

    def prompts(self, seed: int, *counts: int) -> list[list[list[int]]]:
        """Return as many prompts as each of `counts` says."""
        with self.model() as model:
            prompts = Prompts(model, seed)
            return [prompts.pieces(count, self.sizes.n_prompt) for count in counts]


class Completions:
    """``POST /v1/completions`` of a server as a `Side`."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    async def answer(self, prompt: Sequence[int], n_new: int, answer: Answer | None = None) -> Answer:
        """Stream an answer, whose `tokens` stay empty: the protocol has only their text."""
        answer = Answer() if answer is None else answer
        asked = {
            "prompt": list(prompt), "max_tokens": n_new, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        n_given = 0
        async with contextlib.aclosing(self._server.post("/v1/completions", asked)) as events:
            async for event in events:
                if event["choices"] and event["choices"][0]["text"]:
                    answer.times.append(time.perf_counter())
                if usage := event.get("usage"):
                    n_given = usage["completion_tokens"]
                    answer.n_read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        answer.ended = time.perf_counter()
        return checked(answer, n_given, n_new)


def now(server: HttpServer, prompts: Sequence[Sequence[int]], n_new: int) -> Load:
    """Ask `server` for all answers at once."""
    with server.awake():
        return asyncio.run(at(Completions(server), [0.0] * len(prompts), prompts, n_new))


# ── many streams ────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_streams(on: Setting) -> Iterator[Figure]:
    n_new = on.sizes.n_new
    warming, *rounds = on.prompts(1, *[N_SLOTS] * (on.pairs + 1))
    with on.servers(N_CTX, N_CTX) as (ours, theirs):
        for server in (ours, theirs):
            now(server, warming, 8)
        loads = in_rounds(
            on.pairs,
            {
                "llamalite": lambda number: now(ours, rounds[number], n_new),
                "llama-server": lambda number: now(theirs, rounds[number], n_new),
            },
        )
        peaks = [server.memory_mib("VmHWM") for server in (ours, theirs)]
    mine, other = loads["llamalite"], loads["llama-server"]
    name, peer = f"{N_SLOTS} streams over HTTP", f"llama-server -np {N_SLOTS}"
    speeds = [[load.tok_per_s for load in side] for side in (mine, other)]
    yield Figure(f"{name}, {n_new} tokens each", peer, "tok/s", *speeds, 1.0)
    firsts = [[load.first_s for load in side] for side in (mine, other)]
    yield Figure(f"{name}, first token in the median", peer, "s", *firsts, 1.0)
    lates = [[load.late_first_s for load in side] for side in (mine, other)]
    yield Figure(f"{name}, first token, 95th percentile", peer, "s", *lates, 1.0)
    yield Figure(f"{name}, peak memory", peer, "MiB", *[[peak] for peak in peaks], 1.1)


# ── minutes of load ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Waits:
    """What clients saw who came over some time: how long each answer took, how many were refused, the memory."""

    answers_s: list[float] = field(default_factory=list)
    n_refused: int = 0
    memory_mib: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.answers_s):,} answered, {self.n_refused:,} refused"


async def steady(server: HttpServer, moments: Sequence[float], prompts: Sequence[Sequence[int]], n_new: int) -> Waits:
    """Ask at each moment, in seconds from now; an error other than a full queue is raised."""
    waits, side = Waits(), Completions(server)

    async def one(moment: float, prompt: Sequence[int]) -> None:
        await asyncio.sleep(moment)
        try:
            answer = await side.answer(prompt, n_new)
        except RefusedError as refused:
            if refused.status not in FULL:
                raise
            waits.n_refused += 1
        else:
            waits.answers_s.append(answer.ended - answer.began)
        waits.memory_mib.append(server.memory_mib("VmRSS"))

    await asyncio.gather(*map(one, moments, prompts))
    return waits


def measure_load(on: Setting) -> Iterator[Figure]:
    """Yield waits and memory for half and for twice the load that the server can answer."""
    sizes = on.sizes
    warming, prompts = on.prompts(2, N_SLOTS, 500)
    with on.servers(N_CTX, N_CTX) as (ours, theirs):
        for server in (ours, theirs):
            now(server, warming, 8)
        capacity = now(ours, prompts[: 4 * N_SLOTS], sizes.n_new).tok_per_s / sizes.n_new

        def loaded(server: HttpServer, share: float) -> Waits:
            moments = arrivals(share * capacity, sizes.load_s)
            asked = [prompts[number % len(prompts)] for number in range(len(moments))]
            with server.awake():
                waits = asyncio.run(steady(server, moments, asked, sizes.n_new))
            print(f"  {share:g} of {capacity:.2f} requests/s: {waits}", file=sys.stderr, flush=True)
            return waits

        below, peer, above = loaded(ours, 0.5), loaded(theirs, 0.5), loaded(ours, 2.0)
    name = f"{sizes.load_s / 60:.2g} min of half the load"
    for what, statistic in (("in the median", statistics.median), ("95th percentile", late)):
        values = [[statistic(waits.answers_s)] for waits in (below, peer)]
        yield Figure(f"{name}, an answer, {what}", "llama-server", "s", *values, note=str(below))
    yield grown(name, below)
    name = f"{sizes.load_s / 60:.2g} min of twice the load"
    bound = 1.25 * (N_WAITING + 2 * N_SLOTS) / capacity  # all that wait and run when it comes, and its own answer
    yield promised(f"{name}, an answer, the slowest", "the whole queue", [max(above.answers_s)], bound)
    yield grown(name, above)


def arrivals(per_s: float, within_s: float) -> list[float]:
    """Return the arrivals of a Poisson process, the same ones every time."""
    drawn, moments = random.Random(3), [0.0]
    while moments[-1] < within_s:
        moments.append(moments[-1] + drawn.expovariate(per_s))
    return moments[:-1]


def grown(name: str, waits: Waits) -> Figure:
    """Return the memory in the last tenth of the requests against the second tenth, when all slots have been used."""
    tenth = max(1, len(waits.memory_mib) // 10)
    early, end = waits.memory_mib[tenth : 2 * tenth], waits.memory_mib[-tenth:]
    return Figure(f"{name}, memory at the end", "its beginning", "MiB", [max(end)], [max(early)], 1.02, str(waits))


# ── chats with one system prompt ────────────────────────────────────────────────────────────────────────────────────


def measure_chats(on: Setting) -> Iterator[Figure]:
    sizes = on.sizes
    with on.model() as model:
        prompts, forbidden = Prompts(model, 4), ends(model)
    system = prompts.piece(sizes.n_system)
    questions = [prompts.pieces(sizes.n_turns, sizes.n_prompt) for _ in range(N_SLOTS)]
    n_read: list[float] = []
    # llama-server shares no cells between its slots: twice as many would not hold all conversations.
    with on.servers(2 * N_CTX, 8 * N_CTX, unified=True) as servers:
        for server in servers:
            server.forbid(forbidden)

            async def ask(ids: list[int], server: HttpServer = server) -> Answer:
                return await server.answer(ids, 32, stream=False)

            with server.awake():
                read, n_new = asyncio.run(chats(ask, system, questions, together=True))
            n_read.append(float(read))
    ours, theirs = n_read
    name = f"{N_SLOTS} chats of {sizes.n_turns} turns over HTTP, tokens read"
    yield Figure(name, "the new tokens", "tokens", [ours], [float(n_new)])
    yield Figure(name, "llama-server", "tokens", [ours], [theirs], 1.0)


# ── clients that leave ──────────────────────────────────────────────────────────────────────────────────────────────


async def leaving(server: HttpServer, moments: Sequence[float], prompts: Sequence[Sequence[int]]) -> None:
    """Let a client come at each moment, and go before or while it is answered."""
    side, drawn = Completions(server), random.Random(5)

    async def one(moment: float, prompt: Sequence[int], stays_s: float) -> None:
        await asyncio.sleep(moment)
        with contextlib.suppress(asyncio.TimeoutError):
            try:
                await asyncio.wait_for(side.answer(prompt, 1_000), stays_s)
            except RefusedError as refused:
                if refused.status not in FULL:
                    raise

    stays = [drawn.uniform(0, LEAVES_S) for _ in moments]
    await asyncio.gather(*map(one, moments, prompts, stays))


def measure_leaving(on: Setting) -> Iterator[Figure]:
    """Yield when the last slot is free; exit if an answer is then not what it was before."""
    sizes = on.sizes
    asked, prompts = on.prompts(6, N_SLOTS, sizes.n_leaving)
    with on.model() as model:
        forbidden = ends(model)
    with LlamaliteServer(on.path, n_ctx=2 * N_CTX, n_slots=N_SLOTS, n_threads=on.n_threads) as server, server.awake():
        server.forbid(forbidden)

        def answered() -> list[int]:
            return asyncio.run(server.answer(asked[0], sizes.n_new, stream=False)).tokens

        before = answered()
        drawn = random.Random(7)
        moments = sorted(drawn.uniform(0, sizes.leaving_s) for _ in prompts)
        asyncio.run(leaving(server, moments, prompts))
        gone = time.perf_counter()
        while any(slot["is_processing"] for slot in server.get("/slots")):
            if time.perf_counter() - gone > 60:
                raise SystemExit("a minute after the last client left, a slot is still busy")
            time.sleep(0.01)
        free_s = time.perf_counter() - gone
        if answered() != before:
            raise SystemExit(f"after {sizes.n_leaving:,} clients left, an answer is another one than before")
        asyncio.run(at(Completions(server), [0.0] * N_SLOTS, asked, sizes.n_new))
    yield promised(
        f"{sizes.n_leaving:,} clients left, all slots are free after", "the promised 0.2 s", [free_s], FREE_S
    )


MEASURES: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "streams": measure_streams, "load": measure_load, "chats": measure_chats, "leaving": measure_leaving,
}  # fmt: skip


def measure(on: Setting, only: Collection[str] = ALL) -> Iterator[Figure]:
    for name in ALL:
        if name in only:
            yield from MEASURES[name](on)


def main() -> None:
    parser = bench.arguments(__doc__, pairs=3)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default=",".join(ALL))
    parser.add_argument("--minutes", type=float, default=10, help="of each load (default: 10)")
    parser.add_argument("--quick", action="store_true", help="one pair of everything, and less of it")
    options = parser.parse_args()
    sizes = Sizes.quick() if options.quick else Sizes(load_s=60 * options.minutes)
    pairs = 1 if options.quick else options.pairs
    on = Setting(options.model, Peers.given(options), pairs, bench.threads(options), sizes)
    bench.report(measure(on, options.only.split(",")), options.json)


if __name__ == "__main__":
    main()
