"""`Model`: a GGUF file that answers. What desktop apps and services hold.

    with Model("TinyLlama-1.1B-Q4_K_M.gguf") as model:
        for piece in model.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)
        print(model.generate([{"role": "user", "content": "Why is the sky blue?"}]).text)

A prompt is a text to continue, a list of chat messages (the file's template is applied), or token ids. Threads take
turns on one model; two models run side by side. What was read stays in the context: the next prompt that begins alike
costs only its rest.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamalite import hardware, session, store
from llamalite.answers import Completion, Piece
from llamalite.errors import ContextOverflowError, LlamaliteError
from llamalite.generation import Engine, Stream
from llamalite.gguf_check import check, check_adapter
from llamalite.native.context import KV_TYPES, FlashAttention, NativeContext
from llamalite.native.devices import offload
from llamalite.native.library import version
from llamalite.native.model import Lora, NativeModel, lora_adapters
from llamalite.native.sampler import NativeSampler
from llamalite.prompts import Message, Prompt, Prompts
from llamalite.sampling import SamplingParams
from llamalite.speculation import factory, open_draft

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from llamalite.batching import OnCompletion
    from llamalite.sampling import SamplingOptions

_logger = logging.getLogger(__name__)


class Model:
    """A loaded GGUF file with one context. Close it, or use ``with``: the memory goes back at once.

    - `path`: a GGUF file, or a name in the models folder (`llamalite.store`); `from_pretrained` takes checkpoints too.
    - `n_ctx`: tokens that a conversation may have; None takes the smallest of 8192, what the model was trained for and
      what free memory holds. More than it was trained for is warned of. `n_batch`: tokens of a prompt read in one call.
    - `n_threads`: threads that compute; None takes as many as the physical cores that this process may use.
    - `n_gpu_layers`: "auto" is all of them where the installed llama.cpp can use a GPU, else none; "all" or a number
      insists on it. `device`: which GPU, as `llamalite doctor` names it, or several with commas.
    - `kv_type`: the cache's type, `flash_attn`: "auto" or a bool; `exact`: F32 cache, flash attention off.
    - `lora`: adapters in GGUF form. `seed`: of generations that name none. `progress`: called with 0..1 while loading.
    - `draft`: a small model with the same vocabulary that guesses tokens ahead, where that is faster
      (`llamalite.speculation`).

    Raises ``FileNotFoundError``, ``ModelLoadError`` in llama.cpp's words, and ``OutOfMemoryError`` with the numbers and
    the nearest setting that fits, before anything is loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int | Literal["auto", "all"] = "auto",
        device: str | None = None,
        n_batch: int = 2048,
        kv_type: str = "F16",
        flash_attn: FlashAttention = "auto",
        exact: bool = False,
        lora: Lora | Sequence[Lora] = (),
        seed: int | None = None,
        draft: str | os.PathLike[str] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._native: NativeModel | None = None
        if not isinstance(kv_type, str) or kv_type.upper() not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, found {kv_type!r}")
        for name, value in (("n_ctx", n_ctx), ("n_threads", n_threads), ("n_batch", n_batch)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1 on, found {value!r}")
        self.path = store.resolve(path)
        n_gpu = offload(n_gpu_layers, device)
        self._header = check(self.path)  # of all files of a split model, so that the memory for all is foreseen
        self._n_gpu = n_gpu
        adapters = lora_adapters(lora)
        for adapter in adapters:
            check_adapter(adapter.path, self._header)
        helper = None if draft is None else check(store.resolve(draft))
        n_ctx = hardware.planned_n_ctx(
            self._header,
            n_ctx,
            on_gpu=n_gpu != 0,
            kv_type="F32" if exact else kv_type,
            flash_attn=bool(flash_attn) and not exact,
            draft=helper,
        )
        if n_ctx > self._header.n_ctx_train:
            told = "%s was trained for %d tokens, fewer than n_ctx: answers get worse beyond"
            _logger.warning(told, self.path.name, self._header.n_ctx_train)
        native = NativeModel(self.path, n_gpu_layers=n_gpu, device=device, progress=progress, header=self._header)
        try:
            if not native.has_decoder or native.has_encoder:
                raise LlamaliteError(f"{self.path.name} is an encoder ({native.desc}): it does not generate text")
            self._context = NativeContext(
                native,
                n_ctx=n_ctx,
                n_batch=n_batch,
                n_threads=n_threads or hardware.physical_cores(),
                kv_type=kv_type,
                flash_attn=flash_attn,
                exact=exact,
            )
            if adapters:
                self._context.set_lora(adapters)
            drafting = open_draft(helper.path, self._context, n_gpu_layers=n_gpu) if helper else None
            self.defaults = SamplingParams.from_metadata(native.metadata).replace(seed=seed)
        except BaseException:
            native.close()
            raise
        self._native = native
        self._engine = Engine(
            self._context,
            native,
            self._sampler,
            make_speculator=factory(native, drafting),
            can_rewind=not native.is_recurrent,
            # A GPU backend other than Metal does not ask whether to stop: a decode must be short enough to wait for.
            prompt_step=None if n_gpu == 0 else self._context.n_ubatch,
            thread=native.thread,
        )
        self._prompts = Prompts(native)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], qtype: str = "Q4_K_M", **options: Any) -> Model:
        """Convert a checkpoint folder or ``org/name`` once into the models folder, and load it.

        `options` are those of `Model`.
        """
        return cls(store.obtain(source, qtype), **options)

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def native(self) -> NativeModel:
        """llama.cpp's side of this model; ``ValueError`` once it is closed."""
        if self._native is None:
            raise ValueError("this model is closed")
        return self._native

    @property
    def n_ctx(self) -> int:
        """How many tokens one conversation may have."""
        return self._context.n_ctx_seq

    @property
    def n_held(self) -> int:
        """How many tokens the context holds now."""
        return len(self._engine.held)

    @property
    def n_threads(self) -> int:
        return self._context.n_threads

    @property
    def is_busy(self) -> bool:
        """Whether a generation or a batch is running, which `cancel` would end."""
        return self._engine.is_busy

    @property
    def metadata(self) -> dict[str, str]:
        """The file's scalar keys, such as ``general.name``."""
        return self.native.metadata

    @property
    def has_chat_template(self) -> bool:
        """Whether the file brings a chat template: an instruct model, which wants messages rather than text."""
        return self._prompts.has_template

    def __repr__(self) -> str:
        state = "closed" if self._native is None else f"{self._native.desc}, n_ctx={self.n_ctx}"
        return f"<llamalite.Model {self.path.name}: {state}>"

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the ids of `text`; `add_special` puts BOS first where the file asks for it.

        With `parse_special` the spelling of a control token in the text becomes that token.
        """
        ids: list[int] = self.native.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()
        return ids

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `tokens`; control tokens are spelled out with `special`."""
        return self.native.detokenize(tokens, special=special).decode("utf-8", "replace")

    def render(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **variables: Any) -> str:
        """Return the text that the file's chat template makes of `messages`, ready for the model's answer."""
        return self._prompts.render(messages, tools=tools, **variables)

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **variables: Any
    ) -> list[int]:
        """Return the ids of `render`: exactly one BOS, and nothing of a message's content is a control token."""
        return self._prompts.chat_tokens(messages, tools=tools, **variables)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Return the ids that `stream` would read for `prompt`: a text, messages, or ids."""
        return self._prompts.tokens(prompt)

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────

    def _sampler(self, params: SamplingParams, prompt: Sequence[int]) -> NativeSampler:
        if params.json_schema is not None:
            from llamalite.json_schema import grammar_of

            params = params.replace(json_schema=None, grammar=grammar_of(params.json_schema))
        return NativeSampler(self.native, params, prompt=prompt)

    def validate(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise what `stream` would raise for these tokens and parameters, and compute nothing."""
        self._engine.check_room(len(prompt), params)
        self._sampler(params, prompt).close()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """Return an iterator of `Piece`, text as it becomes certain; the last one carries the totals.

        `options` are fields of `SamplingParams`, over `params`, else over `defaults`. What cannot work is refused here;
        nothing is computed before the first piece is asked for.
        """
        chosen = (params or self.defaults).replace(**options)
        return self._engine.stream(self.prompt_tokens(prompt), chosen)

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Return the whole answer. ``finish_reason`` is "cancelled" when `cancel` ended it."""
        with self.stream(prompt, params, **options) as stream:
            return Completion.of(stream)

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> AsyncIterator[Piece]:
        """`stream` for asyncio: computed in a thread of its own; cancelling the task ends the generation."""
        import asyncio  # a third of this module's import time, for those who use it

        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | BaseException | None]()
        stream = await asyncio.to_thread(self.stream, prompt, params, **options)

        def hand_over(item: Piece | BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for piece in stream:
                    hand_over(piece)
                hand_over(None)
            except RuntimeError:  # the loop is closed: nobody is left to hear
                stream.close()
            except BaseException as error:  # noqa: BLE001 - raised again in the task
                hand_over(error)

        threading.Thread(target=work, name="llamalite-astream", daemon=True).start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stream.cancel()

    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """`generate` for asyncio."""
        pieces = [piece async for piece in self.astream(prompt, params, **options)]
        return Completion.of(iter(pieces))

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        parallel: int = 16,
        on_completion: OnCompletion | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Completion]:
        """Answer `prompts`, up to `parallel` at once, and return the completions in their order.

        `params` is for all, or one for each prompt; `options` go over them. A slot is filled anew as soon as its answer
        ends, and what all prompts begin with is read once. `on_completion` gets each prompt's number and completion as
        it finishes. The kernels are not batch-invariant: a greedy answer may part from that of a single run at a near
        tie. With `reproducible`, prompts run one after another.
        """
        from llamalite import batching

        if not 1 <= parallel <= batching.MAX_PARALLEL:
            raise ValueError(f"parallel must lie in 1..{batching.MAX_PARALLEL}, found {parallel}")
        given = [params or self.defaults] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(given) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts have {len(given)} parameters: give one for each, or one for all")
        with self.native.in_use():
            jobs = [
                batching.Job(number, self.prompt_tokens(prompt), one.replace(**options))
                for number, (prompt, one) in enumerate(zip(prompts, given, strict=True))
            ]
            for job in jobs:
                self.validate(job.prompt, job.params)
            if not jobs:
                return []
            if any(job.params.reproducible for job in jobs):
                return batching.one_by_one(self._engine, jobs, on_completion)
            n_slots = min(parallel, len(jobs))
            with self._batch_context(batching.cells_wanted(jobs, n_slots, self.n_ctx), n_slots + 1) as context:
                return batching.Batch(self._engine, context, n_slots=n_slots).run(jobs, on_completion)

    def _batch_context(self, n_cells: int, n_seq_max: int) -> NativeContext:
        """Return a unified context of `n_cells` tokens, or of the most that memory holds, but no less than `n_ctx`."""
        own = self._context
        if self._n_gpu == 0:
            one, two = (hardware.memory_needed(self._header, n_ctx=n, kv_type=own.kv_type) for n in (4096, 8192))
            per_token = max(1, (two.kv_bytes - one.kv_bytes) // 4096)
            n_cells = min(n_cells, max(self.n_ctx, hardware.free_memory_bytes() * 3 // 4 // per_token))
        options: Any = {name: getattr(own, name) for name in ("n_threads", "kv_type", "flash_attn", "exact")}

        def make() -> NativeContext:
            n_ctx = max(n_cells, n_seq_max)
            return NativeContext(self.native, n_ctx=n_ctx, n_seq_max=n_seq_max, kv_unified=True, **options)

        return self.native.thread.run(make, lambda: None)

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _session_facts(self) -> dict[str, Any]:
        own = self._context
        return {
            "model": session.fingerprint(self.path, self._header.data_offset),
            "cache_type": own.kv_type,
            "flash_attention": own.flash_attn,
            "version": version(),
        }

    def save_session(self, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """Write what the context holds to `path`, with `extra` (JSON) beside it, for `load_session`."""
        with self._engine.turn():
            held = session.Session(
                self._session_facts() | {"extra": dict(extra or {})}, list(self._engine.held), self._context.state(0)
            )
        session.write(Path(path), held)

    def load_session(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Bring the context to hold what `save_session` wrote, and return its `extra`.

        Raises ``LlamaliteError`` for a file that is damaged, of another model, cache type or version of llama.cpp, and
        ``ContextOverflowError`` for one that this context has no room for; the context is as it was then, or, after a
        file that was forged with a right digest, empty.
        """
        found = session.read(Path(path), self._session_facts())
        if len(found.tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"{path} holds {len(found.tokens)} tokens, and the context has room for {self.n_ctx}: load the model "
                "with a larger n_ctx"
            )
        with self._engine.turn():
            self._engine.forget()
            try:
                self.native.check_tokens(found.tokens)
                if found.tokens:
                    self._context.set_state(0, found.state)
                first, last = self._context.seq_pos_min(0), self._context.seq_pos_max(0)
                if last != len(found.tokens) - 1 or (found.tokens and first < 0):
                    raise LlamaliteError(f"it goes from position {first} to {last}")
            except (LlamaliteError, ValueError) as error:  # forged, as its digest is right: nothing of it stays
                self._engine.forget()
                what = f"the state of its {len(found.tokens)} tokens ({error})"
                raise LlamaliteError(f"{path} does not hold {what}: begin a new session") from None
            self._engine.held = found.tokens
        extra = found.facts.get("extra")
        return extra if isinstance(extra, dict) else {}

    def cancel(self) -> None:
        """End the generation that is running, within moments, from any thread; what was read stays."""
        self._engine.cancel()

    def clear(self) -> None:
        """Forget what the context holds."""
        with self._engine.turn():
            self._engine.forget()

    def close(self) -> None:
        """End what is running and give the memory back; closing twice does nothing."""
        if self._native is not None:
            self._engine.close(self._free)

    def _free(self) -> None:
        if self._native is not None:  # two threads may close it
            self._native.close()
            self._native = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
