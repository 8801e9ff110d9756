"""Takes a conversation out of a context, and puts one back, between two steps of an engine.

session = engine.call(lambda: saved(engine.cache, context, tokens, facts))
engine.call(lambda: restore(engine, context, session, path))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamalite.errors import ContextOverflowError, LlamaliteError
from llamalite.generation.engine import Engine
from llamalite.generation.sequence_cache import SequenceCache
from llamalite.generation.session_file import SavedSession
from llamalite.native.context import NativeContext


def saved(
    cache: SequenceCache, context: NativeContext, tokens: Sequence[int] | None, facts: dict[str, Any]
) -> SavedSession:
    """Return the sequence that holds the longest beginning of `tokens`, or without them the one that was used last.

    Raises ``LlamaliteError`` if the context holds nothing of `tokens`, or only under LoRA scales other than the model's
    own: a session does not say which.
    """
    sequence = cache.most_recent() if tokens is None else cache.longest([*tokens, -1])[0]
    if tokens and sequence is None:
        raise LlamaliteError(
            "the context holds nothing of these tokens, or only as read with other lora_scales: generate with the "
            "model's own first"
        )
    if sequence is not None and sequence.adapters is not None:
        raise LlamaliteError("this conversation was read with lora_scales of its own, which a session does not keep")
    if sequence is None or not sequence.tokens:
        return SavedSession(facts, [], np.empty(0, np.uint8))
    return SavedSession(facts, list(sequence.tokens), context.state(sequence.id))


def restore(engine: Engine, context: NativeContext, session: SavedSession, path: Path) -> None:
    """Put `session`, which was read from `path`, into a sequence that nobody uses.

    Raises ``ContextOverflowError`` if there is no room for it, and ``LlamaliteError`` if its state is not that of its
    tokens: the context is then emptied, since a state with forged positions cannot be removed in another way
    (``llama_kv_cache::seq_rm``, llama-kv-cache.cpp).
    """
    cache, n = engine.cache, len(session.tokens)
    if n > cache.n_ctx:
        raise ContextOverflowError(
            f"{path} holds {n} tokens, and the context has room for {cache.n_ctx}: load the model with a larger n_ctx"
        )
    sequence = cache.empty(n)
    if sequence is None:
        raise ContextOverflowError(
            f"{path} holds {n} tokens, and running generations leave room for {cache.n_ctx - cache.n_busy()}: "
            "try again when they have ended"
        )
    if not session.tokens:
        return
    try:
        context.model.check_tokens(session.tokens)
        context.set_state(sequence.id, session.state)
        first, last = context.seq_pos_min(sequence.id), context.seq_pos_max(sequence.id)
        if last != n - 1 or first < 0:
            raise LlamaliteError(f"it goes from position {first} to {last}")
    except (LlamaliteError, ValueError) as error:  # a forged file, since its digest is right
        engine.start_over()
        raise LlamaliteError(
            f"{path} does not hold the state of its {n} tokens ({error}): begin a new session"
        ) from None
    cache.extend(sequence, session.tokens)
    cache.release(sequence)
