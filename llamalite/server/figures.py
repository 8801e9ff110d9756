"""Usage and timings of an answer, in the shapes that clients know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamalite.generation.completion import Totals
from llamalite.model import Model
from llamalite.sampling import SamplingParams


def usage(all_totals: Sequence[Totals]) -> dict[str, Any]:
    """Return OpenAI's ``usage`` for answers to one prompt, which counts once."""
    n_prompt = all_totals[0].n_prompt
    n_generated = sum(totals.n_generated for totals in all_totals)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": all_totals[0].n_cached},
    }


def usage_of_prompts(all_totals: Sequence[Totals]) -> dict[str, Any]:
    """Return ``usage`` for answers to several prompts, which all count."""
    n_prompt = sum(totals.n_prompt for totals in all_totals)
    return usage(all_totals) | {
        "prompt_tokens": n_prompt,
        "total_tokens": n_prompt + sum(totals.n_generated for totals in all_totals),
        "prompt_tokens_details": {"cached_tokens": sum(totals.n_cached for totals in all_totals)},
    }


def timings(totals: Totals) -> dict[str, Any]:
    """Return llama-server's ``timings`` (``result_timings::to_json``, tools/server/server-task.cpp)."""
    n_read, n_generated = totals.n_prompt - totals.n_cached, totals.n_generated
    prompt_ms, generation_ms = 1000 * totals.prompt_s, 1000 * totals.generation_s
    shown = {
        "cache_n": totals.n_cached,
        "prompt_n": n_read,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_read if n_read else 0.0,
        "prompt_per_second": totals.prompt_tok_per_s,
        "predicted_n": n_generated,
        "predicted_ms": generation_ms,
        "predicted_per_token_ms": generation_ms / n_generated if n_generated else 0.0,
        "predicted_per_second": totals.tok_per_s,
    }
    if totals.n_drafted:
        shown |= {"draft_n": totals.n_drafted, "draft_n_accepted": totals.n_accepted}
    return shown


def stopping_word(model: Model, tokens: Sequence[int], params: SamplingParams) -> str:
    """Return which of the stop texts ended an answer of `tokens`, "" if none did."""
    if not params.stops:
        return ""
    written = model.native.detokenize(tokens).decode("utf-8", "replace")
    return next((stop for stop in params.stops if stop in written), "")
