"""Trains the demo model on `work/train.jsonl` and writes the checkpoint to `../demo`.

    python train.py                 # resumes from work/checkpoint.pt when there is one
    python train.py --steps 300     # a quick look

Documents are packed end to end into rows of 512 tokens (1024 in the last fifth); the loss counts answers and plain
texts. Muon updates the matrices, AdamW the embedding and the norms. In the last third the forward pass uses weights
rounded to four (sometimes three) bits, so that the quantized files keep what was learned.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import DEMO, WORK
from evaluate import MAX_TOKENS, Question, read_questions, tally
from generate import EOT, HEADERS, reply
from model import Llama, Shape
from rounding import rounded
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Hyperparameters:
    """Everything beside the corpus that decides the result."""

    steps: int = 2400
    batch_tokens: int = 4096
    row_tokens: int = 512
    long_row_tokens: int = 1024
    long_from: float = 0.8  # share of the steps after which rows are long
    round_from: float = 0.65  # … after which weights are rounded
    three_bit_share: float = 0.3
    warmup: int = 25
    decay_from: float = 0.4
    muon_lr: float = 0.02
    muon_decay: float = 0.1
    adam_lr: float = 4e-3
    seed: int = 2026


class Muon:
    """Momentum whose step is made orthogonal by five Newton-Schulz rounds (Keller Jordan, 2024); matrices only.

    Matrices of the same shape are updated as one batch, as single small products waste a CPU.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            self.groups.setdefault((matrix.shape[0], matrix.shape[1]), []).append(matrix)
        self.moments = {shape: torch.zeros_like(torch.stack(group)) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])  # [n, rows, columns]
            moment = self.moments[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(moment, self.momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - lr * decay).sub_(change, alpha=lr)


def orthogonal(x: Tensor) -> Tensor:
    """Returns matrices close to `x` with singular values near one, float32 [n, rows, columns]."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def pack(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corpus as one row: token ids (int16) and each token's weight in the loss (float32), both [n].

    The weights of an answer add up to the square root of its length, so that long stories do not outweigh short
    answers.
    """
    bos, end = tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id("<|end_of_text|>")
    parts: list[str] = []
    learn: list[int] = []  # 0 no, 1 yes, 2 opens a document
    for line in (WORK / "train.jsonl").read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        if "text" in document:
            parts.append(document["text"])
            learn.append(3)
            continue
        for number, (role, text) in enumerate(document["turns"]):
            parts += [HEADERS[role], text + EOT]
            learn += [2 if number == 0 else 0, int(role == "assistant")]
    ids: list[int] = []
    weights: list[float] = []
    for encoding, mode in zip(tokenizer.encode_batch_fast(parts, add_special_tokens=False), learn, strict=True):
        if mode >= 2:
            ids.append(bos)
            weights.append(0.0)
        n_tokens = len(encoding.ids)
        ids += encoding.ids
        weights += [n_tokens**-0.5 if mode in (1, 3) else 0.0] * n_tokens
        if mode == 3:
            ids.append(end)
            weights.append(n_tokens**-0.5)
    return np.array(ids, np.int16), np.array(weights, np.float32)


def batch_at(
    ids: np.ndarray, learn: np.ndarray, start: int, row_tokens: int, batch_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns inputs [rows, row_tokens], and index, target and weight of the places to learn.

    There are always half as many places as tokens, so that the compiled step has one shape: if fewer can be learned,
    the others have weight zero, and if more can, they are left out.
    """
    start %= len(ids) - batch_tokens - 1
    window = torch.from_numpy(ids[start : start + batch_tokens + 1].astype(np.int64))
    places = torch.from_numpy(np.flatnonzero(learn[start + 1 : start + batch_tokens + 1]))
    n_places = batch_tokens // 2
    places = places[:n_places] if len(places) >= n_places else places
    weight = torch.zeros(n_places)
    weight[: len(places)] = torch.from_numpy(learn[start + 1 :])[places]
    index = torch.zeros(n_places, dtype=torch.int64)
    index[: len(places)] = places
    return window[:-1].view(-1, row_tokens), index, window[1:][index], weight / weight.sum()


def loss_of(model: Llama, tokens: Tensor, index: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted mean cross-entropy, in nats, over the places to learn."""
    hidden = model.hidden(tokens).flatten(0, 1)[index]  # [places, n_embd]
    return (functional.cross_entropy(model.logits(hidden), target, reduction="none") * weight).sum()


def rate(hyper: Hyperparameters, step: int) -> float:
    """Returns the factor of the learning rates: warm-up, plateau, then a straight line to zero."""
    done = step / hyper.steps
    return min(1.0, (step + 1) / hyper.warmup, (1 - done) / (1 - hyper.decay_from))


def export(model: Llama, tokenizer: Tokenizer) -> None:
    """Writes `model.safetensors` (BF16) and `config.json` to `../demo`."""
    tensors = {name: tensor.to(torch.bfloat16).cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, DEMO / "model.safetensors.part", metadata={"format": "pt"})
    (DEMO / "model.safetensors.part").replace(DEMO / "model.safetensors")
    config = model.shape.hf_config(
        tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id(EOT), torch.__version__
    )
    (DEMO / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def report(model: Llama, tokenizer: Tokenizer, bits: int, each: int) -> str:
    """Returns the held-out accuracy by kind, over the first `each` prompts of each, with weights rounded to `bits`."""
    questions: list[Question] = []
    for question in read_questions(DEMO / "heldout.jsonl"):
        if sum(q.kind == question.kind for q in questions) < each:
            questions.append(question)
    with rounded(model, bits):
        answers = reply(model, tokenizer, [q.prompt for q in questions], MAX_TOKENS)
    counts = tally(questions, answers)
    return f"{bits} bits: " + "  ".join(f"{kind} {right}/{asked}" for kind, (right, asked) in counts.items())


def train(hyper: Hyperparameters, n_layer: int, compiled: bool, checkpoint: Path, report_every: int) -> None:
    """Trains to the end, from the checkpoint if there is one."""
    torch.manual_seed(hyper.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids, learn = pack(tokenizer)
    print(f"{len(ids):,} tokens, {(learn > 0).mean():.0%} to learn, torch {torch.__version__} on {device}", flush=True)
    model = Llama(Shape(n_layer=n_layer)).to(device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=hyper.adam_lr, betas=(0.9, 0.95), weight_decay=0.01)
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.moments, first, spent = state["muon"], state["step"], state["spent"]
        print(f"resumed at step {first}", flush=True)
    loss_fn: Callable[..., Tensor] = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    started, losses = time.monotonic() - spent, []
    for step in range(first, hyper.steps):
        row_tokens = hyper.long_row_tokens if step >= hyper.long_from * hyper.steps else hyper.row_tokens
        batch = batch_at(ids, learn, step * hyper.batch_tokens, row_tokens, hyper.batch_tokens)
        bits = None
        if step >= hyper.round_from * hyper.steps:
            bits = 3 if random.Random(hyper.seed * 1_000_003 + step).random() < hyper.three_bit_share else 4
        with rounded(model, bits):
            loss = loss_fn(model, *(part.to(device) for part in batch))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = rate(hyper, step)
        muon.step(hyper.muon_lr * scale, hyper.muon_decay)
        adam.param_groups[0]["lr"] = hyper.adam_lr * scale
        adam.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            spent = time.monotonic() - started
            speed = (step + 1) * hyper.batch_tokens / spent
            mean = sum(losses[-20:]) / len(losses[-20:])
            print(f"step {step + 1}/{hyper.steps}  loss {mean:.4f}  {speed:.0f} tok/s  {spent:.0f} s", flush=True)
        if (step + 1) % report_every == 0 or step + 1 == hyper.steps:
            whole = step + 1 == hyper.steps
            state = {
                "model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.moments,
                "step": step + 1, "spent": time.monotonic() - started,
            }  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            for n_bits in (16, 4) if whole or step >= hyper.round_from * hyper.steps else (16,):
                print(report(model, tokenizer, n_bits, 60 if whole else 20), flush=True)
    export(model, tokenizer)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def main() -> None:
    """Reads the arguments and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Hyperparameters.steps)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (no C++ compiler here)")
    parser.add_argument("--checkpoint", type=Path, default=WORK / "checkpoint.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hyper = Hyperparameters(steps=arguments.steps)
    train(hyper, arguments.layers, not arguments.no_compile, arguments.checkpoint, arguments.report_every)


if __name__ == "__main__":
    main()
