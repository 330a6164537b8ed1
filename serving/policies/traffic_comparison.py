"""Counts how the challenger compares with the champion on real traffic: as shadow and as canary."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import Protocol

from mario.errors import MarioError
from mario.store.records import ServingComparison, utc_now
from serving.policies.sources import Role, VersionRef

logger = logging.getLogger("mario.serving")


class ComparisonSink(Protocol):
    """Where comparisons are stored."""

    def write(self, comparison: ServingComparison) -> None:
        """Store one comparison.

        Raises:
            MarioError: it cannot be stored now.
        """
        ...


@dataclass
class _InferenceTime:
    """Observations one version answered since the last flush, and the seconds it took."""

    observations: int = 0
    seconds: float = 0.0


class TrafficComparison:
    """Adds up counts and times, and writes them to a sink at intervals, from a thread."""

    def __init__(self, sink: ComparisonSink | None, flush_seconds: float) -> None:
        """Write to ``sink``, if there is one, every ``flush_seconds``."""
        self._sink = sink
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()
        self._now: ServingComparison | None = None
        self._kept: list[ServingComparison] = []
        self._times: dict[tuple[Role, VersionRef], _InferenceTime] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes."""
        if self._sink is not None:
            self._thread = threading.Thread(target=self._work, name="comparisons", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write the remaining counts and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def add(self, champion: VersionRef, challenger: VersionRef, **counts: int) -> None:
        """Add counts to the comparison of two versions.

        Args:
            champion: the champion.
            challenger: the challenger.
            counts: by field of :class:`ServingComparison`: ``shadow_observations`` that both
                answered, of which ``agreed_observations`` with the same buttons;
                ``dropped_observations`` that the shadow did not answer; ``champion_decisions`` and
                ``challenger_decisions`` in sessions.
        """
        with self._lock:
            now = self._between(champion, challenger)
            sums = {name: getattr(now, name) + count for name, count in counts.items()}
            self._now = replace(now, **sums)

    def add_inference(
        self, version: VersionRef, role: Role, observations: int, seconds: float
    ) -> None:
        """Add the time of an inference call.

        Whether the call belongs to a comparison is known only later, so times are kept by version
        until a comparison of the two versions is written, or the interval ends without one.
        """
        with self._lock:
            known = self._times.setdefault((role, version), _InferenceTime())
            known.observations += observations
            known.seconds += seconds

    def flush(self) -> None:
        """Write everything to the sink; keep what it cannot store for the next flush."""
        with self._lock:
            self._keep()
            self._now = None
            self._times.clear()
            kept, self._kept = self._kept, []
        if self._sink is None:
            return
        for position, comparison in enumerate(kept):
            try:
                self._sink.write(comparison)
            except MarioError as error:
                logger.warning("comparisons not stored yet: %s", error)
                with self._lock:
                    # An hour of ten-second intervals; older ones are dropped.
                    self._kept = [*kept[position:], *self._kept][-360:]
                return

    def _between(self, champion: VersionRef, challenger: VersionRef) -> ServingComparison:
        now = self._now
        if now is not None and _pair(now) == (champion, challenger):
            return now
        self._keep()
        started = utc_now()
        return ServingComparison(
            model=champion.model,
            champion_version=champion.version,
            champion_digest=champion.digest,
            challenger_version=challenger.version,
            challenger_digest=challenger.digest,
            started_at=started,
            ended_at=started,
        )

    def _keep(self) -> None:
        """Finish the current comparison with the times of both versions; queue it for writing."""
        now = self._now
        if now is None or now.empty:
            return
        champion, challenger = _pair(now)
        ours = self._times.pop(("champion", champion), _InferenceTime())
        theirs = self._times.pop(("challenger", challenger), _InferenceTime())
        ended = replace(
            now,
            ended_at=utc_now(),
            champion_seconds=ours.seconds,
            champion_observations=ours.observations,
            challenger_seconds=theirs.seconds,
            challenger_observations=theirs.observations,
        )
        self._kept.append(ended)

    def _work(self) -> None:
        while not self._stop.wait(self._flush_seconds):
            self.flush()
        self.flush()


def _pair(comparison: ServingComparison) -> tuple[VersionRef, VersionRef]:
    model = comparison.model
    return (
        VersionRef(model, comparison.champion_version, comparison.champion_digest),
        VersionRef(model, comparison.challenger_version, comparison.challenger_digest),
    )
