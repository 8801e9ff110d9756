"""`SamplingParams`: how a generation chooses tokens, when it ends, and what it reports.

    >>> params = SamplingParams(temperature=0.0, max_tokens=32)
    >>> params.replace(stop=["\\n\\n"]).stop
    ('\\n\\n',)
    >>> SamplingParams(top_p=2.0)
    Traceback (most recent call last):
    ...
    ValueError: top_p must lie in 0..1, found 2.0

This module only checks values; `llamalite.native.sampler` makes llama.cpp's samplers from them. The defaults are
llama.cpp's (``common_params_sampling``, common/common.h), unless a model's file has its own under
``general.sampling.*``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Speculation = Literal["off", "lookup", "draft"]


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments, for type checkers."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | int | Sequence[str | int]
    logprobs: int | None
    grammar: str | None
    json_schema: Mapping[str, Any] | None
    reproducible: bool
    speculate: Speculation | None
    priority: int
    lora_scales: Sequence[float] | None


_MAX_BIAS = 1e30  # added to a logit, as good as any larger number, and within float32
_FROM_FILE = {  # llama_model_meta_key_str (llama-model.cpp) → our name
    "general.sampling.temp": ("temperature", float),
    "general.sampling.top_k": ("top_k", int),
    "general.sampling.top_p": ("top_p", float),
    "general.sampling.min_p": ("min_p", float),
    "general.sampling.penalty_repeat": ("repeat_penalty", float),
    "general.sampling.penalty_last_n": ("repeat_last_n", int),
}


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one generation; ``ValueError`` names a field whose value is wrong, and its range.

    - `max_tokens`: the most tokens to generate; None goes on until the model ends its answer or the context is full.
    - `temperature`: the divisor of the logits; 0 always takes the likeliest token.
    - `top_k` (0: off), `top_p` (1: off), `min_p` (0: off): which tokens remain candidates, applied in this order.
    - `repeat_penalty` (1: off), `presence_penalty`, `frequency_penalty` (0: off): for tokens among the last
      `repeat_last_n`, those of the prompt included.
    - `logit_bias`: token id → a number to add to its logit; ``-inf`` forbids the token.
    - `seed`: None draws one, which the totals report.
    - `stop`: strings, and ids of tokens, that end the generation; they are not part of the answer. A string also
      matches the spelling of control tokens, such as ``<|im_end|>``, which no answer shows.
    - `logprobs`: a number n reports the log-probabilities of each token and of the n likeliest in its place, under the
      model's own distribution (before temperature, penalties and bias); None reports nothing.
    - `grammar` (GBNF) or `json_schema`: what the text must match. With a schema, an answer whose finish reason is
      "stop" is valid JSON and matches it.
    - `reproducible`: start with an empty context and decode nothing else alongside, so that the same call gives the
      same bytes, whatever ran before. Without a `seed`, the seed is 0.
    - `speculate`: guess tokens and check several in one decode, if that is faster
      (`llamalite.generation.speculation`). "lookup" guesses what followed the last tokens when they occurred before,
      "draft" asks the model's draft model. None is "draft" if the model has one, else "off". Only a generation that
      runs alone is guessed ahead, and none that is `reproducible`.
    - `priority`: when not all can run at once, a higher one goes first; among equals, who came first.
    - `lora_scales`: the scale of each of the model's LoRA adapters, in their order; None keeps the model's own.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | int | Sequence[str | int] = ()
    logprobs: int | None = None
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    reproducible: bool = False
    speculate: Speculation | None = None
    priority: int = 0
    lora_scales: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, 0, 2**31 - 1)
        self._check_number("temperature", 0.0, 100.0)
        check_whole("top_k", self.top_k, 0, 2**31 - 1)
        self._check_number("top_p", 0.0, 1.0)
        self._check_number("min_p", 0.0, 1.0)
        self._check_number("repeat_penalty", 0.01, 100.0)
        check_whole("repeat_last_n", self.repeat_last_n, 0, 2**20)
        self._check_number("presence_penalty", -100.0, 100.0)
        self._check_number("frequency_penalty", -100.0, 100.0)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**32 - 2)  # 2**32 - 1 means "draw one" (LLAMA_DEFAULT_SEED)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, 1000)
        if self.speculate not in (None, "off", "lookup", "draft"):
            raise ValueError(f"speculate must be 'off', 'lookup', 'draft' or None, found {self.speculate!r}")
        check_whole("priority", self.priority, -(2**31), 2**31 - 1)
        if self.lora_scales is not None:
            scales = self.lora_scales
            if not isinstance(scales, (list, tuple)) or not all(is_finite_number(scale) for scale in scales):
                raise ValueError(f"lora_scales must be a list of numbers, found {scales!r}")
            object.__setattr__(self, "lora_scales", tuple(float(scale) for scale in scales))
        stop = (self.stop,) if isinstance(self.stop, (str, int)) else self.stop
        if not isinstance(stop, (list, tuple)) or not all(_is_stop(one) for one in stop):
            raise ValueError(f"stop must hold strings that are not empty, and token ids, found {self.stop!r}")
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias maps token ids to numbers, found {self.logit_bias!r}")
        for token, bias in self.logit_bias.items():
            if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                raise ValueError(f"logit_bias maps token ids (0 and up) to numbers, found the key {token!r}")
            if not isinstance(bias, (int, float)) or not (bias == -math.inf or abs(bias) <= _MAX_BIAS):
                raise ValueError(f"logit_bias of token {token} must be a number or -inf, found {bias!r}")
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("grammar and json_schema exclude each other: give one")
        if not isinstance(self.grammar, (str, type(None))):
            raise ValueError(f"grammar must be a string (GBNF), found {self.grammar!r}")
        if self.grammar is not None and not self.grammar.strip():
            raise ValueError("grammar is empty: give None for no grammar")
        if self.json_schema is not None and self.stop:
            raise ValueError("stop and json_schema exclude each other: a stop text would cut the JSON short")

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{name} must lie in {low:g}..{high:g}, found {value!r}")

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings of `stop`."""
        return tuple(one for one in self._all_stops if isinstance(one, str))

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The token ids of `stop`."""
        return frozenset(one for one in self._all_stops if isinstance(one, int))

    @property
    def _all_stops(self) -> Sequence[str | int]:
        return (self.stop,) if isinstance(self.stop, (str, int)) else self.stop

    @property
    def has_penalties(self) -> bool:
        return self.repeat_last_n > 0 and (
            self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with `changes`; ``TypeError`` names a field that does not exist, and lists those that do."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise TypeError(f"unknown parameter {unknown[0]!r}; known are {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> SamplingParams:
        """Return the parameters that a file has under ``general.sampling.*``, and the defaults for the others.

        Values outside our ranges are ignored, so that they do not make the file unusable.
        """
        params = cls()
        for key, (name, kind) in _FROM_FILE.items():
            if key in metadata:
                try:
                    params = params.replace(**{name: kind(float(metadata[key]))})
                except (ValueError, OverflowError):
                    continue
        return params


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise ``ValueError`` unless `value`, which the caller knows as `name`, is a whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number in {low}..{high}, found {value!r}")


def is_finite_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_stop(one: object) -> bool:
    return (isinstance(one, str) and one != "") or (isinstance(one, int) and not isinstance(one, bool) and one >= 0)
