"""The Prometheus sink: a metrics page of the run while it trains."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from mario.errors import ConfigError
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.page import MetricsPage
from mario.telemetry.training import TrainingMetrics
from mario.tracking.opening import SinkOpening
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import WINDOW_EPISODES, TrainingEpisode
from mario.training.sinks import (
    CheckpointWritten,
    Incident,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    TrainingSink,
)

log = logging.getLogger(__name__)


class PrometheusSink(TrainingSink):
    """Serves a metrics page of the run while it trains."""

    name: ClassVar[str] = "prometheus"

    def __init__(
        self,
        run_id: str,
        instruments: InstrumentSet,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        targets: Path | None = None,
    ) -> None:
        """Prepare the page; it opens when the run starts.

        Args:
            run_id: label of every series.
            instruments: the metrics of the page; the store's writer counts there, too.
            host: address to bind.
            port: port to bind; 0 takes a free one.
            targets: folder where Prometheus looks for pages.
        """
        self._instruments = instruments
        self._metrics = TrainingMetrics(self._instruments, run_id)
        self._where = {"host": host, "port": port, "targets": targets, "name": run_id}
        self._page: MetricsPage | None = None
        self._steps = 0
        self._cleared: deque[bool] = deque(maxlen=WINDOW_EPISODES)
        self._lengths_steps: deque[int] = deque(maxlen=WINDOW_EPISODES)

    def on_start(self, start: RunStart) -> None:
        """Open the page; if its port is taken, the run trains without it."""
        config = start.config
        self._steps = start.start_steps
        self._metrics.start(
            config=config.name,
            config_hash=config.content_hash(),
            algorithm=config.algorithm.name,
            task=config.task,
            environments=config.environments,
            planned_steps=config.total_steps,
            state=start.state,
        )
        try:
            self._page = MetricsPage(self._instruments.registry, **self._where)  # type: ignore[arg-type]
        except ConfigError as error:
            log.warning("%s; training goes on without it", error)

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Count episodes of every environment."""
        for record in episodes:
            self._metrics.episode(record.end, record.env_index)
            self._cleared.append(record.cleared)
            self._lengths_steps.append(record.length_steps)

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Show signals and health."""
        self._metrics.update(
            entropy_ratio=sample.entropy_ratio,
            dominant_action_ratio=sample.dominant_action_share,
            approximate_kl=sample.approx_kl,
            clip_ratio=sample.clip_fraction,
            explained_variance=sample.explained_variance,
            value_loss=sample.value_loss,
            gradient_norm=sample.gradient_norm,
            nonfinite=int(sample.non_finite),
            dormant_units_ratio=sample.dormant_share,
            q_value_max=sample.q_max,
        )
        self._metrics.health(health.state, health.rules)

    def on_selection(self, selection: SelectionDone) -> None:
        """Show the score."""
        self._metrics.selection(selection.score)

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Count the checkpoint."""
        self._metrics.checkpoint("written", checkpoint.seconds)

    def on_incident(self, incident: Incident) -> None:
        """Count the incident."""
        if incident.kind == "rollback":
            self._metrics.rolled_back()
        elif incident.kind == "checkpoint_failed":
            self._metrics.checkpoint("failed")
        elif incident.kind == "checkpoint_skipped":
            self._metrics.checkpoint("skipped")
        else:
            self._metrics.sink_error(incident.sink)

    def on_progress(self, progress: Progress) -> None:
        """Show rates and means."""
        self._metrics.steps(progress.total_steps - self._steps)
        self._steps = progress.total_steps
        if progress.mean_furthest_px is not None and progress.mean_return is not None:
            self._metrics.window(
                furthest_x_px=progress.mean_furthest_px,
                shaped_return=progress.mean_return,
                clear_ratio=fmean(self._cleared) if self._cleared else None,
                episode_steps=fmean(self._lengths_steps) if self._lengths_steps else None,
            )
        scalars = progress.scalars
        self._metrics.pace(
            steps_per_second=progress.steps_per_second,
            rollout_seconds=scalars.get("time/rollout_seconds"),
            update_seconds=scalars.get("time/update_seconds"),
            learning_rate=scalars.get("train/learning_rate"),
            exploration_ratio=scalars.get("rollout/exploration_rate"),
        )

    def on_end(self, end: RunEnd) -> None:
        """Close the page."""
        if self._page is not None:
            self._page.close()


def open_sink(opening: SinkOpening) -> PrometheusSink:
    """Open the sink at MARIO_METRICS_HOST and _PORT (default: a free port on 127.0.0.1).

    MARIO_METRICS_TARGETS names the folder where Prometheus looks for pages.
    """
    targets = os.environ.get("MARIO_METRICS_TARGETS")
    return PrometheusSink(
        opening.run.id,
        opening.instruments,
        host=os.environ.get("MARIO_METRICS_HOST", "127.0.0.1"),
        port=int(os.environ.get("MARIO_METRICS_PORT", "0")),
        targets=Path(targets) if targets else None,
    )
