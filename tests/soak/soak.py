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
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from faults import write_endless  # noqa: E402 - found beside this folder
from judge import HANG_S, Found, Judge, Memory  # noqa: E402
from serving import serving  # noqa: E402

from llamalite.chat import ChatSession  # noqa: E402
from llamalite.generation.completion import Completion  # noqa: E402
from llamalite.hardware.process_memory import resident_bytes  # noqa: E402
from llamalite.model import Model  # noqa: E402

GROWTH = 0.05  # of the memory held after the warm-up


def tokens_of(completion: Completion) -> list[int]:
    return list(completion.tokens)


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


RUNS: dict[str, Callable[[Path, float], Found]] = {
    "generation": generation, "chat": chat, "loads": loads, "prompts": prompts, "serving": serving,
}  # fmt: skip


def run(name: str, scale: float) -> Found:
    """Do a run at `scale` of its length."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.gguf"
        write_endless(path, n_layer=2, n_embd=64)
        faulthandler.dump_traceback_later(HANG_S if name == "serving" else 7200, exit=True)
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
