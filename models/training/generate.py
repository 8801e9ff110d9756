"""Greedy answers from the PyTorch network, many prompts at a time.

reply(model, tokenizer, ["What is 7 + 5?"], 200)    # ["7 + 5 = 12."]
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model import Cache, Llama, Shape
from tokenizers import Tokenizer

HEADERS = {
    role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")
}  # fmt: skip
EOT = "<|eot_id|>"


def chat_prompt(prompt: str) -> str:
    """Returns the conversation that the chat template makes of one question, without the begin-of-text token."""
    return f"{HEADERS['user']}{prompt.strip()}{EOT}{HEADERS['assistant']}"


@torch.inference_mode()
def reply(model: Llama, tokenizer: Tokenizer, prompts: list[str], max_tokens: int, batch: int = 64) -> list[str | None]:
    """Returns one answer per prompt; None if no end-of-turn token came within `max_tokens`."""
    encoded = [tokenizer.encode(chat_prompt(prompt)).ids for prompt in prompts]
    answers: list[str | None] = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    for start in range(0, len(prompts), batch):
        rows = by_length[start : start + batch]
        for row, ids in zip(rows, decode(model, tokenizer, [encoded[i] for i in rows], max_tokens), strict=True):
            answers[row] = None if ids is None else tokenizer.decode(ids)
    return answers


def decode(model: Llama, tokenizer: Tokenizer, rows: list[list[int]], max_tokens: int) -> list[list[int] | None]:
    """Returns the greedy token ids of each row up to its end of turn; rows are padded on the left, with a mask."""
    stop, device = tokenizer.token_to_id(EOT), next(model.parameters()).device
    width = max(map(len, rows))
    tokens = torch.tensor([[stop] * (width - len(row)) + row for row in rows], device=device)
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device).bool()
    causal = torch.ones(width, width, device=device).tril().bool()
    mask = (causal & real[:, None, :]) | torch.eye(width, device=device).bool()  # [rows, query, key]
    caches = [Cache() for _ in range(model.shape.n_layer)]
    hidden = model.hidden(tokens, mask[:, None], caches)
    made: list[list[int]] = [[] for _ in rows]
    done = [False] * len(rows)
    for step in range(max_tokens):
        best = model.logits(hidden[:, -1]).argmax(-1)  # [rows]
        for i, token in enumerate(best.tolist()):
            done[i] = done[i] or token == stop
            if not done[i]:
                made[i].append(token)
        if all(done):
            break
        real = torch.cat((real, torch.ones(len(rows), 1, device=device).bool()), 1)
        hidden = model.hidden(best[:, None], real[:, None, None], caches, n_past=width + step)
    return [ids if end else None for ids, end in zip(made, done, strict=True)]


def load_demo(folder: Path) -> tuple[Llama, Tokenizer]:
    """Returns the network and tokenizer of a checkpoint folder that `train.py` wrote."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(Shape(n_layer=config["num_hidden_layers"]))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))
