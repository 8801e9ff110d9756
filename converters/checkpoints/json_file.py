"""Reads untrusted JSON: bounded size and depth, no NaN or duplicate keys, an object at the top, numbers in bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from llamalite.errors import CheckpointError

_KINDS: dict[type, str] = {  # JSON's names, not Python's
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list",
}  # fmt: skip
MAX_BYTES = 256 << 20  # the largest real one, a tokenizer.json of 256k tokens, has about 35 MB
FLOAT32_SMALLEST, _FLOAT32_LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the smallest is that of normal numbers


def parse_object(text: bytes, source: str) -> dict[str, Any]:
    """Return the JSON object in `text`; `CheckpointError` says what is wrong with it and names `source`."""

    def refuse_constant(constant: str) -> NoReturn:
        raise CheckpointError(f"{source} holds {constant}, which is not JSON")

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            seen: set[str] = set()
            duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{source} has the key {duplicate!r} twice: it is unclear which one is meant")
        return parsed

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except ValueError as error:  # not UTF-8, not JSON, or a number of more digits than Python converts
        raise CheckpointError(f"{source} is not valid JSON: {error}") from error
    except RecursionError:
        raise CheckpointError(f"{source} is nested too deeply to be a model's file") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{source} holds {_KINDS[type(parsed)]}, expected an object")
    return parsed


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`, at most `MAX_BYTES` long."""
    size = path.stat().st_size
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")  # reading a pipe might never end
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, expected at most {MAX_BYTES:,}")
    return parse_object(path.read_bytes(), str(path))


def whole_number(config: Mapping[str, Any], key: str, source: str, default: int | None = None, *, maximum: int) -> int:
    """Return the number from 1 to `maximum` under `key`, or `default` if the key is missing or null.

    `CheckpointError` names `source`, the key and its value.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
        actual = "is missing" if value is None else f"is {value!r:.40}"
        raise CheckpointError(f"{source}: {key} {actual}, expected a whole number from 1 to {maximum}")
    return value


def number(
    config: Mapping[str, Any],
    key: str,
    source: str,
    default: float | None = None,
    *,
    minimum: float = FLOAT32_SMALLEST,
    kind: str = "a positive number",
) -> float:
    """Return the number under `key`, or `default` if the key is missing or null.

    It must be at least `minimum`, and within the range of float32, in which GGUF stores it. `CheckpointError` names
    `source`, the key, its value and the expected `kind`.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum <= value <= _FLOAT32_LARGEST:
        actual = "is missing" if value is None else f"is {value!r:.40}"
        raise CheckpointError(f"{source}: {key} {actual}, expected {kind} in the range of float32")
    return float(value)
