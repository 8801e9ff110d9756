"""An exception → the status and the body that clients expect: OpenAI's shape, or Anthropic's under ``/v1/messages``.

    raise refusal("suffix is not supported", param="suffix")      → 400 {"error": {"message": ..., "param": "suffix"}}

A client never sees a traceback: what nobody foresaw is logged, and answered with 500.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llamalite.errors import (
    ContextOverflowError,
    GenerationCancelled,
    GGUFError,
    LlamaliteError,
    ModelLoadError,
    OutOfMemoryError,
)
from llamalite.sampling import SamplingParams

_logger = logging.getLogger("llamalite.server")
RETRY_AFTER_S = 2
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip
_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)} | {
    "messages", "tools", "tool_choice", "response_format", "continue_final_message", "prompt", "input",
}  # fmt: skip
_ANTHROPIC_TYPES = {413: "request_too_large", 500: "api_error", 501: "api_error", 503: "overloaded_error"}


def refusal(
    message: str, *, status: int = 400, param: str | None = None, code: str | None = None, **more: Any
) -> HTTPException:
    """Return the exception that answers with `status` and an error of these fields, for the caller to raise."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return HTTPException(status, {"message": message, "param": param, "code": code} | more, headers)  # type: ignore[arg-type]


def as_http(error: BaseException) -> HTTPException:
    """Return `error` as the `HTTPException` that says what a client can do about it."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, ContextOverflowError):
        n_prompt, n_ctx = _numbers(str(error))
        kind = "exceed_context_size_error"  # llama-server's word; the code is OpenAI's
        return refusal(
            str(error), param="messages", code="context_length_exceeded", type=kind, n_prompt_tokens=n_prompt,
            n_ctx=n_ctx,
        )  # fmt: skip
    if type(error).__name__ == "QueueFullError":
        return refusal(str(error), status=503, code="queue_full")
    if isinstance(error, (OutOfMemoryError, ModelLoadError, GGUFError, FileNotFoundError)):
        return refusal(str(error), status=503, code="model_unavailable")
    if isinstance(error, GenerationCancelled):
        return refusal("the answer was ended: the server is stopping", status=503, code="cancelled")
    if isinstance(error, (ValueError, TypeError, LlamaliteError)):
        return refusal(str(error), param=_field(str(error)))
    _logger.error("a bug in llamalite, while answering a request", exc_info=error)
    return refusal(f"internal error: {type(error).__name__}", status=500, type="server_error")


def _invalid(error: ValidationError) -> HTTPException:
    """Return the first thing that is wrong with a body, with its place: ``messages.0.role: ...``."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return refusal(f"the body is not JSON: {first['msg'].partition(': ')[2] or first['msg']}")
    # Of a union, pydantic adds the type that it tried.
    place = [str(part) for part in first["loc"] if not re.fullmatch(r"(str|int|float|bool|\w+\[.*)", str(part))]
    where = ".".join(place)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return refusal(f"{where} is required", param=where, code="missing_required_parameter")
    found = "" if isinstance(first["input"], (dict, list)) else f", found {first['input']!r:.60}"
    return refusal(f"{where}: {message}{found}" if where else message, param=where or None, code="invalid_value")


def _numbers(text: str) -> tuple[int, int]:
    """Return the tokens of the prompt and the size of the context, which an overflow's message names."""
    n_prompt = re.search(r"has (\d+) tokens", text)
    n_ctx = re.search(r"context holds (\d+)", text)
    return int(n_prompt[1]) if n_prompt else 0, int(n_ctx[1]) if n_ctx else 0


def _field(message: str) -> str | None:
    """Return the field that a message of ours begins with, such as ``top_p must lie in 0..1``."""
    first = re.match(r"[a-z_]+", message)
    return first[0] if first and first[0] in _FIELDS else None


def error_body(error: HTTPException, *, anthropic: bool = False) -> dict[str, Any]:
    """Return the JSON body for `error`."""
    fields: dict[str, Any] = {"message": str(error.detail), "param": None, "code": None}
    if isinstance(error.detail, Mapping):
        fields = dict(error.detail)
    kind = fields.pop("type", None) or _TYPES.get(error.status_code, "server_error")
    if anthropic:
        kind = _ANTHROPIC_TYPES.get(error.status_code, _TYPES.get(error.status_code, "api_error"))
        return {"type": "error", "error": {"type": kind, "message": fields["message"]}}
    # llama-server's clients read the status here where OpenAI has a word or null.
    fields["code"] = fields["code"] or error.status_code
    return {"error": {"message": fields.pop("message"), "type": kind} | fields}


def error_response(error: BaseException, *, anthropic: bool = False) -> Response:
    """Return the response for `error`."""
    known = as_http(error)
    body = error_body(known, anthropic=anthropic)
    return JSONResponse(body, known.status_code, dict(known.headers or {}))
