"""Every exception class of llamalite.

    LlamaliteError
    ├── CheckpointError            unreadable, truncated, inconsistent, missing shard
    │   ├── UnsupportedArchitectureError
    │   └── UnsafeCheckpointError  a pickle that wants to run code
    ├── GGUFError                  a GGUF file that contradicts itself
    ├── HubError                   gated, incomplete, refused
    │   ├── RepositoryNotFoundError
    │   └── HubUnreachableError
    ├── VocabularyError            a tokenizer that llama.cpp cannot reproduce
    ├── QuantizationError          a tensor that its type cannot store
    ├── VerificationError          a converted file that differs from its checkpoint
    ├── ModelLoadError             refused by llama.cpp, with its message
    ├── OutOfMemoryError           raised before allocating, with the numbers
    ├── TemplateError              a chat template that cannot be rendered
    ├── ContextOverflowError       more tokens than the context holds
    ├── QueueFullError             more generations than may wait
    ├── GenerationCancelled        a generation or measurement that was stopped
    └── EvaluationError            a measurement that cannot be made

A missing file is ``FileNotFoundError`` and a caller's mistake is ``ValueError``, as in Python itself. A message has
three parts: what happened, what was found and what was expected, and what to do next.
"""

from __future__ import annotations


class LlamaliteError(Exception):
    """The base class of all exceptions of llamalite."""


class CheckpointError(LlamaliteError):
    """A checkpoint that is unreadable, truncated, inconsistent or incomplete."""


class UnsupportedArchitectureError(CheckpointError):
    """A checkpoint of a model family, or in a quantized form, that the converter does not support."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle that contains something other than tensors; none of its code has run."""


class GGUFError(LlamaliteError):
    """A GGUF file whose content contradicts its header, or that lacks something a model needs."""


class HubError(LlamaliteError):
    """A repository on the hub that is gated, missing or out of reach."""


class RepositoryNotFoundError(HubError):
    """A repository that does not exist on the hub, or that this account may not see."""


class HubUnreachableError(HubError):
    """The hub does not answer, and the cache does not have the file either."""


class VocabularyError(LlamaliteError):
    """A tokenizer that llama.cpp cannot reproduce, or whose files contradict each other."""


class QuantizationError(LlamaliteError):
    """A tensor that cannot be stored in the chosen type: NaN, overflow, or a missing importance matrix."""


class VerificationError(LlamaliteError):
    """A GGUF file that differs from the checkpoint it was made from."""


class ModelLoadError(LlamaliteError):
    """A model that llama.cpp refuses; the message is llama.cpp's."""


class OutOfMemoryError(LlamaliteError):
    """A request that would not fit into memory; raised before anything is allocated."""


class TemplateError(LlamaliteError):
    """A chat template that is broken, refuses the messages, or reaches outside its sandbox."""


class ContextOverflowError(LlamaliteError):
    """A prompt and an answer that together need more tokens than the context holds."""


class QueueFullError(LlamaliteError):
    """A generation that was not even queued, since `n_waiting` others wait already."""

    def __init__(self, n_waiting: int, max_queue: int) -> None:
        super().__init__(
            f"{n_waiting} generations wait already, and max_queue is {max_queue}: try again later, or load the model "
            "with a larger max_queue or n_parallel"
        )
        self.n_waiting = n_waiting


class GenerationCancelled(LlamaliteError):  # noqa: N818 - not an error: the caller wanted it
    """A generation or measurement that was cancelled."""


class EvaluationError(LlamaliteError):
    """A measurement that cannot be made with the given model or text."""
