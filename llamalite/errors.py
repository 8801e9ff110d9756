"""Every exception that llamalite raises of its own.

    LlamaliteError
    ├── CheckpointError            unreadable, truncated, inconsistent, missing shard
    │   ├── UnsupportedArchitectureError
    │   └── UnsafeCheckpointError  a pickle that wants to run code
    ├── GGUFError                  a GGUF file that is not what it says
    ├── HubError                   gated, incomplete, refused
    │   ├── RepositoryNotFoundError
    │   └── HubUnreachableError
    ├── VocabularyError            a tokenizer that cannot be carried over as it is
    ├── QuantizationError          a tensor that its type cannot hold
    ├── VerificationError          a converted file that differs from its checkpoint
    ├── ModelLoadError             says what llama.cpp said
    ├── OutOfMemoryError           foreseen, with the numbers
    ├── TemplateError              a chat template that cannot be rendered
    ├── ContextOverflowError       more tokens than the context holds
    ├── GenerationCancelled        stopped by the caller
    └── EvaluationError            a measurement that cannot be made

A missing file stays ``FileNotFoundError`` and a caller's mistake stays ``ValueError``. A message has three parts: what
happened, what was found against what was expected, and what to do next.
"""

from __future__ import annotations


class LlamaliteError(Exception):
    """The root of everything that llamalite raises of its own."""


class CheckpointError(LlamaliteError):
    """A checkpoint that is unreadable, truncated, inconsistent or incomplete."""


class UnsupportedArchitectureError(CheckpointError):
    """A checkpoint of a model family, or in a quantized form, that the converter does not know."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that holds something other than tensors; nothing of it has run."""


class GGUFError(LlamaliteError):
    """A GGUF file whose bytes contradict its own header, or that lacks what a model needs."""


class HubError(LlamaliteError):
    """A repository on the hub that is gated, missing or out of reach."""


class RepositoryNotFoundError(HubError):
    """The hub has no repository of that name, or does not show it to this account."""


class HubUnreachableError(HubError):
    """The hub does not answer, and the cache does not have what was asked for."""


class VocabularyError(LlamaliteError):
    """A tokenizer that llama.cpp cannot reproduce, or whose files contradict each other."""


class QuantizationError(LlamaliteError):
    """A tensor that cannot be held in the type asked for: NaN, overflow, or a missing importance matrix."""


class VerificationError(LlamaliteError):
    """A GGUF file that differs from the checkpoint it is said to come from."""


class ModelLoadError(LlamaliteError):
    """A model that llama.cpp refused; the message is llama.cpp's own."""


class OutOfMemoryError(LlamaliteError):
    """A request that would not fit into memory, foreseen before anything was allocated."""


class TemplateError(LlamaliteError):
    """A chat template that is broken, refuses the messages, or reaches outside its sandbox."""


class ContextOverflowError(LlamaliteError):
    """A prompt and answer that need more tokens than the context holds."""


class GenerationCancelled(LlamaliteError):  # noqa: N818 - named like asyncio.CancelledError's sense, not a fault
    """Generation that the caller stopped."""


class EvaluationError(LlamaliteError):
    """A measurement that cannot be made from what was given."""
