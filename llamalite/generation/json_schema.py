"""Turns a JSON Schema into a GBNF grammar: text that the grammar accepts is JSON that matches the schema.

    >>> print(grammar_of({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}))
    root ::= "{" ws "\\"n\\"" ws ":" ws integer root-1 ws "}"
    root-1 ::= ""
    ws ::= | " " | "\\n" [ \\t]{0,20}
    integer ::= "-"? ("0" | [1-9] [0-9]{0,15})

The grammar may accept less than the schema (objects have their declared properties, in the declared order, and no
others) and never accepts more: a keyword that a grammar cannot express, such as `pattern` or `uniqueItems`, raises a
``ValueError`` that names it and its place. Annotations (`title`, `description`, `default`, ...) are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_ANNOTATIONS = frozenset(
    "$schema $id $comment $anchor $defs definitions title description default examples example deprecated readOnly "
    "writeOnly discriminator".split()
)
_OF_TYPE = {  # each type's keywords that a grammar can express
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum"},
    "boolean": set(),
    "null": set(),
}
_IMPLIED_TYPE = {  # the type that a keyword implies where "type" is missing
    "properties": "object", "required": "object", "additionalProperties": "object", "items": "array",
    "prefixItems": "array", "minItems": "array", "maxItems": "array", "minLength": "string", "maxLength": "string",
    "format": "string", "minimum": "number", "maximum": "number",
}  # fmt: skip
_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'  # only days that every month has
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? ("Z" | [+-] "0" [0-9] ":" [0-5] [0-9])'
)
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_SHARED_RULES = {
    "ws": '| " " | "\\n" [ \\t]{0,20}',  # bounded: a small model may write blanks forever
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u00" [01] [0-9a-f])',
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": '"-"? positive',
    "positive": '("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": 'string | number | boolean | null | any-object | any-array',
    "any-object": '"{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"',
    "any-array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}  # fmt: skip
_USES = {
    "string": ["char"], "number": ["positive"], "any-object": ["ws", "string", "value"], "any-array": ["ws", "value"],
    "value": ["string", "number", "boolean", "null", "any-object", "any-array"],
}  # fmt: skip
_MAX_REPEATED = 2000
_MAX_DEPTH = 150  # of nested schemas: Python allows a thousand nested calls, and each schema takes up to four
_SHAPES = {  # what a keyword's value must be
    "type": "a type or a list of types", "properties": "an object", "required": "a list of strings",
    "format": "a string",
    **dict.fromkeys(("enum", "allOf", "prefixItems"), "a list"),
    **dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum".split(), "a number"),
    **dict.fromkeys("minLength maxLength minItems maxItems".split(), "a number"),
}  # fmt: skip


def grammar_of(schema: Mapping[str, Any] | bool) -> str:
    """Return the GBNF grammar of `schema`; ``ValueError`` names a keyword that a grammar cannot express."""
    return _Writer(schema).text()


class _Writer:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._shared: dict[str, None] = {}
        self._refs: dict[str, str] = {}
        self._depth = 0
        self._rules["root"] = ""
        self._rules["root"] = self._visit(schema, "root", "#")

    def text(self) -> str:
        rules = self._rules | {name: _SHARED_RULES[name] for name in self._shared}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items())

    def _use(self, name: str) -> str:
        if name not in self._shared:
            self._shared[name] = None
            for other in _USES.get(name, []):
                self._use(other)
        return name

    def _rule(self, body: str, near: str) -> str:
        """Return the name of a new rule for `body`. With rules, a deep schema does not nest brackets."""
        number = 1
        while f"{near}-{number}" in self._rules:
            number += 1
        name = f"{near}-{number}"
        self._rules[name] = body
        return name

    def _visit(self, schema: Any, name: str, at: str) -> str:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            _refuse(at, f"schemas nest more than {_MAX_DEPTH} deep")
        body = self._body(schema, name, at)
        self._depth -= 1
        return body

    def _body(self, schema: Any, name: str, at: str) -> str:
        if schema is True or schema == {}:
            return self._use("value")
        if not isinstance(schema, Mapping):
            _refuse(at, f"a schema is an object or true, found {schema!r:.60}")
        _check_shapes(schema, at)
        keys = {key for key in schema if key not in _ANNOTATIONS and not key.startswith("x-")}
        if "$ref" in keys:
            return self._ref(schema["$ref"], _alone(keys, "$ref", at), at)
        for union in ("anyOf", "oneOf"):
            if union in keys:
                return self._union(schema[union], name, f"{at}/{_alone(keys, union, at)}")
        if "allOf" in keys:
            if len(schema["allOf"]) != 1:
                _refuse(at, "a grammar cannot express 'allOf' of several schemas")
            return self._visit(schema["allOf"][0], name, f"{at}/{_alone(keys, 'allOf', at)}/0")
        if "const" in keys or "enum" in keys:
            return self._constants(schema, keys, at)
        types = schema.get("type", [_IMPLIED_TYPE[key] for key in sorted(keys) if key in _IMPLIED_TYPE][:1])
        types = [types] if isinstance(types, str) else list(types)
        if not types:
            _refuse(at, f"a grammar cannot express {sorted(keys)[0]!r}")
        allowed = set().union(*(_OF_TYPE[json_type] for json_type in types))
        # Keywords of other types are ignored, as in validators.
        ignored = set().union(*_OF_TYPE.values()) - allowed
        if "number" in types:
            ignored -= {"exclusiveMinimum", "exclusiveMaximum", "maximum"}
        for key in sorted(keys - {"type"} - allowed - ignored):
            _refuse(at, f"a grammar cannot express {key!r}")
        return _any_of([getattr(self, f"_{json_type}")(schema, name, at) for json_type in types])

    def _ref(self, ref: Any, _key: str, at: str) -> str:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            _refuse(at, f"'$ref' must point into this schema (#/...), found {ref!r}")
        if ref == "#":
            return "root"
        if ref not in self._refs:
            target: Any = self._schema
            for part in ref[2:].split("/"):
                part = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, Mapping) or part not in target:
                    _refuse(at, f"'$ref' {ref!r} points to nothing")
                target = target[part]
            name = self._refs[ref] = self._rule("", f"ref-{len(self._refs)}")
            self._rules[name] = self._visit(target, name, ref)
        return self._refs[ref]

    def _union(self, schemas: Any, name: str, at: str) -> str:
        if not isinstance(schemas, Sequence) or isinstance(schemas, str) or not schemas:
            _refuse(at, f"a list of schemas is expected, found {schemas!r:.60}")
        if at.endswith("oneOf"):
            types = [schema.get("type") if isinstance(schema, Mapping) else None for schema in schemas]
            have_types = all(isinstance(json_type, str) for json_type in types)
            if not have_types or len(set(types)) < len(types) or {"integer", "number"} <= set(types):
                _refuse(at, "a grammar can express 'oneOf' only of schemas of different types: use 'anyOf'")
        return _any_of([self._visit(schema, name, f"{at}/{i}") for i, schema in enumerate(schemas)])

    def _constants(self, schema: Mapping[str, Any], keys: set[str], at: str) -> str:
        left = keys - {"const", "enum", "type"}
        if left:
            _refuse(at, f"a grammar cannot express {sorted(left)[0]!r} beside 'const' or 'enum'")
        values = [schema["const"]] if "const" in keys else list(schema["enum"])
        types = schema.get("type", list(_OF_TYPE))
        types = [types] if isinstance(types, str) else types
        values = [value for value in values if any(_has_type(value, json_type) for json_type in types)]
        if not values:
            _refuse(at, "no value of 'enum' has the schema's type")
        return _any_of([_json_literal(value, at) for value in values])

    def _boolean(self, _schema: Any, _name: str, _at: str) -> str:
        return self._use("boolean")

    def _null(self, _schema: Any, _name: str, _at: str) -> str:
        return self._use("null")

    def _number(self, schema: Mapping[str, Any], _name: str, at: str) -> str:
        low = schema.get("minimum")
        if low is None:
            return self._use("number")
        if low != 0:
            _refuse(at, f"a grammar cannot express a 'minimum' of {low} for numbers (it can express 0)")
        return self._use("positive")

    def _integer(self, schema: Mapping[str, Any], _name: str, at: str) -> str:
        bounds = [schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]
        if all(bound is None for bound in bounds):
            return self._use("integer")
        if any(bound is not None and (isinstance(bound, bool) or bound != int(bound)) for bound in bounds):
            _refuse(at, "the bounds of an integer must be whole numbers")
        most = 10**16 - 1
        low = max(-most, *(int(b) + more for b, more in ((bounds[0], 0), (bounds[1], 1)) if b is not None), -most)
        high = min(most, *(int(b) - more for b, more in ((bounds[2], 0), (bounds[3], 1)) if b is not None), most)
        if low > high:
            _refuse(at, f"no integer lies in {low}..{high}")
        parts = []
        if low < 0:
            parts.append(f'"-" ({_any_of(_between(max(1, -high), -low))})')
        if high >= 0:
            parts += _between(max(0, low), high)
        return _any_of(parts)

    def _string(self, schema: Mapping[str, Any], _name: str, at: str) -> str:
        if "format" in schema:
            form = schema["format"]
            if form not in _FORMATS or {"minLength", "maxLength"} & set(schema):
                _refuse(at, f"a grammar cannot express 'format' {form!r}; it can express {', '.join(_FORMATS)}")
            return f'"\\"" {_FORMATS[form]} "\\""'
        if not {"minLength", "maxLength"} & set(schema):
            return self._use("string")
        low, high = _sizes(schema, "minLength", "maxLength", at)
        return f'"\\"" {self._use("char")}{{{low},{high}}} "\\""'

    def _array(self, schema: Mapping[str, Any], name: str, at: str) -> str:
        self._use("ws")
        low, high = _sizes(schema, "minItems", "maxItems", at)
        if "prefixItems" in schema:
            items = [self._visit(item, name, f"{at}/prefixItems/{i}") for i, item in enumerate(schema["prefixItems"])]
            if low > len(items) or (high != "" and int(high) < len(items)):
                _refuse(at, "a grammar cannot express 'prefixItems' with another number of items")
            return self._rule(f'"[" ws {_SEPARATOR.join(f"({item})" for item in items)} ws "]"', name)
        if high == "0":
            return '"[" ws "]"'
        item = self._rule(self._visit(schema.get("items", True), name, f"{at}/items"), name)
        more = f'(ws "," ws {item}){{{max(0, low - 1)},{"" if high == "" else int(high) - 1}}}'
        body = f"{item} {more}"
        return self._rule(f'"[" ws {body if low else f"({body})?"} ws "]"', name)

    def _object(self, schema: Mapping[str, Any], name: str, at: str) -> str:
        self._use("ws")
        others = schema.get("additionalProperties", True)
        properties = dict(schema.get("properties", {}))
        required = list(schema.get("required", []))
        for key in required:
            if key not in properties:
                if others is False:
                    _refuse(at, f"{key!r} is required, and additionalProperties forbids it")
                properties[key] = others
        if not properties:
            if others is False or "properties" in schema:
                return '"{" ws "}"'
            self._use("string")
            pair = f'string ws ":" ws {self._rule(self._visit(others, name, f"{at}/additionalProperties"), name)}'
            return self._rule(f'"{{" ws ({pair} (ws "," ws {pair})*)? ws "}}"', name)
        pairs = {}
        for key, schema_of_key in properties.items():
            body = self._visit(schema_of_key, name, f"{at}/properties/{key}")
            pairs[key] = f'{_json_literal(key, at)} ws ":" ws {_group(body)}'
        # From the last property to the first: `rest` matches the properties that may follow, each after a comma, where
        # optional ones may be left out. `beginnings` match the properties that may come first, with what follows.
        rest, beginnings, keys = '""', [], list(pairs)
        for key in reversed(keys):
            after = self._rule(rest, name)
            beginnings.append(f"{pairs[key]} {after}")
            rest = f'ws "," ws {pairs[key]} {after}'
            if key in required:
                beginnings = beginnings[-1:]
            else:
                rest = f"{after} | {rest}"
        inner = _group(_any_of(list(reversed(beginnings))))
        if not any(key in required for key in keys):
            inner = f"({inner})?"
        body = f'"{{" ws {inner} ws "}}"'
        return body if name == "root" and at == "#" else self._rule(body, name)


_SEPARATOR = ' ws "," ws '


def _refuse(at: str, why: str) -> NoReturn:
    place = at if len(at) < 200 else f"{at[:100]}...{at[-80:]}"
    raise ValueError(f"json_schema, at {place}: {why}".encode("utf-8", "backslashreplace").decode())


def _check_shapes(schema: Mapping[Any, Any], at: str) -> None:
    for key, value in schema.items():
        if not isinstance(key, str):
            _refuse(at, f"a keyword is a string, found {key!r:.60}")
        shape = _SHAPES.get(key)
        if shape is not None and not _has_shape(value, shape):
            _refuse(at, f"{key!r} must be {shape}, found {value!r:.60}")
    types = schema.get("type", [])
    unknown = [name for name in ([types] if isinstance(types, str) else types) if name not in _OF_TYPE]
    if unknown:
        _refuse(at, f"{unknown[0]!r} is not a JSON type")


def _has_shape(value: Any, shape: str) -> bool:
    if shape == "a string":
        return isinstance(value, str)
    if shape == "a number":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if shape == "an object":
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if shape == "a type or a list of types" and isinstance(value, str):
        return True
    is_any_list = shape == "a list"
    return isinstance(value, (list, tuple)) and (is_any_list or all(isinstance(item, str) for item in value))


def _alone(keys: set[str], key: str, at: str) -> str:
    if len(keys) > 1:
        _refuse(at, f"a grammar cannot express {sorted(keys - {key})[0]!r} beside {key!r}")
    return key


def _any_of(parts: list[str]) -> str:
    return " | ".join(dict.fromkeys(parts))


def _group(body: str) -> str:
    return f"({body})" if "|" in body else body


def _json_literal(value: Any, at: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # fails on a lone surrogate
    except (TypeError, ValueError, RecursionError) as error:
        _refuse(at, f"JSON cannot express {value!r:.60}: {error}")
    return _literal(text)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _has_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    return kind != "boolean" and isinstance(value, kinds[kind])  # type: ignore[arg-type]


def _sizes(schema: Mapping[str, Any], low_key: str, high_key: str, at: str) -> tuple[int, str]:
    low, high = schema.get(low_key, 0), schema.get(high_key)
    for value in (low, high):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            _refuse(at, f"{low_key!r} and {high_key!r} must be whole numbers, found {value!r}")
        if value is not None and value > _MAX_REPEATED:
            _refuse(at, f"{value} is more than the {_MAX_REPEATED} repetitions that a grammar can express")
    if high is not None and high < low:
        _refuse(at, f"{high_key!r} {high} is below {low_key!r} {low}")
    return low, "" if high is None else str(high)


def _between(low: int, high: int) -> list[str]:
    """Return patterns that match the whole numbers low..high (0 <= low <= high), without leading zeros.

    >>> _between(7, 123)
    ['[7-9]', '[1-9] [0-9]', '"1" ([0-1] [0-9] | "2" [0-3])']
    """
    parts = []
    for n in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 0 if n == 1 else 10 ** (n - 1))
        parts.append(_same_length(str(first), str(min(high, 10**n - 1))))
    return parts


def _same_length(low: str, high: str) -> str:
    if not low:
        return ""
    n = len(low) - 1
    digits = "".join(" [0-9]" for _ in range(n))
    a, b = int(low[0]), int(high[0])
    low_ends_in_zeros, high_ends_in_nines = low[1:] == "0" * n, high[1:] == "9" * n
    if a == b and not (low_ends_in_zeros and high_ends_in_nines):
        return f'"{a}" {_group(_same_length(low[1:], high[1:]))}'
    parts = []
    if not low_ends_in_zeros:
        parts.append(f'"{a}" {_group(_same_length(low[1:], "9" * n))}')
    first, last = a + (not low_ends_in_zeros), b - (not high_ends_in_nines)
    if first <= last:
        parts.append((f"[{first}-{last}]" if first < last else f'"{first}"') + digits)
    if not high_ends_in_nines:
        parts.append(f'"{b}" {_group(_same_length("0" * n, high[1:]))}')
    return " | ".join(parts)
