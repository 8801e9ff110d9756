"""What the command line decides about the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BODY_BYTES = 32 << 20  # of one request: some million tokens of text
MAX_CHOICES = 32  # answers to one request (`n`)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    - `api_keys`: the keys, one of which each request must carry; none: no request must.
    - `hosts`: names by which the server may be addressed, beside localhost and addresses of numbers.
    - `cors`: origins whose pages may ask; ``*`` is any.
    - `n_parallel`: how many answers a model gives at once, as shown in figures.
    - `sampling`: fields of `SamplingParams` that hold where a request and the model's file say nothing.
    - `has_page`: whether ``GET /`` is a page to chat on.
    - `pooling`: how a text's vector comes from its tokens'; None is as the model's file says.
    - `is_verbose`: whether chats tell the prompt that they became, as ``verbose`` in a request does.
    - `shows_slots`: whether ``GET /slots`` tells what runs.
    """

    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    n_parallel: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    has_page: bool = True
    shows_slots: bool = False
    pooling: str | None = None
    is_verbose: bool = False
    body_timeout_s: float = 60.0
