"""Text that a schema's grammar lets through parses and validates; what a grammar cannot enforce is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import toy

from llamalite.generation.json_schema import _between, grammar_of
from llamalite.model import Model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad", None]},
        "friend": {"$ref": "#/$defs/friend"},
    },
    "required": ["name", "mood"],
    "$defs": {"friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
}
SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"type": "integer", "minimum": -12, "maximum": 345}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "number"}]},
    {"type": ["string", "null"], "maxLength": 5},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "properties": {"a": {"type": "number", "minimum": 0}, "b": {"const": 'x\n"y"'}}},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}, "required": ["when", "extra"]},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "exclusiveMinimum": 3}]},
    True,
]


def valid(value: Any, schema: Any, root: Any) -> bool:
    """The part of JSON Schema that the tests use, as plainly as can be."""
    if schema is True:
        return True
    if "$ref" in schema:
        return valid(value, root if schema["$ref"] == "#" else root["$defs"]["friend"], root)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return any(valid(value, one, root) for one in schema[union])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not any(isinstance(value, kinds[t]) if t in kinds else number and (t == "number" or value == int(value))
               for t in types):  # fmt: skip
        return False
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", [])) <= set(value) and all(
            valid(one, properties.get(key, others), root) for key, one in value.items()
        )
    if isinstance(value, list):
        if "prefixItems" in schema:
            return all(valid(one, kind, root) for one, kind in zip(value, schema["prefixItems"], strict=False))
        within = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        return within and all(valid(one, schema.get("items", True), root) for one in value)
    if isinstance(value, str):
        date = schema.get("format") != "date" or bool(re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-([0-2]\d)", value))
        return date and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9)
    if number:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -(10**99) - 1) + ("exclusiveMinimum" in schema))
        return bool(low <= value <= schema.get("maximum", 10**99))
    return True


def nested(depth: int) -> Any:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(toy.write_toy(tmp_path_factory.mktemp("schema") / "toy.gguf", n_ctx_train=512), n_threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_what_ends_with_stop_parses_and_validates(model: Model, schema: Any) -> None:
    stopped = 0
    for seed in range(6):
        completion = model.generate("once", json_schema=schema, seed=seed, temperature=1.5, max_tokens=300)
        if completion.finish_reason == "stop":
            stopped += 1
            assert valid(json.loads(completion.text), schema, schema), completion.text
    assert stopped or schema is True  # noise closes small documents sooner or later


def test_whole_numbers_between_two_bounds_are_exactly_those() -> None:
    for low, high in [(0, 0), (0, 9), (7, 123), (99, 101), (10, 99), (0, 1000), (345, 345), (128, 4096)]:
        pattern = re.compile("|".join(one.replace('"', "").replace(" ", "") for one in _between(low, high)))
        for value in range(5000):
            assert bool(pattern.fullmatch(str(value))) == (low <= value <= high), (low, high, value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a+"}, "at #: a grammar cannot express 'pattern'"),
        ({"type": "array", "uniqueItems": True}, "a grammar cannot express 'uniqueItems'"),
        (
            {"type": "object", "properties": {"a": {"type": "number", "maximum": 3}}},
            "/a: a grammar cannot express 'max",
        ),
        ({"type": "number", "minimum": 2}, "a 'minimum' of 2 for numbers"),
        ({"type": "integer", "multipleOf": 3}, "a grammar cannot express 'multipleOf'"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, r"no integer lies in 3\.\.2"),
        ({"type": "string", "format": "email"}, "a grammar cannot express 'format' 'email'; it can express date"),
        ({"type": "text"}, "'text' is not a JSON type"),
        (
            {"oneOf": [{"type": "string"}, {"type": "string"}]},
            "can express 'oneOf' only of schemas of different",
        ),
        ({"allOf": [{}, {}]}, "'allOf' of several schemas"),
        ({"not": {}}, "a grammar cannot express 'not'"),
        ({"$ref": "#/$defs/x"}, "'#/\\$defs/x' points to nothing"),
        ({"$ref": "http://x"}, "must point into this schema"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "'maxLength' 4 is below 'minLength' 5"),
        ({"type": "string", "maxLength": 10**6}, "more than the 2000 repetitions"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a' is required, and additional"),
        (False, "a schema is an object or true, found False"),
        ({"type": 5}, "at #: 'type' must be a type or a list of types, found 5"),
        ({"type": [{}]}, "'type' must be a type"),
        ({"const": 1, "type": "text"}, "'text' is not a JSON type"),
        ({"type": []}, "at #: "),
        ({"items": {"type": "object", "properties": [1]}}, r"at #/items: 'properties' must be an object, found \[1\]"),
        ({"type": "object", "properties": {5: {}}}, "'properties' must be an object"),
        ({"type": "object", "required": 5}, "'required' must be a list of strings, found 5"),
        ({"type": "object", "required": [5]}, "'required' must be a list of strings"),
        ({"type": "object", "required": [[]]}, "'required' must be a list of strings"),
        ({"enum": 5}, "'enum' must be a list, found 5"),
        ({"enum": {"a": 1}}, "'enum' must be a list"),
        ({"allOf": 5}, "'allOf' must be a list"),
        ({"allOf": {"a": {}}}, "'allOf' must be a list"),
        ({"prefixItems": 5}, "'prefixItems' must be a list"),
        ({"type": "string", "format": []}, r"'format' must be a string, found \[\]"),
        ({"type": "string", "minLength": None}, "'minLength' must be a number, found None"),
        ({"type": "integer", "minimum": []}, r"'minimum' must be a number, found \[\]"),
        ({"type": "integer", "minimum": float("inf")}, "'minimum' must be a number, found inf"),
        ({"type": "integer", "maximum": float("nan")}, "'maximum' must be a number, found nan"),
        ({"const": float("nan")}, "at #: JSON cannot express nan"),
        ({"const": "\ud800"}, "at #: JSON cannot express"),
        ({"properties": {"\ud800": {}}}, "JSON cannot express"),
        (nested(400), r"at #/items/.*\.\.\..*: schemas nest more than 150 deep"),
    ],
)
def test_keywords_that_no_grammar_can_enforce_are_refused_by_name(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grammar_of(schema)


def test_a_schema_may_nest_as_deep_as_the_bound() -> None:
    assert grammar_of(nested(149)).count("::=") > 149


def test_annotations_are_passed_over() -> None:
    noted = {"type": "boolean", "title": "T", "description": "D", "default": True, "x-order": 1}
    assert grammar_of(noted) == grammar_of({"type": "boolean"})


def test_a_schema_that_only_names_itself_is_refused_and_aborts_nothing(model: Model) -> None:
    with pytest.raises(ValueError, match="left recursion"):
        model.generate("once", json_schema={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})
