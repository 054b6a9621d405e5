"""What the server counts, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from colbert_rag.colbert import ColBERT
from colbert_rag.server.schedule import Scheduler

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds that tell a cached answer from one that was computed, and from one that waited."""


class Metrics:
    """Counts of one server; none of them holds anything that a client sent."""

    def __init__(self, colbert: ColBERT, scheduler: Scheduler) -> None:
        """Count from now on.

        Args:
            colbert: Whose cache is watched.
            scheduler: Whose queue is watched.
        """
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "colbert_rag_requests",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "colbert_rag_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.abandoned = Counter(
            "colbert_rag_abandoned",
            "Requests whose client hung up before there was an answer.",
            registry=self.registry,
        )
        self.documents = Counter(
            "colbert_rag_documents",
            "Documents that clients sent to be ranked, scored or encoded.",
            registry=self.registry,
        )
        self.registry.register(_Watched(colbert, scheduler))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Watched(Collector):
    """Numbers that are kept elsewhere, read when they are asked for."""

    def __init__(self, colbert: ColBERT, scheduler: Scheduler) -> None:
        self._colbert, self._scheduler = colbert, scheduler

    def collect(self) -> Iterable[Metric]:
        cache, encoded = self._colbert.cache_info(), self._colbert.truncation_info()
        gauges = {
            "running": ("Requests being computed.", self._scheduler.running),
            "waiting": ("Requests waiting for their turn.", self._scheduler.waiting),
            "cache_texts": ("Documents whose vectors are kept.", cache.texts),
            "cache_bytes": ("Bytes of them.", cache.bytes),
            "cache_limit_bytes": ("Bytes that may be kept.", cache.limit),
        }
        counters = {
            "cache_hits": ("Documents found in the cache.", cache.hits),
            "cache_misses": ("Documents not found in it.", cache.misses),
            "cache_evictions": ("Documents that left it for others.", cache.evictions),
            "encoded_queries": ("Queries encoded.", encoded.queries),
            "encoded_documents": ("Documents encoded.", encoded.documents),
            "cut_documents": ("Documents longer than the model reads.", encoded.documents_cut),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"colbert_rag_{name}", help, value)
        for name, (help, value) in counters.items():
            yield CounterMetricFamily(f"colbert_rag_{name}", help, value)
