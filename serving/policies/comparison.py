"""Numbers of a challenger beside the champion: in the shadow, and as a canary on some sessions."""

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
    """Where comparisons are kept."""

    def write(self, comparison: ServingComparison) -> None:
        """Keep one comparison.

        Raises:
            MarioError: it cannot be kept now.
        """
        ...


@dataclass
class _Time:
    """Inference of one version in the stretch."""

    observations: int = 0
    seconds: float = 0.0


class Comparer:
    """Adds up and hands what it has to the sink now and then, from a thread of its own."""

    def __init__(self, sink: ComparisonSink | None, flush_seconds: float) -> None:
        """Write to ``sink``, if there is one, every ``flush_seconds``."""
        self._sink = sink
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()
        self._now: ServingComparison | None = None
        self._kept: list[ServingComparison] = []
        self._times: dict[tuple[Role, VersionRef], _Time] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that writes."""
        if self._sink is not None:
            self._thread = threading.Thread(target=self._work, name="comparisons", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what is left and stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def shadow(
        self, champion: VersionRef, challenger: VersionRef, observations: int, agreed: int
    ) -> None:
        """Add observations that both answered."""
        with self._lock:
            now = self._between(champion, challenger)
            self._now = replace(
                now,
                shadow_observations=now.shadow_observations + observations,
                agreed_observations=now.agreed_observations + agreed,
            )

    def dropped(self, champion: VersionRef, challenger: VersionRef, observations: int) -> None:
        """Add observations that the shadow was too slow for."""
        with self._lock:
            now = self._between(champion, challenger)
            self._now = replace(now, dropped_observations=now.dropped_observations + observations)

    def decided(self, champion: VersionRef, challenger: VersionRef, role: Role) -> None:
        """Add one decision in a session."""
        with self._lock:
            now = self._between(champion, challenger)
            if role == "champion":
                self._now = replace(now, champion_decisions=now.champion_decisions + 1)
            else:
                self._now = replace(now, challenger_decisions=now.challenger_decisions + 1)

    def took(self, version: VersionRef, role: Role, observations: int, seconds: float) -> None:
        """Add the time of an inference call.

        The call ends before it is known to be part of a comparison, and many are of none: times
        wait by version until the two versions are compared, or a stretch ends without.
        """
        with self._lock:
            known = self._times.setdefault((role, version), _Time())
            known.observations += observations
            known.seconds += seconds

    def flush(self) -> None:
        """Hand everything to the sink; what it cannot take is tried again next time."""
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
                logger.warning("comparisons wait for the store: %s", error)
                with self._lock:
                    # An hour of ten-second stretches; beyond that the oldest are let go.
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
        """Put the stretch that ends aside, with the times of its two versions."""
        now = self._now
        if now is None or now.empty:
            return
        champion, challenger = _pair(now)
        ours = self._times.pop(("champion", champion), _Time())
        theirs = self._times.pop(("challenger", challenger), _Time())
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
