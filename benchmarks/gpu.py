"""What a GPU gains and changes: speed and logits with none, half and all of the layers offloaded.

    python benchmarks/gpu.py MODEL [--device CUDA0] [--tokens 256] [--json FILE]

For each number of layers: prompt and generation speed as llama-bench defines them, and how far the logits of a fixed
text are from the CPU's: the largest difference, the mean KL divergence, and the share of positions with the same most
likely token. Both use exact mode (F32 cache, no flash attention), so that only the kernels differ. If the installed
llama-cpp-python cannot use a GPU, it says so, measures nothing, and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamalite import hardware, store
from llamalite.gguf_check import checked_header
from llamalite.native import devices, library
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.model import NativeModel
from llamalite.performance.benchmark import BenchPlan, iter_bench

Logits = npt.NDArray[np.float32]


def logits(path: Path, n_gpu_layers: int, device: str | None, n_tokens: int) -> Logits:
    """Return the logits of `n_tokens` fixed tokens in exact mode, float32 [n_tokens, n_vocab]."""
    with NativeModel(path, n_gpu_layers=n_gpu_layers, device=device if n_gpu_layers else None) as model:
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, n_tokens).astype(np.int32)
        if model.add_bos:
            tokens[0] = model.bos
        options = ContextOptions(n_ctx=n_tokens, n_threads=hardware.physical_cores(), exact=True)
        with NativeContext(model, options) as context:
            context.decode(tokens, np.arange(n_tokens), 0, np.ones(n_tokens, dtype=np.bool_))
            return context.logits().copy()


def distance(base: Logits, other: Logits) -> dict[str, float]:
    """Return how far `other` is from `base`, both float32 [n_tokens, n_vocab]; KL divergence in nats."""
    p, q = (rows.astype(np.float64) for rows in (base, other))
    p, q = (rows - rows.max(axis=1, keepdims=True) for rows in (p, q))
    log_p, log_q = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in (p, q))
    return {
        "max_abs": float(np.abs(base.astype(np.float64) - other).max()),
        "mean_kld": float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        "same_top": float((base.argmax(axis=1) == other.argmax(axis=1)).mean()),
    }


def measure(path: Path, device: str | None, n_tokens: int, repetitions: int, counts: list[int]) -> list[dict[str, Any]]:
    """Return a record for each number of layers in `counts`, the first of which must be 0 (the CPU alone)."""
    base, records = logits(path, 0, None, n_tokens), []
    for n in counts:
        plan = BenchPlan(n_prompt=512, n_generate=128, repetitions=repetitions, n_gpu_layers=(n,), device=device)
        prompt, generation = iter_bench(path, plan)
        speeds = {"pp_tok_per_s": prompt.tok_per_s, "pp_sd": prompt.tok_per_s_sd,
                  "tg_tok_per_s": generation.tok_per_s, "tg_sd": generation.tok_per_s_sd}  # fmt: skip
        other = base if n == 0 else logits(path, n, device, n_tokens)
        records.append({"n_gpu_layers": n} | speeds | distance(base, other))
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="as in llamalite run (default: demo)")
    parser.add_argument("--device", help="which GPU, by its name in llamalite doctor (default: the first)")
    parser.add_argument("--tokens", type=int, default=256, help="of the text whose logits are compared")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    options = parser.parse_args()
    gpus = [gpu for gpu in devices.devices() if gpu.is_gpu]
    if not gpus:
        print(f"no GPU: the installed llama-cpp-python has the backends {', '.join(devices.backends())}")
        print(f"nothing was measured; with a GPU: {devices.gpu_install_command()}")
        return
    device = options.device or gpus[0].name
    path = store.obtain(options.model)
    n_layers = checked_header(path).n_layer + 1  # the output matrix counts as one
    records = measure(path, device, options.tokens, options.repetitions, [0, n_layers // 2, n_layers])
    about = {"model": path.name, "device": device, "versions": library.version(), "n_tokens": options.tokens}
    print(
        f"{path.name} on {device} ({next((g.description for g in gpus if g.name == device), '?')}), {about['versions']}"
    )
    print(f"{'layers':>6}{'prompt t/s':>18}{'generation t/s':>20}{'max |Δlogit|':>15}{'mean KLD':>12}{'same top':>10}")
    for row in records:
        pp, tg = (f"{row[f'{kind}_tok_per_s']:,.1f} ± {row[f'{kind}_sd']:.1f}" for kind in ("pp", "tg"))
        print(f"{row['n_gpu_layers']:>6}{pp:>18}{tg:>20}{row['max_abs']:>15.2e}{row['mean_kld']:>12.2e}"
              f"{row['same_top']:>10.2%}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(about | {"records": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
