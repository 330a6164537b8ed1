"""Exporters of the metrics: a page for a training run, a text file for a short job.

A training run has a page of its own (`MetricsPage`) while it lives. It announces the page to
Prometheus through file-based service discovery: one JSON file in a folder that Prometheus watches
(https://prometheus.io/docs/guides/file-sd/), gone when the run ends. The recorders
(`TrainingMetrics`, `StoreMetrics`, `LoopMetrics`) are what the rest of the system calls: a method
for each thing that happens, plain numbers in, no metric name written anywhere else.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
    write_to_textfile,
)

from mario.errors import ConfigError
from mario.telemetry.names import ALL_METRICS, instrument

#: The states of `mario.training.collapse_detector`, in the order of their severity.
HEALTH_STATES = ("warming", "healthy", "warning", "collapsed", "diverged")
#: Where training reports to, beside its page here; see `mario_training_sink_errors_total`.
SINKS = ("store", "mlflow", "tensorboard", "wandb")
CHECKPOINT_RESULTS = ("written", "failed", "skipped")

_METRICS = {metric.name: metric for metric in ALL_METRICS}


class Instruments:
    """The live instruments of one registry, made when first used.

    Safe to use from several threads. A metric that nothing has set does not appear on the page, so
    that "not measured" and 0 stay apart.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count up."""
        child = self._child(name, labels)
        assert isinstance(child, Counter), name
        child.inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge; non-finite numbers are shown as they are (NaN is a finding)."""
        child = self._child(name, labels)
        assert isinstance(child, Gauge), name
        child.set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add one observation to a histogram."""
        child = self._child(name, labels)
        assert isinstance(child, Histogram), name
        child.observe(value)

    def forget(self, name: str, **labels: str) -> None:
        """Take the series off the page that carry these labels, whatever their other labels."""
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

    def write_textfile(self, path: Path) -> None:
        """Leave the metrics of a job that ends, for a node exporter; complete or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), self.registry)


class MetricsPage:
    """An HTTP page `/metrics` in a thread of its own, announced to Prometheus while it is open.

    Args:
        registry: what is shown.
        host: address to bind; loopback unless told otherwise.
        port: 0 takes a free one.
        targets: folder that Prometheus watches (`file_sd_configs`); None announces nothing.
        name: what this page is in the file's name and in the label `instance`.
        advertise: host name under which Prometheus reaches this process; None: `host`, or this
            machine's name where `host` is every address.

    Raises:
        ConfigError: the address cannot be bound. It must not stop a training run: catch it, say
            it and go on without the page.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        targets: Path | None = None,
        name: str = "training",
        advertise: str | None = None,
    ) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics page: got {host}:{port}, which cannot be bound ({error.strerror}); "
                "expected a free port; use port 0 to take any"
            ) from None
        self.port = int(self._server.server_port)
        everywhere = host in {"0.0.0.0", "::", ""}  # noqa: S104 - asked for, not bound here
        self.address = f"{advertise or (socket.gethostname() if everywhere else host)}:{self.port}"
        self._target = targets / f"{name}.json" if targets else None
        if self._target:
            self._announce(self._target, name)

    @property
    def url(self) -> str:
        """Where a person on this machine looks."""
        return f"http://{self.address}/metrics"

    def _announce(self, target: Path, name: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        group = [{"targets": [self.address], "labels": {"job": "training", "instance": name}}]
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(group), encoding="utf-8")
        aside.replace(target)

    def close(self) -> None:
        """Stop answering and take the announcement back; twice does no harm."""
        if self._target:
            self._target.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class TrainingMetrics:
    """What a training run shows.

    Args:
        instruments: where it is shown.
        run: the run's id.
    """

    def __init__(self, instruments: Instruments, run: str) -> None:
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
        state: str = "warming",
    ) -> None:
        """Say what is trained.

        Counters that are alerted on start at 0: an environment that never ends an episode is seen,
        and the first failure is an increase, not a new series.
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
        for sink in SINKS:
            self._all.add("mario_training_sink_errors_total", 0, run=self._run, sink=sink)
        for result in CHECKPOINT_RESULTS:
            self._all.add("mario_training_checkpoints_total", 0, run=self._run, result=result)
        self._all.add("mario_training_rollbacks_total", 0, run=self._run)
        self.health(state, ())

    def steps(self, count: int) -> None:
        """Count agent steps of all environments."""
        self._all.add("mario_training_steps_total", count, run=self._run)

    def episode(self, end: str, environment: int) -> None:
        """Count an episode that ended (flag, death, time, truncated)."""
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
        """Show the means over the last 100 episodes of all environments."""
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
        """Show the rate of the whole run, in agent steps a second, and of what it is made."""
        self._set("steps_per_second", steps_per_second)
        for name, seconds in (("rollout", rollout_seconds), ("update", update_seconds)):
            if seconds is not None:
                self._all.observe(f"mario_training_{name}_seconds", seconds, run=self._run)
        self._set("learning_rate", learning_rate)
        self._set("exploration_ratio", exploration_ratio)

    def update(
        self,
        *,
        entropy_ratio: float | None = None,
        dominant_action_ratio: float | None = None,
        approximate_kl: float | None = None,
        clip_ratio: float | None = None,
        explained_variance: float | None = None,
        value_loss: float | None = None,
        gradient_norm: float | None = None,
        nonfinite: int = 0,
        dormant_units_ratio: float | None = None,
        q_value_max: float | None = None,
    ) -> None:
        """Show one network update; what an algorithm does not have is left out."""
        self._all.add("mario_training_updates_total", run=self._run)
        self._set("last_update_timestamp_seconds", time.time())
        self._all.add("mario_training_nonfinite_total", nonfinite, run=self._run)
        self._set("entropy_ratio", entropy_ratio)
        self._set("dominant_action_ratio", dominant_action_ratio)
        self._set("approximate_kl", approximate_kl)
        self._set("clip_ratio", clip_ratio)
        self._set("explained_variance", explained_variance)
        self._set("value_loss", value_loss)
        self._set("gradient_norm", gradient_norm)
        self._set("dormant_units_ratio", dormant_units_ratio)
        self._set("q_value_max", q_value_max)

    def health(self, state: str, rules: Collection[str]) -> None:
        """Show the collapse detector's state and the rules that hold now.

        Args:
            state: one of `HEALTH_STATES`.
            rules: names of the rules that hold; those that held before and do not now go to 0.
        """
        if state not in HEALTH_STATES:
            raise ValueError(f"health state: got {state!r}, expected one of {HEALTH_STATES}")
        for each in HEALTH_STATES:
            self._all.set("mario_training_health", each == state, run=self._run, state=each)
        changed = 0 if self._state in {None, state} else 1
        self._all.add("mario_training_health_changes_total", changed, run=self._run, state=state)
        self._state = state
        self._rules |= set(rules)
        for rule in self._rules:
            self._all.set("mario_training_health_rule", rule in rules, run=self._run, rule=rule)

    def rolled_back(self) -> None:
        """Count a return to the best checkpoint."""
        self._all.add("mario_training_rollbacks_total", run=self._run)

    def checkpoint(self, result: str, seconds: float | None = None) -> None:
        """Count a checkpoint: written, failed, or skipped as broken."""
        self._all.add("mario_training_checkpoints_total", run=self._run, result=result)
        if seconds is not None:
            self._all.observe("mario_training_checkpoint_seconds", seconds, run=self._run)
        if result == "written":
            self._set("last_checkpoint_timestamp_seconds", time.time())

    def selection(self, score: float) -> None:
        """Show the mean episode score on the selection seeds, in [0, 1]."""
        self._set("selection_score", score)
        self._best_score = max(self._best_score, score)
        self._set("best_selection_score", self._best_score)

    def sink_error(self, sink: str) -> None:
        """Count a write to a sink that failed."""
        self._all.add("mario_training_sink_errors_total", run=self._run, sink=sink)


class StoreMetrics:
    """What the writer between a training run and the database shows.

    Args:
        instruments: where it is shown.
        run: the run's id.
    """

    def __init__(self, instruments: Instruments, run: str) -> None:
        self._all = instruments
        self._run = run

    def available(self, yes: bool) -> None:
        """Show whether the database takes what is written."""
        self._all.set("mario_store_available", yes, run=self._run)

    def waiting(self, queue_rows: int, journal_rows: int) -> None:
        """Show what the database does not have yet."""
        self._all.set("mario_store_queue_rows", queue_rows, run=self._run)
        self._all.set("mario_store_journal_rows", journal_rows, run=self._run)

    def written(self, rows: Mapping[str, int], seconds: float) -> None:
        """Count one batch that the database took: rows by table."""
        self._all.add("mario_store_batches_total", run=self._run, result="written")
        self._all.observe("mario_store_batch_seconds", seconds, run=self._run)
        for table, count in rows.items():
            self._all.add("mario_store_written_rows_total", count, run=self._run, table=table)
        self._all.set("mario_store_last_write_timestamp_seconds", time.time(), run=self._run)
        self.available(True)

    def failed(self) -> None:
        """Count one batch that the database did not take."""
        self._all.add("mario_store_batches_total", run=self._run, result="failed")
        self.available(False)

    def replayed(self, rows: int) -> None:
        """Count rows of the journal that the database has now."""
        self._all.add("mario_store_journal_replayed_rows_total", rows, run=self._run)


class LoopMetrics:
    """What the arrows after training show: evaluation, gate, promotion, flows.

    Args:
        instruments: where it is shown.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._all = instruments

    def units(self, model: str, seed_family: str, count: int) -> None:
        """Count units that were played."""
        self._all.add("mario_evaluation_units_total", count, model=model, seed_family=seed_family)

    def evaluation(
        self,
        model: str,
        version: str,
        seed_family: str,
        *,
        score: float,
        clear_ratio: float,
        furthest_x_px: float,
        ended_at: float | None = None,
    ) -> None:
        """Show the means of an evaluation that ended (`ended_at`: Unix time; None: now)."""
        labels = {"model": model, "version": version, "seed_family": seed_family}
        self._all.set("mario_evaluation_score", score, **labels)
        self._all.set("mario_evaluation_clear_ratio", clear_ratio, **labels)
        self._all.set("mario_evaluation_furthest_x_px", furthest_x_px, **labels)
        self._all.set(
            "mario_evaluation_last_timestamp_seconds",
            time.time() if ended_at is None else ended_at,
            model=model,
            seed_family=seed_family,
        )

    def verdict(
        self, model: str, decision: str, *, evidence: float, units: int, guards: Collection[str]
    ) -> None:
        """Show a verdict: decision, e-value, units, and the names of the guards that failed."""
        self._all.add("mario_gate_verdicts_total", model=model, decision=decision)
        self._all.set("mario_gate_evidence", evidence, model=model)
        self._all.set("mario_gate_units", units, model=model)
        for guard in guards:
            self._all.add("mario_gate_guard_failures_total", model=model, guard=guard)

    def champion(self, model: str, version: str, digest: str, since: float) -> None:
        """Show who is champion and since when (Unix time); the former one leaves the page."""
        self._all.forget("mario_champion_info", model=model)
        self._all.set("mario_champion_info", 1, model=model, version=version, digest=digest)
        self._all.set("mario_champion_since_timestamp_seconds", since, model=model)

    def night(
        self, model: str, version: str, *, baseline_score: float, score: float, p_value: float
    ) -> None:
        """Show how the champion's last night compares with its baseline."""
        for name, value in (
            ("baseline_score", baseline_score),
            ("nightly_score", score),
            ("drift_p_value", p_value),
        ):
            self._all.set(f"mario_champion_{name}", value, model=model, version=version)

    def no_night(self, model: str) -> None:
        """Take a former champion's night off the page: the present one had none yet."""
        for name in ("baseline_score", "nightly_score", "drift_p_value"):
            self._all.forget(f"mario_champion_{name}", model=model)

    def alias_in_line(self, model: str, yes: bool) -> None:
        """Show whether the registry's alias names the ledger's champion."""
        self._all.set("mario_champion_alias_in_line", yes, model=model)

    def promotion(self, model: str, reason: str) -> None:
        """Count an entry in the promotion ledger."""
        self._all.add("mario_promotions_total", model=model, reason=reason)

    def stage(self, flow: str, stage: str, seconds: float) -> None:
        """Show how long one stage of a flow took."""
        self._all.observe("mario_pipeline_stage_seconds", seconds, flow=flow, stage=stage)

    def flow_ended(self, flow: str, state: str, ended_at: float | None = None) -> None:
        """Count a flow run that ended (`ended_at`: Unix time; None: now)."""
        self._all.add("mario_pipeline_runs_total", flow=flow, state=state)
        if state == "completed":
            moment = time.time() if ended_at is None else ended_at
            self._all.set("mario_pipeline_last_success_timestamp_seconds", moment, flow=flow)
