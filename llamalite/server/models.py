"""The models that the server was started with: loaded when first asked for, unloaded when another needs the memory.

    pool = ModelPool([ServedModel("demo-Q4_K_M", path)], ModelOptions(n_ctx=4096))
    async with pool.use("demo-Q4_K_M") as served:       # loaded, and not unloaded meanwhile
        async for piece in served.loaded.astream("Once"):
            ...

Only these files are ever opened: a request chooses among names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamalite import hardware
from llamalite.gguf_check import checked_header
from llamalite.model import Model
from llamalite.model_options import ModelOptions
from llamalite.server.errors import refusal

_logger = logging.getLogger("llamalite.server")
ANY_NAME = "*"  # an alias that answers to every name


@dataclass(eq=False)
class ServedModel:
    """A file that is served under a name; `model` is None while it is not loaded."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    model: Model | None = None
    n_users: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    used_at: float = field(default_factory=time.monotonic)
    loading: asyncio.Task[None] | None = None
    embedding: asyncio.Lock = field(default_factory=asyncio.Lock)  # one context for vectors at a time

    @property
    def loaded(self) -> Model:
        """The loaded model; ``ValueError`` if it is not loaded."""
        if self.model is None:
            raise ValueError(f"the model {self.name} is not loaded")
        return self.model

    @property
    def status(self) -> str:
        """loaded, loading or unloaded."""
        return "loaded" if self.model is not None else "loading" if self.loading is not None else "unloaded"


class ModelPool:
    """The served models, which all have the same `options`."""

    def __init__(self, models: Sequence[ServedModel], options: ModelOptions) -> None:
        self.models = list(models)
        self._options = options
        self._one_load = asyncio.Lock()

    def find(self, name: str | None) -> ServedModel:
        """Return the model called `name`, or the only one if there is no name; 404 with those that there are."""
        if not name:
            if len(self.models) == 1:
                return self.models[0]
            raise refusal(f"model is required; there are {self._names()}", param="model")
        for served in self.models:
            if name == served.name or name in served.aliases:
                return served
        for served in self.models:
            if ANY_NAME in served.aliases:
                return served
        message = f"there is no model {name!r:.200}; there are {self._names()}"
        raise refusal(message, status=404, param="model", code="model_not_found")

    def _names(self) -> str:
        return ", ".join(served.name for served in self.models)

    @contextlib.asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """Hold the model called `name` for the ``async with`` block, loaded if it was not."""
        served = self.find(name)
        served.n_users += 1
        try:
            await self.load(served)
            yield served
        finally:
            served.n_users -= 1
            served.used_at = time.monotonic()

    async def load(self, served: ServedModel) -> None:
        """Load a model; several callers wait for one load, which goes on if a caller is cancelled."""
        if served.model is None:
            if served.loading is None:
                served.loading = asyncio.create_task(self._load(served))
            await asyncio.shield(served.loading)

    async def _load(self, served: ServedModel) -> None:
        try:
            async with self._one_load:
                await self._make_room(served)
                started = time.perf_counter()
                served.model = await asyncio.to_thread(Model, served.path, self._options)
                _logger.info("loaded %s in %.1f s", served.name, time.perf_counter() - started)
        finally:
            served.loading = None

    async def _make_room(self, wanted: ServedModel) -> None:
        """Unload models that answer nothing, the least recently used first, until `wanted` fits."""
        header = await asyncio.to_thread(checked_header, wanted.path)
        n_ctx = self._options.n_ctx or min(hardware.DEFAULT_N_CTX, header.n_ctx_train)
        needed = hardware.memory_needed(header, n_ctx=n_ctx, kv_type=self._options.kv_type)
        while not needed.fits(hardware.free_memory_bytes()):
            idle = [one for one in self.models if one.model is not None and not one.n_users]
            if not idle:
                return  # the load itself says what is missing, with the numbers
            await self.unload(min(idle, key=lambda one: one.used_at))

    async def unload(self, served: ServedModel) -> None:
        """Free a model's memory."""
        model, served.model = served.model, None
        if model is not None:
            await asyncio.to_thread(model.close)
            _logger.info("unloaded %s", served.name)

    async def close(self) -> None:
        """Unload all models, whatever they are doing."""
        for served in self.models:
            if served.loading is not None:
                await asyncio.wait([served.loading])
            await self.unload(served)
