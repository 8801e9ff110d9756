"""Figures of the server in Prometheus' format, for ``GET /metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llamalite.generation.completion import Totals

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server; each app has its own registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, n_parallel: int) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("llamalite_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._request_s = Histogram(
            "llamalite_request_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._ttft_s = Histogram(
            "llamalite_time_to_first_token_seconds", "Time to the first token.", buckets=_SECONDS, registry=registry
        )
        self._queued_s = Counter("llamalite_queued_seconds", "Time that answers waited for a slot.", registry=registry)
        self._prompt = Counter("llamalite_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter("llamalite_cached_tokens", "Tokens of prompts that were not read.", registry=registry)
        self._prompt_s = Counter("llamalite_prompt_seconds", "Time spent reading prompts.", registry=registry)
        self._generated = Counter("llamalite_generated_tokens", "Tokens of answers.", registry=registry)
        self._generation_s = Counter("llamalite_generation_seconds", "Time spent generating.", registry=registry)
        self._running = Gauge("llamalite_answers_in_progress", "Answers begun, waiting included.", registry=registry)
        self._waiting = Gauge("llamalite_answers_waiting", "Answers without a first token yet.", registry=registry)
        self._loaded = Gauge("llamalite_model_loaded", "1 if the model is loaded.", ["model"], registry=registry)
        Gauge("llamalite_slots", "Answers that a model gives at once.", registry=registry).set(n_parallel)
        self.n_running = self.n_waiting = 0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def begun(self) -> None:
        """Count an answer that was asked for."""
        self.n_running, self.n_waiting = self.n_running + 1, self.n_waiting + 1

    def first_token(self) -> None:
        """Count that an answer has its first token, or ended without one."""
        self.n_waiting -= 1

    def ended(self) -> None:
        """Count that an answer has ended, whatever way."""
        self.n_running -= 1

    def answered(self, totals: Totals) -> None:
        """Count the tokens and times of a finished answer."""
        self._prompt.inc(totals.n_prompt)
        self._cached.inc(totals.n_cached)
        self._prompt_s.inc(totals.prompt_s)
        self._generated.inc(totals.n_generated)
        self._generation_s.inc(totals.generation_s)
        self._queued_s.inc(max(0.0, getattr(totals, "queued_s", 0.0)))
        if totals.n_generated:
            self._ttft_s.observe(totals.ttft_s)

    def text(self, loaded: dict[str, bool]) -> bytes:
        """Return all figures; `loaded` says of each model whether it is loaded."""
        self._running.set(self.n_running)
        self._waiting.set(self.n_waiting)
        for name, is_loaded in loaded.items():
            self._loaded.labels(name).set(is_loaded)
        return generate_latest(self._registry)
