"""Numbers of a challenger beside the champion: in the shadow, and as a canary on some sessions."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from mario.errors import MarioError
from serving.sources import Role, VersionRef

logger = logging.getLogger("mario.serving")


@dataclass(frozen=True)
class Comparison:
    """What champion and challenger did beside each other in one stretch of time.

    Attributes:
        champion: the version that answered.
        challenger: the version that answered in the shadow, or as a canary.
        started_at: start of the stretch.
        ended_at: its end.
        shadow_observations: observations that both answered.
        agreed_observations: of these, those where both would press the same buttons.
        dropped_observations: observations meant for the shadow that it was too slow for.
        champion_decisions: decisions in sessions that the champion took.
        challenger_decisions: decisions in sessions that the challenger took.
        champion_seconds: time the champion's inference calls took.
        champion_observations: observations in them.
        challenger_seconds: time the challenger's inference calls took.
        challenger_observations: observations in them.
    """

    champion: VersionRef
    challenger: VersionRef
    started_at: datetime
    ended_at: datetime
    shadow_observations: int = 0
    agreed_observations: int = 0
    dropped_observations: int = 0
    champion_decisions: int = 0
    challenger_decisions: int = 0
    champion_seconds: float = 0.0
    champion_observations: int = 0
    challenger_seconds: float = 0.0
    challenger_observations: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was compared."""
        return not (
            self.shadow_observations or self.dropped_observations or self.challenger_decisions
        )


class ComparisonSink(Protocol):
    """Where comparisons are kept."""

    def write(self, comparison: Comparison) -> None:
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
        self._now: Comparison | None = None
        self._kept: list[Comparison] = []
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
                self._kept.append(replace(self._now, ended_at=_utc_now()))
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

    def _between(self, champion: VersionRef, challenger: VersionRef) -> Comparison:
        now = self._now
        if now is not None and (now.champion, now.challenger) == (champion, challenger):
            return now
        if now is not None and not now.empty:
            self._kept.append(replace(now, ended_at=_utc_now()))
        started = _utc_now()
        return Comparison(champion, challenger, started, started)

    def _work(self) -> None:
        while not self._stop.wait(self._flush_seconds):
            self.flush()
        self.flush()


def _utc_now() -> datetime:
    return datetime.now(UTC)
