"""Numbers of a challenger beside the champion: in the shadow, and as a canary on some sessions."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Protocol

from mario.errors import MarioError
from mario.store.records import ServingComparison, utc_now
from serving.sources import Role, VersionRef

logger = logging.getLogger("mario.serving")


class ComparisonSink(Protocol):
    """Where comparisons are kept."""

    def write(self, comparison: ServingComparison) -> None:
        """Keep one comparison.

        Raises:
            MarioError: it cannot be kept now.
        """
        ...


class Comparer:
    """Adds up and hands what it has to the sink now and then, from a thread of its own."""

    def __init__(self, sink: ComparisonSink | None, flush_seconds: float) -> None:
        """Write to ``sink``, if there is one, every ``flush_seconds``."""
        self._sink = sink
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()
        self._now: ServingComparison | None = None
        self._kept: list[ServingComparison] = []
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

    def took(self, role: Role, observations: int, seconds: float) -> None:
        """Add the time of an inference call, while two versions are being compared."""
        with self._lock:
            now = self._now
            if now is None:
                return
            if role == "champion":
                self._now = replace(
                    now,
                    champion_seconds=now.champion_seconds + seconds,
                    champion_observations=now.champion_observations + observations,
                )
            else:
                self._now = replace(
                    now,
                    challenger_seconds=now.challenger_seconds + seconds,
                    challenger_observations=now.challenger_observations + observations,
                )

    def flush(self) -> None:
        """Hand everything to the sink; what it cannot take is tried again next time."""
        with self._lock:
            if self._now is not None and not self._now.empty:
                self._kept.append(replace(self._now, ended_at=utc_now()))
            self._now = None
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
        if now is not None and not now.empty:
            self._kept.append(replace(now, ended_at=utc_now()))
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
