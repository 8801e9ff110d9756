"""Compare every GGUF file of a folder with a reference, overnight and through restarts, and write one report.

    python examples/evaluate_folder.py demo-BF16.gguf models/ wiki.test.raw --chunks 64 --out report/

Each model's figures are written to ``OUT/NAME.json`` as soon as they are measured. A restart skips models that are done
with the same file (by size and time), reference and settings. A model that fails is reported and does not stop the
others. After each model ``OUT/report.md`` and ``OUT/report.csv`` are rewritten, with the best model first.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import llamalite
from llamalite.evaluation.windows import read_text

COLUMNS = ("name", "n_bytes", "bits_per_weight", "ppl", "ppl_err", "mean_kld", "mean_kld_err", "p99_kld", "same_top_p",
           "pp_tok_per_s", "tg_tok_per_s", "memory_bytes")  # fmt: skip


def identity(path: Path) -> str:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


def evaluate(reference: Path, model: Path, text: bytes, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return the figures of `model`, those of an earlier run if nothing has changed since."""
    digest = hashlib.sha256(text).hexdigest()
    key = [identity(reference), identity(model), digest, json.dumps(settings, sort_keys=True), llamalite.__version__]
    saved_path = out / f"{model.stem}.json"
    if saved_path.exists():
        saved = json.loads(saved_path.read_text(encoding="utf-8"))
        if saved["key"] == key:
            return dict(saved["figures"])
    try:
        comparison = llamalite.compare(reference, [model], text, **settings)
        figures = comparison.candidates[0].to_json()
    except llamalite.LlamaliteError as error:
        # Not saved: a model that failed is tried again next time.
        return {"name": model.stem, "error": str(error)}
    part = saved_path.with_name(f"{saved_path.name}.part")
    part.write_text(json.dumps({"key": key, "figures": figures}, indent=2), encoding="utf-8")
    part.replace(saved_path)  # a restart finds a complete file or none
    return figures


def write_report(rows: list[dict[str, Any]], out: Path) -> None:
    done = sorted((row for row in rows if "error" not in row), key=lambda row: row["mean_kld"])
    lines = [
        "| model | MiB | bits per weight | PPL | mean KLD | same top | generated t/s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in done:
        cells = [row["name"], f"{row['n_bytes'] / 2**20:.1f}", f"{row['bits_per_weight']:.2f}"]
        cells += [f"{row['ppl']:.4f} ± {row['ppl_err']:.4f}", f"{row['mean_kld']:.6f} ± {row['mean_kld_err']:.6f}"]
        cells += [f"{row['same_top_p']:.2%}", f"{row['tg_tok_per_s']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{row['name']} failed: {row['error']}" for row in rows if "error" in row]
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (out / "report.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--out", type=Path, default=Path("report"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    text = read_text(args.text)
    models = [path for path in sorted(args.folder.glob("*.gguf")) if not path.samefile(args.reference)]
    if not models:
        sys.exit(f"no GGUF files in {args.folder}")
    rows: list[dict[str, Any]] = []
    for number, model in enumerate(models, 1):
        rows.append(evaluate(args.reference, model, text, {"n_ctx": args.ctx, "chunks": args.chunks}, args.out))
        write_report(rows, args.out)
        last = rows[-1]
        result = last.get("error") or f"mean KLD {last['mean_kld']:.6f}"
        print(f"{number}/{len(models)} {last['name']}: {result}", flush=True)
    print(args.out / "report.md")


if __name__ == "__main__":
    main()
