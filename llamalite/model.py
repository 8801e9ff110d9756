"""`Model`: a loaded GGUF file that generates text; the main object for desktop apps and services.

    with Model("TinyLlama-1.1B-Q4_K_M.gguf") as model:
        for piece in model.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)
        print(model.generate([{"role": "user", "content": "Why is the sky blue?"}]).text)

A prompt is a text to continue, a list of chat messages (to which the file's chat template is applied), or token ids.
Threads take turns on one model; two models run side by side. The context keeps what it has read, so that the common
beginning of the next prompt is not read again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamalite import hardware, store
from llamalite.errors import ContextOverflowError, LlamaliteError
from llamalite.generation import batch, session_file
from llamalite.generation.completion import Completion, Piece
from llamalite.generation.engine import Engine, Stream
from llamalite.generation.prompts import Message, Prompt, Prompts
from llamalite.generation.speculation import open_draft_model, speculator_factory
from llamalite.gguf_check import check_adapter, checked_header
from llamalite.model_options import ModelOptions, context_options
from llamalite.native.context import NativeContext
from llamalite.native.context_options import ContextOptions
from llamalite.native.devices import offload
from llamalite.native.library import version
from llamalite.native.lora import lora_adapters
from llamalite.native.model import NativeModel
from llamalite.native.sampler import NativeSampler
from llamalite.sampling import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from llamalite.generation.batch import OnCompletion
    from llamalite.model_options import ModelKeywords
    from llamalite.sampling import SamplingKeywords

_logger = logging.getLogger(__name__)


class Model:
    """A loaded GGUF file with one context. Close it, or use ``with``: its memory is then free at once.

    - `path`: a GGUF file, or the name of one in the models folder; `from_pretrained` takes checkpoints too.
    - `options`: `ModelOptions`. Keyword arguments are fields of it and replace those of `options`:
      ``Model("x.gguf", n_ctx=4096, n_threads=4)``.
    - `progress`: called with a fraction in 0..1 while the file is loaded; raising in it stops the load.

    Raises ``FileNotFoundError``, ``ModelLoadError`` with llama.cpp's message, and ``OutOfMemoryError`` with the numbers
    and the nearest setting that fits, before anything is loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: ModelOptions | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **keywords: Unpack[ModelKeywords],
    ) -> None:
        self._native: NativeModel | None = None
        options = (options or ModelOptions()).replace(**keywords)
        self.path = store.resolve(path)
        n_gpu_layers = self._n_gpu_layers = offload(options.n_gpu_layers, options.device)
        # The header of all files of a split model, so that the memory for all of them is known before the load.
        self._header = checked_header(self.path)
        adapters = lora_adapters(options.lora)
        for adapter in adapters:
            check_adapter(adapter.path, self._header)
        draft_header = None if options.draft is None else checked_header(store.resolve(options.draft))
        n_ctx = hardware.planned_n_ctx(
            self._header,
            options.n_ctx,
            on_gpu=n_gpu_layers != 0,
            kv_type="F32" if options.exact else options.kv_type,
            flash_attn=bool(options.flash_attn) and not options.exact,
            draft=draft_header,
        )
        if n_ctx > self._header.n_ctx_train:
            warning = "%s was trained for %d tokens, fewer than n_ctx: answers get worse beyond"
            _logger.warning(warning, self.path.name, self._header.n_ctx_train)
        native = NativeModel(
            self.path, n_gpu_layers=n_gpu_layers, device=options.device, progress=progress, header=self._header
        )
        try:
            if not native.has_decoder or native.has_encoder:
                raise LlamaliteError(f"{self.path.name} is an encoder ({native.desc}): it does not generate text")
            options = options.replace(n_threads=options.n_threads or hardware.physical_cores())
            self._context = NativeContext(native, context_options(options, n_ctx))
            if adapters:
                self._context.set_lora(adapters)
            draft = None
            if draft_header is not None:
                draft = open_draft_model(draft_header.path, self._context, n_gpu_layers=n_gpu_layers)
            self.defaults = SamplingParams.from_metadata(native.metadata).replace(seed=options.seed)
        except BaseException:
            native.close()
            raise
        self._native = native
        self._engine = Engine(
            self._context,
            native,
            self._sampler,
            make_speculator=speculator_factory(native, draft),
            can_rewind=not native.is_recurrent,
            # GPU backends other than Metal never check the abort flag, so each decode must be short enough to wait for.
            prompt_step=None if n_gpu_layers == 0 else self._context.n_ubatch,
            thread=native.thread,
        )
        self._prompts = Prompts(native, options.chat_template)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        qtype: str = "Q4_K_M",
        options: ModelOptions | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **keywords: Unpack[ModelKeywords],
    ) -> Model:
        """Convert a checkpoint to `qtype`, once, into the models folder, and load it as ``Model(...)`` does.

        `source` is the checkpoint's folder, ``org/name`` on the Hugging Face hub, or ``"demo"``.
        """
        return cls(store.obtain(source, qtype), options, progress=progress, **keywords)

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def native(self) -> NativeModel:
        """The low-level model, for measurements and llamalite's own code; ``ValueError`` once this model is closed."""
        if self._native is None:
            raise ValueError("this model is closed")
        return self._native

    @property
    def n_ctx(self) -> int:
        """How many tokens one conversation may have, prompt and answer together."""
        return self._context.n_ctx_seq

    @property
    def n_held(self) -> int:
        """How many tokens the context holds now."""
        return len(self._engine.cache.held)

    @property
    def n_threads(self) -> int:
        """The number of threads that compute."""
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
        """Whether the file has a chat template: then it is an instruct model, and prompts should be messages."""
        return self._prompts.has_template

    def __repr__(self) -> str:
        state = "closed" if self._native is None else f"{self._native.desc}, n_ctx={self.n_ctx}"
        return f"<llamalite.Model {self.path.name}: {state}>"

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`; `add_special` puts BOS first if the file asks for it.

        With `parse_special`, text that spells a control token becomes that token.
        """
        ids: list[int] = self.native.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()
        return ids

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `tokens`, with control tokens spelled out if `special`."""
        return self.native.detokenize(tokens, special=special).decode("utf-8", "replace")

    def template_source(self, *, for_tools: bool = False) -> str | None:
        """Return the chat template's text (Jinja), None if there is none; some files have another one for tools."""
        return self._prompts.template_source(for_tools=for_tools)

    def render(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **variables: Any) -> str:
        """Return `messages` rendered by the chat template, up to where the model's answer begins.

        With ``continue_final_message=True``, the answer goes on from the last message, which is the assistant's.
        """
        return self._prompts.render(messages, tools=tools, **variables)

    def chat_tokens(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **variables: Any
    ) -> list[int]:
        """Return the token ids of `render`, with exactly one BOS; no text in a message becomes a control token."""
        return self._prompts.chat_tokens(messages, tools=tools, **variables)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Return the token ids that `stream` would read for `prompt`: a text, messages, or token ids."""
        return self._prompts.tokens(prompt)

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────

    def _sampler(self, params: SamplingParams, prompt: Sequence[int]) -> NativeSampler:
        if params.json_schema is not None:
            from llamalite.generation.json_schema import grammar_of

            params = params.replace(json_schema=None, grammar=grammar_of(params.json_schema))
        return NativeSampler(self.native, params, prompt=prompt)

    def validate(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise what `stream` would raise for these tokens and parameters, without computing anything."""
        self._engine.check_room(len(prompt), params)
        self._sampler(params, prompt).close()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> Stream:
        """Return an iterator of `Piece`s, one for each token; the last one carries the totals.

        `options` are fields of `SamplingParams`; they replace those of `params`, or of `defaults` if there are none.
        ``ValueError`` and ``ContextOverflowError`` are raised here; nothing is computed before the first piece is asked
        for.
        """
        return self._engine.stream(self.prompt_tokens(prompt), (params or self.defaults).replace(**options))

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> Completion:
        """Return the whole answer; its `finish_reason` is "cancelled" if `cancel` ended it."""
        with self.stream(prompt, params, **options) as stream:
            return Completion.of(stream)

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> AsyncIterator[Piece]:
        """`stream` for asyncio, computed in another thread; cancelling the task ends the generation."""
        import asyncio  # here, because it is a third of this module's import time

        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Piece | BaseException | None]()
        stream = await asyncio.to_thread(self.stream, prompt, params, **options)

        def hand_over(item: Piece | BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for piece in stream:
                    hand_over(piece)
                hand_over(None)
            except RuntimeError:  # the event loop is closed
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
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
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
        **options: Unpack[SamplingKeywords],
    ) -> list[Completion]:
        """Answer `prompts`, up to `parallel` of them at once, and return the completions in the prompts' order.

        `params` is one object for all prompts, or a list with one for each; `options` replace their fields. The
        prompts' common prefix is read once, and the next prompt starts as soon as an answer ends. `on_completion` is
        called with each prompt's index and completion as it finishes. llama.cpp's kernels are not batch-invariant: at a
        near tie, a greedy answer may differ from that of a single run. With `reproducible`, prompts run one by one.
        """
        if not 1 <= parallel <= batch.MAX_PARALLEL:
            raise ValueError(f"parallel must lie in 1..{batch.MAX_PARALLEL}, found {parallel}")
        all_params = [params or self.defaults] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(all_params) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts have {len(all_params)} parameters: give one for each, or one for all"
            )
        with self.native.in_use():
            jobs = [
                batch.Job(number, self.prompt_tokens(prompt), prompt_params.replace(**options))
                for number, (prompt, prompt_params) in enumerate(zip(prompts, all_params, strict=True))
            ]
            for job in jobs:
                self.validate(job.prompt, job.params)
            if not jobs:
                return []
            if any(job.params.reproducible for job in jobs):
                return batch.one_by_one(self._engine, jobs, on_completion)
            n_slots = min(parallel, len(jobs))
            with self._batch_context(batch.cells_needed(jobs, n_slots, self.n_ctx), n_slots + 1) as context:
                return batch.Batch(self._engine, context, n_slots=n_slots).run(jobs, on_completion)

    def _batch_context(self, n_cells: int, n_seq_max: int) -> NativeContext:
        """Return a unified context of `n_cells` tokens, or of as many as memory allows, but at least `n_ctx`."""
        own_options = self._context.options
        if self._n_gpu_layers == 0:
            at_4096, at_8192 = (
                hardware.memory_needed(self._header, n_ctx=n_ctx, kv_type=own_options.kv_type) for n_ctx in (4096, 8192)
            )
            per_token = max(1, (at_8192.kv_bytes - at_4096.kv_bytes) // 4096)
            n_cells = min(n_cells, max(self.n_ctx, hardware.free_memory_bytes() * 3 // 4 // per_token))
        options = dataclasses.replace(
            own_options,
            n_ctx=max(n_cells, n_seq_max),
            n_batch=ContextOptions.n_batch,
            n_seq_max=n_seq_max,
            kv_unified=True,
        )
        return self.native.thread.run(lambda: NativeContext(self.native, options), lambda: None)

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _session_facts(self) -> dict[str, Any]:
        options = self._context.options
        return {
            "model": session_file.fingerprint(self.path, self._header.data_offset),
            "cache_type": options.kv_type,
            "flash_attention": options.flash_attn,
            "version": version(),
        }

    def save_session(self, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """Write what the context holds to `path`, for `load_session`, together with `extra`, which must be JSON."""
        with self._engine.turn():
            facts = self._session_facts() | {"extra": dict(extra or {})}
            saved = session_file.SavedSession(facts, list(self._engine.cache.held), self._context.state(0))
        session_file.write(Path(path), saved)

    def load_session(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Make the context hold what `save_session` wrote, and return its `extra`.

        Raises ``LlamaliteError`` for a file that is damaged, or of another model, cache type or llama.cpp version, and
        ``ContextOverflowError`` for one that is too large for this context. The context is then as it was before, or
        empty if the file was forged, that is, if its digest is right and its content is not.
        """
        saved = session_file.read(Path(path), self._session_facts())
        if len(saved.tokens) > self.n_ctx:
            raise ContextOverflowError(
                f"{path} holds {len(saved.tokens)} tokens, and the context has room for {self.n_ctx}: load the model "
                "with a larger n_ctx"
            )
        with self._engine.turn():
            cache = self._engine.cache
            cache.clear()
            try:
                self.native.check_tokens(saved.tokens)
                if saved.tokens:
                    self._context.set_state(0, saved.state)
                first, last = self._context.seq_pos_min(0), self._context.seq_pos_max(0)
                if last != len(saved.tokens) - 1 or (saved.tokens and first < 0):
                    raise LlamaliteError(f"it goes from position {first} to {last}")
            except (LlamaliteError, ValueError) as error:  # a forged file, since its digest is right
                cache.clear()
                what = f"the state of its {len(saved.tokens)} tokens ({error})"
                raise LlamaliteError(f"{path} does not hold {what}: begin a new session") from None
            cache.held = saved.tokens
        extra = saved.facts.get("extra")
        return extra if isinstance(extra, dict) else {}

    def cancel(self) -> None:
        """End the running generation or batch within moments, from any thread; the context keeps what was read."""
        self._engine.cancel()

    def clear(self) -> None:
        """Empty the context."""
        with self._engine.turn():
            self._engine.cache.clear()

    def close(self) -> None:
        """End what is running or waiting for its turn, and free the memory; closing twice does nothing."""
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
