"""The metrics of a training run: one method for each event of the run."""

from __future__ import annotations

import time
from collections.abc import Collection

from mario.config.run_states import HealthState
from mario.config.sinks import SINKS
from mario.telemetry.instruments import InstrumentSet

#: Values of the label `sink`: all but the sink that shows these metrics.
SINK_LABELS = ("store", *(name for name in SINKS if name != "prometheus"))
#: Values of the label `result`.
CHECKPOINT_RESULTS = ("written", "failed", "skipped")


class TrainingMetrics:
    """The metrics of one training run.

    Args:
        instruments: the instruments to update.
        run: the run's id, the label `run` of every series.
    """

    def __init__(self, instruments: InstrumentSet, run: str) -> None:
        self._all = instruments
        self._run = run
        self._best_px = float("-inf")
        self._best_score = float("-inf")
        self._rules: set[str] = set()
        self._state: str | None = None

    def _set(self, name: str, value: float | None) -> None:
        if value is not None:
            self._all.set(f"mario_training_{name}", value, run=self._run)

    def start(
        self,
        *,
        config: str,
        config_hash: str,
        algorithm: str,
        task: str,
        environments: int,
        planned_steps: int,
        state: HealthState = HealthState.WARMING,
    ) -> None:
        """Describe the run and start its counters.

        Counters with alerts start at 0, so that an environment that ends no episode is visible and
        the first failure is an increase of a series that exists.
        """
        self._all.set(
            "mario_training_info",
            1,
            run=self._run,
            config=config,
            config_hash=config_hash,
            algorithm=algorithm,
            task=task,
        )
        self._set("environments", environments)
        self._set("planned_steps", planned_steps)
        for index in range(environments):
            self._all.add(
                "mario_training_episodes_by_environment_total",
                0,
                run=self._run,
                environment=str(index),
            )
        for sink in SINK_LABELS:
            self._all.add("mario_training_sink_errors_total", 0, run=self._run, sink=sink)
        for result in CHECKPOINT_RESULTS:
            self._all.add("mario_training_checkpoints_total", 0, run=self._run, result=result)
        self._all.add("mario_training_rollbacks_total", 0, run=self._run)
        self.health(state, ())

    def steps(self, count: int) -> None:
        """Count agent steps, over all environments."""
        self._all.add("mario_training_steps_total", count, run=self._run)

    def episode(self, end: str, environment: int) -> None:
        """Count an episode that ended.

        Args:
            end: why it ended: `flag`, `death`, `time` or `truncated`.
            environment: index of its environment.
        """
        self._all.add("mario_training_episodes_total", run=self._run, end=end)
        self._all.add(
            "mario_training_episodes_by_environment_total",
            run=self._run,
            environment=str(environment),
        )

    def window(
        self,
        *,
        furthest_x_px: float,
        shaped_return: float,
        clear_ratio: float | None = None,
        episode_steps: float | None = None,
    ) -> None:
        """Show means over the last 100 episodes of all environments."""
        self._set("furthest_x_px", furthest_x_px)
        self._best_px = max(self._best_px, furthest_x_px)
        self._set("best_furthest_x_px", self._best_px)
        self._set("return", shaped_return)
        self._set("clear_ratio", clear_ratio)
        self._set("episode_steps", episode_steps)

    def pace(
        self,
        *,
        steps_per_second: float,
        rollout_seconds: float | None = None,
        update_seconds: float | None = None,
        learning_rate: float | None = None,
        exploration_ratio: float | None = None,
    ) -> None:
        """Show the run's rate in agent steps per second, and the times that make it up."""
        self._set("steps_per_second", steps_per_second)
        for name, seconds in (("rollout", rollout_seconds), ("update", update_seconds)):
            if seconds is not None:
                self._all.observe(f"mario_training_{name}_seconds", seconds, run=self._run)
        self._set("learning_rate", learning_rate)
        self._set("exploration_ratio", exploration_ratio)

    def update(self, *, nonfinite: int = 0, **signals: float | None) -> None:
        """Show one network update.

        Args:
            nonfinite: number of losses, gradients and outputs that are not finite.
            **signals: values of gauges, by metric name without `mario_training_`; None leaves out a
                signal that the algorithm does not have.
        """
        self._all.add("mario_training_updates_total", run=self._run)
        self._set("last_update_timestamp_seconds", time.time())
        self._all.add("mario_training_nonfinite_total", nonfinite, run=self._run)
        for name, value in signals.items():
            self._set(name, value)

    def health(self, state: HealthState, rules: Collection[str]) -> None:
        """Show the collapse detector's state and the rules that are violated.

        Args:
            state: the state.
            rules: names of the violated rules; rules violated earlier but not now go to 0.
        """
        state = HealthState(state)
        for each in HealthState:
            self._all.set("mario_training_health", each == state, run=self._run, state=each)
        changed = 0 if self._state in {None, state} else 1
        self._all.add("mario_training_health_changes_total", changed, run=self._run, state=state)
        self._state = state
        self._rules |= set(rules)
        for rule in self._rules:
            self._all.set("mario_training_health_rule", rule in rules, run=self._run, rule=rule)

    def rolled_back(self) -> None:
        """Count a rollback to the best checkpoint."""
        self._all.add("mario_training_rollbacks_total", run=self._run)

    def checkpoint(self, result: str, seconds: float | None = None) -> None:
        """Count a checkpoint.

        Args:
            result: `written`, `failed`, or `skipped` (a broken one, on resuming).
            seconds: how long writing took.
        """
        self._all.add("mario_training_checkpoints_total", run=self._run, result=result)
        if seconds is not None:
            self._all.observe("mario_training_checkpoint_seconds", seconds, run=self._run)
        if result == "written":
            self._set("last_checkpoint_timestamp_seconds", time.time())

    def selection(self, score: float) -> None:
        """Show the mean episode score on the selection seeds, 0 to 1."""
        self._set("selection_score", score)
        self._best_score = max(self._best_score, score)
        self._set("best_selection_score", self._best_score)

    def sink_error(self, sink: str) -> None:
        """Count a write to a sink that failed."""
        self._all.add("mario_training_sink_errors_total", run=self._run, sink=sink)
