"""What Prometheus is told at /metrics."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunerun.serve.fleet import Fleet

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# What a client asks for may be anything, and a label for each would fill the memory.
_OTHER_PATH = "other"
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counts requests, tokens and times."""

    def __init__(self, fleet: Fleet) -> None:
        """Takes what is served."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("tunerun_requests", "HTTP requests.", ("path", "status"), registry=registry)
        self.prompt_tokens = Counter("tunerun_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self.completion_tokens = Counter(
            "tunerun_completion_tokens", "Tokens of answers.", ("model",), registry=registry
        )
        self.open = Gauge("tunerun_open_replies", "Replies that are being computed.", ("model",), registry=registry)
        self.first_token = Histogram(
            "tunerun_time_to_first_token_seconds", "From a request to the first text of its reply.", ("model",),
            buckets=_FIRST_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.per_token = Histogram(
            "tunerun_time_per_token_seconds", "Mean time between the tokens of an answer.", ("model",),
            buckets=_PER_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_Engines(fleet))
        for name in fleet.models:
            self.open.labels(name).set(0)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(slots=True)
class Watch:
    """Measures one reply."""

    metrics: Metrics
    model: str
    started: float
    """Of `time.perf_counter`."""
    _first: float | None = field(default=None, init=False)
    _open: bool = field(default=False, init=False)

    def accepted(self, prompt_tokens: int) -> None:
        """Notes that the engine computes it."""
        self.metrics.prompt_tokens.labels(self.model).inc(prompt_tokens)
        self.metrics.open.labels(self.model).inc()
        self._open = True

    def text(self) -> None:
        """Notes that a piece of an answer came."""
        if self._first is None:
            self._first = time.perf_counter()
            self.metrics.first_token.labels(self.model).observe(self._first - self.started)

    def finish(self, tokens: int) -> None:
        """Notes that an answer is complete."""
        self.metrics.completion_tokens.labels(self.model).inc(tokens)
        if self._first is not None and tokens > 1:
            self.metrics.per_token.labels(self.model).observe((time.perf_counter() - self._first) / (tokens - 1))

    def close(self) -> None:
        """Notes that nothing more is computed."""
        if self._open:
            self._open = False
            self.metrics.open.labels(self.model).dec()


def counted(app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> ASGIApp:
    """Counts the requests to an app.

    Args:
        app: What answers them.
        metrics: Where they are counted.
        paths: Those that are counted by name.
    """

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in paths else _OTHER_PATH
                metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await app(scope, receive, sent if scope["type"] == "http" else send)

    return count


class _Engines(Collector):
    """Asks the engines when Prometheus asks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        """Returns the state of each engine process, under the name of each model that it answers for."""
        up = GaugeMetricFamily("tunerun_engine_up", "Whether the model's engine can answer.", labels=("model",))
        restarts = CounterMetricFamily(
            "tunerun_engine_restarts", "How often the model's engine was started again.", labels=("model",)
        )
        for name, model in self._fleet.models.items():
            up.add_metric((name,), float(model.engine.state == "ready"))
            restarts.add_metric((name,), model.engine.restarts)
        return up, restarts
