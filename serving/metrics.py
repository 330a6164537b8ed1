"""The Prometheus metrics of a worker, and the window of observations that its gauges summarise."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mario.game.console.contract import UInt8Array
from mario.policy.manifest import observation_features
from mario.telemetry.instruments import instrument
from mario.telemetry.names import SERVING_METRICS
from serving.policies.sources import Role
from serving.policies.version_follower import LoadedVersion

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_REFRESH_SECONDS = 2.0


class ServingMetrics:
    """All serving metrics, by the part of the name after ``mario_serving_``."""

    def __init__(self, drift_window: int) -> None:
        """Register the metrics; gauges summarise the last ``drift_window`` observations."""
        self.registry = CollectorRegistry()
        self._instruments: dict[str, Any] = {
            metric.name.removeprefix("mario_serving_"): instrument(metric, self.registry)
            for metric in SERVING_METRICS
        }
        self._children: dict[tuple[str, ...], Any] = {}
        self._window = ObservationWindow(drift_window)
        self._readers: dict[str, Callable[[], float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        _forget_dead_workers()

    def start(self) -> None:
        """Refresh the gauges every few seconds, in the event loop.

        Another worker may serve the page, which then shows the last values of this one.
        """
        self.refresh()
        self._timer = asyncio.get_running_loop().call_later(_REFRESH_SECONDS, self.start)

    def stop(self) -> None:
        """Stop refreshing."""
        if self._timer is not None:
            self._timer.cancel()

    def get(self, name: str, *labels: str) -> Any:
        """Return a metric, or its child with these label values (cached)."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._instruments[name]
            if labels:
                child = child.labels(*labels)
            self._children[key] = child
        return child

    def on_swap(
        self, role: Role, result: str, before: LoadedVersion | None, now: LoadedVersion | None
    ) -> None:
        """Count the result of a poll for another version, and record a swap."""
        self.get("swaps_total", role, result).inc()
        if before is now:
            return
        if before is not None:
            self.get("version_info", *_version_labels(role, before)).set(0)
        if now is not None:
            self.get("version_info", *_version_labels(role, now)).set(1)
            self.get("last_swap_timestamp_seconds", role).set(now.loaded_at)

    def record_predictions(
        self, version: LoadedVersion, observations: UInt8Array, actions: npt.NDArray[np.int64]
    ) -> None:
        """Count actions and add the observations to the window."""
        names = version.policy.artefact.manifest.action_names
        for action in actions.tolist():
            self.get("actions_total", names[action]).inc()
        self._window.add(version, observations, actions)

    def set_reader(self, name: str, read: Callable[[], float]) -> None:
        """Set a gauge to what ``read`` returns at each refresh."""
        self._readers[name] = read

    def refresh(self) -> None:
        """Update the gauges; too expensive for every request."""
        for name, read in self._readers.items():
            self.get(name).set(read())
        for name, value in self._window.summary().items():
            self.get(name).set(value)

    def page(self) -> tuple[bytes, str]:
        """Render the metrics of all workers in Prometheus' text format; return it and its type."""
        self.refresh()
        if _MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry), CONTENT_TYPE_LATEST
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class ObservationWindow:
    """Features of the last observations, and the last actions.

    Features cost a tenth of an inference, so they are computed for the first observation of one
    call in ``_EVERY``; every action counts.
    """

    _EVERY = 4

    def __init__(self, size: int) -> None:
        """Keep the last ``size`` observations' features and actions."""
        self._features: deque[tuple[float, float, bool, bool]] = deque(maxlen=size)
        self._actions: deque[int] = deque(maxlen=size)
        self._version: LoadedVersion | None = None
        self._calls = 0
        self._lock = threading.Lock()

    def add(
        self, version: LoadedVersion, observations: UInt8Array, actions: npt.NDArray[np.int64]
    ) -> None:
        """Add the observations and actions of one call."""
        with self._lock:
            if version is not self._version:
                # Versions may differ in actions and training distribution.
                self._version = version
                self._actions.clear()
                self._features.clear()
                self._calls = 0
            self._actions.extend(actions.tolist())
            self._calls += 1
            if self._calls % self._EVERY != 1:
                return
        features = observation_features(observations[:1])
        item = (
            float(features.brightness[0]),
            float(features.contrast[0]),
            bool(features.black[0]),
            bool(features.frozen[0]),
        )
        with self._lock:
            self._features.append(item)

    def summary(self) -> dict[str, float]:
        """Summarise the window as gauge name → value; empty before the first observation."""
        with self._lock:
            version, actions = self._version, np.array(self._actions, dtype=np.int64)
            features = np.array(self._features, dtype=np.float64)
        if version is None or len(actions) == 0 or len(features) == 0:
            return {}
        manifest = version.policy.artefact.manifest
        brightness, contrast, black, frozen = features.mean(axis=0)
        result = {
            "action_entropy_ratio": entropy_ratio(actions, len(manifest.actions)),
            "observation_brightness": float(brightness),
            "observation_contrast": float(contrast),
            "observation_black_ratio": float(black),
            "observation_frozen_ratio": float(frozen),
        }
        training = manifest.training_statistics
        if training is not None:
            for name, now, mean, deviation in (
                ("brightness", brightness, training.brightness_mean, training.brightness_std),
                ("contrast", contrast, training.contrast_mean, training.contrast_std),
            ):
                # At least half a grey level, as training data without variation would divide by 0.
                result[f"observation_{name}_drift"] = float((now - mean) / max(deviation, 0.5))
            result["observation_black_excess_ratio"] = float(black - training.black_share)
            result["observation_frozen_excess_ratio"] = float(frozen - training.frozen_share)
        return result


def entropy_ratio(actions: npt.NDArray[np.int64], action_count: int) -> float:
    """Shannon entropy of the actions' frequencies over its maximum log(A).

    Args:
        actions: int64 (N,), 0..A-1, N ≥ 1.
        action_count: A.

    Returns:
        0 (one action only) to 1 (all equally often); 1 where A is 1.
    """
    if action_count == 1:
        return 1.0
    shares = np.bincount(actions, minlength=action_count) / len(actions)
    shares = shares[shares > 0]
    return float(max(0.0, -(shares * np.log(shares)).sum() / np.log(action_count)))


def _forget_dead_workers() -> None:
    """Remove the live gauges of workers that were killed; prometheus_client keeps them."""
    folder = os.environ.get(_MULTIPROCESS)
    if folder is None:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        except PermissionError:
            pass  # another user's process has this number now


def _version_labels(role: Role, version: LoadedVersion) -> tuple[str, str, str, str]:
    return (role, version.ref.model, version.ref.version, version.ref.digest)
