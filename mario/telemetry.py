"""Every Prometheus metric of the system, by name, in one place; imports none of the parts it names.

Names carry the prefix `mario_`, base units (`_seconds`, `_px`, `_steps`) and `_total` on counters
(https://prometheus.io/docs/practices/naming/). Dashboards and alert rules may use no name that is
not here; a test holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: full name, with `_total` on counters.
        kind: what Prometheus calls it.
        help: what a person reads in the metrics page and in the docs.
        labels: label names.
        buckets: upper bounds of a histogram, in the metric's unit.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TRAINING_METRICS: tuple[Metric, ...] = (
    Metric("mario_training_steps_total", "counter", "Agent steps trained.", ("run",)),
    Metric("mario_training_episodes_total", "counter", "Episodes ended, by reason.",
           ("run", "end")),
    Metric("mario_training_steps_per_second", "gauge", "Agent steps a second, rollout and update.",
           ("run",)),
    Metric("mario_training_furthest_x_px", "gauge",
           "Mean furthest x of the last 100 episodes of all environments, in px.", ("run",)),
    Metric("mario_training_return", "gauge",
           "Mean shaped return of the last 100 episodes of all environments.", ("run",)),
    Metric("mario_training_entropy_ratio", "gauge",
           "Entropy of the policy's actions over its maximum, 0 to 1.", ("run",)),
    Metric("mario_training_health", "gauge",
           "1 for the state that the collapse detector sees now, else 0.", ("run", "state")),
    Metric("mario_training_last_update_timestamp_seconds", "gauge",
           "Unix time of the last network update.", ("run",)),
)  # fmt: skip


def instrument(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    """Make the live instrument of a metric in a registry."""
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels, registry=registry)
    buckets = metric.buckets or Histogram.DEFAULT_BUCKETS
    return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=registry)
