"""`Model`: a loaded GGUF file that generates text; the main object for desktop apps and services.

    with Model("TinyLlama-1.1B-Q4_K_M.gguf") as model:
        for piece in model.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)
        print(model.generate([{"role": "user", "content": "Why is the sky blue?"}]).text)

A prompt is a text to continue, a list of chat messages (to which the file's chat template is applied), or token ids.
Generations that threads and tasks start at the same time are computed together, a token of each in one pass over the
weights; two models run side by side. The context keeps what it has read, so that what a prompt has in common with an
earlier one is not read again.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamalite import hardware, store
from llamalite.errors import LlamaliteError
from llamalite.generation import batch, session_file
from llamalite.generation.completion import Completion, Piece
from llamalite.generation.engine import Engine, Limits
from llamalite.generation.prompts import Message, Prompt, Prompts
from llamalite.generation.request import Deliver, GenerationRequest, Stream, pieces
from llamalite.generation.sessions import restore, saved
from llamalite.generation.speculation import open_draft_model, speculator_factory
from llamalite.gguf_check import check_adapter, checked_header
from llamalite.model_options import DEFAULT_PARALLEL, MAX_PARALLEL, ModelOptions, context_options
from llamalite.native.context import NativeContext
from llamalite.native.devices import offload
from llamalite.native.library import version
from llamalite.native.lora import LoraAdapter, lora_adapters
from llamalite.native.model import NativeModel
from llamalite.native.sampler import NativeSampler
from llamalite.sampling import SamplingParams, check_whole

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
    - `progress`: called with a fraction in 0..1, in another thread, while the file is loaded; raising in it stops the
      load.

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
            n_parallel=options.n_parallel or 1,
        )
        if (options.n_ctx or 0) > self._header.n_ctx_train:
            warning = "%s was trained for %d tokens, fewer than n_ctx: answers get worse beyond"
            _logger.warning(warning, self.path.name, self._header.n_ctx_train)
        native = NativeModel(
            self.path, n_gpu_layers=n_gpu_layers, device=options.device, progress=progress, header=self._header
        )
        try:
            if not native.has_decoder or native.has_encoder:
                raise LlamaliteError(f"{self.path.name} is an encoder ({native.desc}): it does not generate text")
            options = options.replace(n_threads=options.n_threads or hardware.physical_cores())
            n_parallel = options.n_parallel
            if n_parallel is None:
                n_parallel = 1 if options.exact or native.is_recurrent else DEFAULT_PARALLEL
            self._context = NativeContext(native, context_options(options, n_ctx, n_parallel))
            self._adapters = adapters
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
            window=native.n_swa,
            limits=Limits(
                n_parallel=n_parallel,
                max_queue=options.max_queue,
                n_ctx=None if options.n_ctx else self._header.n_ctx_train,
                # GPU backends other than Metal never check the abort flag: each decode has to be short.
                prompt_step=None if n_gpu_layers == 0 else self._context.n_ubatch,
            ),
            use_adapters=self._use_adapters,
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
        return self._engine.n_ctx

    @property
    def n_parallel(self) -> int:
        """How many generations are computed together at most."""
        return self._engine.n_parallel

    @property
    def n_held(self) -> int:
        """How many tokens the context holds now; those that several conversations begin with count once."""
        return self._engine.cache.n_used

    @property
    def n_threads(self) -> int:
        """The number of threads that compute."""
        return self._context.n_threads

    @property
    def is_busy(self) -> bool:
        """Whether a generation is running or waits, which `cancel` would end."""
        return self.n_running + self.n_waiting > 0

    @property
    def n_running(self) -> int:
        """How many generations are being computed."""
        return len(self._engine.schedule.running)

    @property
    def n_waiting(self) -> int:
        """How many generations wait until there is room for them."""
        return self._engine.schedule.n_waiting

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

    def _use_adapters(self, scales: Hashable) -> None:
        """Decode with other scales of the model's LoRA adapters from now on; None is their own."""
        scaled = self._adapters
        if isinstance(scales, tuple):
            scaled = [LoraAdapter(adapter.path, scale) for adapter, scale in zip(scaled, scales, strict=True)]
        self._context.set_lora(scaled)

    def _scales(self, params: SamplingParams) -> tuple[float, ...] | None:
        scales = params.lora_scales
        if scales is not None and len(scales) != len(self._adapters):
            raise ValueError(f"lora_scales has {len(scales)} numbers, and the model has {len(self._adapters)} adapters")
        return None if scales is None else tuple(scales)

    def validate(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """Raise what `stream` would raise for these tokens and parameters, without computing anything."""
        self._engine.check_room(len(prompt), params)
        self._scales(params)
        self._sampler(params, prompt).close()

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> Stream:
        """Return an iterator of `Piece`s, one for each token; the last one carries the totals.

        `options` are fields of `SamplingParams`; they replace those of `params`, or of `defaults` if there are none.
        ``ValueError`` and ``ContextOverflowError`` are raised here; nothing is computed before the first piece is asked
        for, which raises ``QueueFullError`` when `max_queue` others wait. From then on the answer is computed, beside
        others, whether or not its pieces are asked for.
        """
        params = (params or self.defaults).replace(**options)
        return self._engine.stream(self.prompt_tokens(prompt), params, self._scales(params))

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> Completion:
        """Return the whole answer; its `finish_reason` is "cancelled" if `cancel` ended it."""
        with self.stream(prompt, params, **options) as stream:
            return Completion.of(stream)

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingKeywords]
    ) -> AsyncIterator[Piece]:
        """`stream` for asyncio; cancelling the task, or closing the iterator, ends the generation."""

        def make_request(deliver: Deliver) -> GenerationRequest:
            chosen = (params or self.defaults).replace(**options)
            return self._engine.request(self.prompt_tokens(prompt), chosen, deliver, self._scales(chosen))

        async with contextlib.aclosing(pieces(self._engine.submit, make_request)) as stream:
            async for piece in stream:
                yield piece

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
        parallel: int | None = None,
        on_completion: OnCompletion | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[Completion]:
        """Answer `prompts`, up to `parallel` of them at once, and return the completions in the prompts' order.

        `params` is one object for all prompts, or a list with one for each; `options` replace their fields. At most
        `n_parallel` are computed together, which is also the default, and the next prompt is queued as soon as an
        answer ends, behind other callers' prompts. `on_completion` is called with each prompt's index and completion as
        it finishes. llama.cpp's kernels are not batch-invariant: at a near tie, a greedy answer may differ from that of
        a single run. With `reproducible`, prompts run one by one. Raises what `stream` raises, with the prompt's index,
        before anything is computed.
        """
        if parallel is not None:
            check_whole("parallel", parallel, 1, MAX_PARALLEL)
        all_params = [params or self.defaults] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(all_params) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts have {len(all_params)} parameters: give one for each, or one for all"
            )
        jobs = []
        for number, (prompt, prompt_params) in enumerate(zip(prompts, all_params, strict=True)):
            prompt_params = prompt_params.replace(**options)
            try:
                job = batch.Job(self.prompt_tokens(prompt), prompt_params, self._scales(prompt_params))
                self.validate(job.prompt, job.params)
            except (ValueError, LlamaliteError) as error:
                error.args = (f"prompt {number}: {error}",)
                raise
            jobs.append(job)
        parallel = min(parallel or self.n_parallel, self.n_parallel)
        return batch.run_batch(self._engine, jobs, parallel=parallel, on_completion=on_completion)

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────

    def _session_facts(self) -> dict[str, Any]:
        options = self._context.options
        return {
            "model": session_file.fingerprint(self.path, self._header.data_offset),
            "cache_type": options.kv_type,
            "flash_attention": options.flash_attn,
            "version": version(),
        }

    def save_session(
        self,
        path: str | os.PathLike[str],
        *,
        tokens: Sequence[int] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a conversation as the context holds it to `path`, for `load_session`.

        It is the one that begins like `tokens`, as far as it does, or without them the one whose generation ended last.
        `extra` is kept with it, and must be JSON.
        """
        facts = self._session_facts() | {"extra": dict(extra or {})}
        session_file.write(
            Path(path), self._engine.call(lambda: saved(self._engine.cache, self._context, tokens, facts))
        )

    def load_session(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Add to the context what `save_session` wrote, and return its `extra`.

        Raises ``LlamaliteError`` for a file that is damaged, or of another model, cache type or llama.cpp version, and
        ``ContextOverflowError`` for one for which there is no room. If the file was forged, that is, if its digest is
        right and its content is not, the context is empty afterwards; generations that run read their tokens again.
        """
        session = session_file.read(Path(path), self._session_facts())
        self._engine.call(lambda: restore(self._engine, self._context, session, Path(path)))
        extra = session.facts.get("extra")
        return extra if isinstance(extra, dict) else {}

    def cancel(self) -> None:
        """End all generations within moments, those that wait too, from any thread; the context keeps what was read."""
        self._engine.cancel()

    def clear(self) -> None:
        """Forget everything that no running generation needs."""
        self._engine.call(self._engine.cache.clear)

    def close(self) -> None:
        """End what is running or waits, and free the memory; closing twice does nothing."""
        if self._native is not None:
            self._engine.close(self._free)

    def _free(self) -> None:
        if self._native is not None:
            self._native.close()
            self._native = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
