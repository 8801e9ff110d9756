"""What requests have in common: how their types are checked, and how sampling fields become `SamplingParams`.

Unknown fields are ignored, since each client has its own; a value of a wrong type is always refused. The values' ranges
are those of `SamplingParams`, whose messages name the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from llamalite.model import Model
from llamalite.sampling import SamplingParams
from llamalite.server.errors import refusal

_DRAW_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED, which llama-server's clients send for "draw one"
_MAX_STOPS, _MAX_BIASES = 64, 4096

LogitBias = dict[str, float | bool] | list[tuple[int | str, float | bool]]


class Fields(BaseModel):
    """A request's body, or a part of it."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=Fields)


async def read_body(request: Request, kind: type[R]) -> R:
    """Return the body of `request` as `kind`; ``ValidationError`` names what is wrong with it."""
    return kind.model_validate_json(await request.body())


class SamplingFields(Fields):
    """The fields that say how tokens are chosen; names are OpenAI's and llama-server's."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None  # as vLLM calls it
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool = False
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None

    def sampling(self, model: Model, server: Mapping[str, Any], **more: Any) -> SamplingParams:
        """Return the parameters: these fields over the server's, over the model file's own; and `more`."""
        params = model.defaults.replace(**server)
        own: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }
        own |= {"presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty}
        own["repeat_penalty"] = self.repeat_penalty if self.repeat_penalty is not None else self.repetition_penalty
        own["repeat_last_n"] = self.repeat_last_n
        chosen: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        if self.top_k is not None and self.top_k < 0:  # llama-server's "all"
            chosen["top_k"] = 0
        if self.seed is not None:
            chosen["seed"] = None if self.seed in (-1, _DRAW_SEED) else self.seed % _DRAW_SEED
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MAX_STOPS:
            raise refusal(f"stop may hold at most {_MAX_STOPS} texts, found {len(stops)}", param="stop")
        if stops:
            chosen["stop"] = stops
        if self.logit_bias or self.ignore_eos:
            chosen["logit_bias"] = self._biases(model)
        if self.grammar:
            chosen["grammar"] = self.grammar
        if self.json_schema is not None:
            chosen["json_schema"] = self.json_schema
        return params.replace(**chosen, **more)

    def _biases(self, model: Model) -> dict[int, float]:
        """Return token id → bias; a text stands for all of its tokens, and false forbids them."""
        given = self.logit_bias or {}
        pairs = list(given.items()) if isinstance(given, dict) else given
        if len(pairs) > _MAX_BIASES:
            raise refusal(f"logit_bias may hold at most {_MAX_BIASES} tokens, found {len(pairs)}", param="logit_bias")
        biases: dict[int, float] = {}
        for key, value in pairs:
            bias = -math.inf if value is False else float(value)
            is_id = isinstance(key, int) or (key.isascii() and key.isdecimal())
            if isinstance(key, str) and is_id and len(key) > 9:
                raise refusal(f"logit_bias names token {key:.40}, which the vocabulary does not have")
            tokens = [int(key)] if is_id else model.tokenize(str(key), add_special=False)
            biases |= dict.fromkeys(tokens, bias)
        if self.ignore_eos:
            native = model.native
            biases |= {token: -math.inf for token in range(native.n_vocab) if native.is_eog(token)}
        return biases


class ResponseFormat(Fields):
    """OpenAI's ``response_format``: text, any JSON object, or JSON by a schema."""

    type: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    json_schema: dict[str, Any] | None = None

    def schema_to_match(self) -> Mapping[str, Any] | None:
        """Return the schema that the answer must match, None for any text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return self.schema_ if self.schema_ is not None else {"type": "object"}
        if self.type == "json_schema":
            schema = (self.json_schema or {}).get("schema", self.schema_)
            if not isinstance(schema, dict):
                found = f"found {schema!r:.60}"
                raise refusal(f"response_format.json_schema.schema must be an object, {found}", param="response_format")
            return schema
        known = "'text', 'json_object' or 'json_schema'"
        raise refusal(f"response_format.type must be {known}, found {self.type!r:.60}", param="response_format")


def room_for(model: Model, n_prompt: int, wanted: int | None) -> int | None:
    """Return how many tokens an answer to a prompt of `n_prompt` tokens may have, at most `wanted`.

    A prompt that leaves no room is for the model to refuse, with the numbers.
    """
    if wanted is None or wanted < 0:
        return None
    room = model.n_ctx - n_prompt
    return min(wanted, room) if room > 0 else None
