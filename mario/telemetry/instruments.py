"""Live Prometheus instruments, created from the declarations in `names`."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mario.telemetry.names import ALL_METRICS, Metric

_METRICS = {metric.name: metric for metric in ALL_METRICS}


def instrument(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    """Create the live instrument of a metric in a registry."""
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(
            metric.name,
            metric.help,
            metric.labels,
            registry=registry,
            multiprocess_mode=metric.across_workers,
        )
    buckets = metric.buckets or Histogram.DEFAULT_BUCKETS
    return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=registry)


class InstrumentSet:
    """The live instruments of one registry, each created at its first use.

    It is safe to use from several threads. A metric that was never set is absent from the page, so
    that "not measured" differs from 0.

    Args:
        registry: where the instruments are registered; None creates a registry.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Increase a counter."""
        child = self._child(name, labels)
        assert isinstance(child, Counter), name
        child.inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge; non-finite values are shown unchanged, because NaN is information."""
        child = self._child(name, labels)
        assert isinstance(child, Gauge), name
        child.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        child = self._child(name, labels)
        assert isinstance(child, Histogram), name
        child.observe(value)

    def forget(self, name: str, **labels: str) -> None:
        """Remove every series with these labels, whatever its other labels are."""
        with self._lock:
            made = self._made.get(name)
        if made is None:
            return
        wanted = labels.items()
        for sample in next(iter(made.collect())).samples:
            if wanted <= sample.labels.items():
                keys = [sample.labels[label] for label in _METRICS[name].labels]
                made.remove(*keys)

    def _child(self, name: str, labels: Mapping[str, str]) -> Counter | Gauge | Histogram:
        with self._lock:
            made = self._made.get(name)
            if made is None:
                made = self._made[name] = instrument(_METRICS[name], self.registry)
        return made.labels(**labels) if labels else made
