#!/usr/bin/env python3
"""Extract facts from a folder of texts as JSON that always parses: many files at once, one JSON line per file.

    python examples/extract.py MODEL.gguf letters/ --schema letter.schema.json > facts.jsonl

Without --schema it asks for a title, people, and a date. The schema becomes a grammar, so that the model cannot write
anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamalite import Completion, Model

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "people": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 10},
        "date": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
    },
    "required": ["title", "people", "date"],
}


def question(model: Model, text: str) -> Any:
    task = "Read the text and give its title, the people it names, and its date as JSON."
    if model.has_chat_template:
        return [{"role": "system", "content": task}, {"role": "user", "content": text}]
    return f"{task}\n\nText:\n{text}\n\nJSON:\n"


def extract(
    model: Model, folder: Path, schema: Mapping[str, Any] = SCHEMA, *, max_tokens: int = 300
) -> Iterator[dict[str, Any]]:
    """Yield {"file", "facts"} for each ``*.txt`` in `folder`, or {"file", "error"} if the answer was not finished."""
    files = sorted(folder.glob("*.txt"))
    prompts = [question(model, path.read_text(encoding="utf-8")) for path in files]
    completions: list[Completion] = model.generate_batch(
        prompts, parallel=8, max_tokens=max_tokens, temperature=0, json_schema=schema
    )
    for path, completion in zip(files, completions, strict=True):
        if completion.finish_reason == "stop":
            yield {"file": path.name, "facts": json.loads(completion.text)}
        else:
            yield {"file": path.name, "error": f"ended with {completion.finish_reason!r}: raise --max-tokens"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--schema", type=Path)
    parser.add_argument("--max-tokens", type=int, default=300)
    args = parser.parse_args()
    schema = json.loads(args.schema.read_text(encoding="utf-8")) if args.schema else SCHEMA
    failed = 0
    with Model(args.model) as model:
        for record in extract(model, args.folder, schema, max_tokens=args.max_tokens):
            failed += "error" in record
            print(json.dumps(record, ensure_ascii=False), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
