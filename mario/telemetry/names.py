"""Declarations of every Prometheus metric of the system.

Names have the prefix `mario_`, base units (`_seconds`, `_px`, `_steps`) and `_total` on counters
(https://prometheus.io/docs/practices/naming/). Dashboards and alert rules use no other names; a
test checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One declared metric.

    Attributes:
        name: full name, with `_total` on counters.
        kind: Prometheus' type of the metric.
        help: the text on the metrics page.
        labels: label names.
        buckets: upper bounds of a histogram, in the metric's unit.
        across_workers: how a gauge is aggregated over worker processes.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across_workers: Literal["all", "livesum", "livemax", "livemin", "livemostrecent"] = "all"


#: From 10 ms (a small insert) to half an hour (a long evaluation).
_WORK_BUCKETS_SECONDS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0,
)  # fmt: skip

#: On the page of each training run; `run` is the run's id.
TRAINING_METRICS: tuple[Metric, ...] = (
    Metric("mario_training_info", "gauge", "1; the labels describe the run.",
           ("run", "config", "config_hash", "algorithm", "task")),
    Metric("mario_training_planned_steps", "gauge", "Agent steps after which the run ends.",
           ("run",)),
    Metric("mario_training_environments", "gauge", "Environments of the run.", ("run",)),
    Metric("mario_training_steps_total", "counter", "Agent steps trained.", ("run",)),
    Metric("mario_training_episodes_total", "counter", "Episodes ended, by reason.",
           ("run", "end")),
    Metric("mario_training_episodes_by_environment_total", "counter",
           "Episodes ended, by environment; a count that stops shows a stuck environment.",
           ("run", "environment")),
    Metric("mario_training_steps_per_second", "gauge",
           "Agent steps per second, rollout and update.", ("run",)),
    Metric("mario_training_furthest_x_px", "gauge",
           "Mean furthest x of the last 100 episodes of all environments, in px.", ("run",)),
    Metric("mario_training_best_furthest_x_px", "gauge",
           "Highest mario_training_furthest_x_px of this run, in px.", ("run",)),
    Metric("mario_training_clear_ratio", "gauge",
           "Share of the last 100 episodes that reached the flag, 0 to 1.", ("run",)),
    Metric("mario_training_return", "gauge",
           "Mean shaped return of the last 100 episodes of all environments.", ("run",)),
    Metric("mario_training_episode_steps", "gauge",
           "Mean length of the last 100 episodes, in agent steps.", ("run",)),
    Metric("mario_training_updates_total", "counter", "Network updates (one per rollout for PPO).",
           ("run",)),
    Metric("mario_training_rollout_seconds", "histogram", "Time of one rollout, in s.", ("run",),
           _WORK_BUCKETS_SECONDS),
    Metric("mario_training_update_seconds", "histogram", "Time of one network update, in s.",
           ("run",), _WORK_BUCKETS_SECONDS),
    Metric("mario_training_last_update_timestamp_seconds", "gauge",
           "Unix time of the last network update.", ("run",)),
    Metric("mario_training_learning_rate", "gauge", "Learning rate of the last update.", ("run",)),
    Metric("mario_training_entropy_ratio", "gauge",
           "Entropy of the policy's actions over its maximum, 0 to 1.", ("run",)),
    Metric("mario_training_dominant_action_ratio", "gauge",
           "Share of the most frequent action, 0 to 1 (DQN: without random actions).", ("run",)),
    Metric("mario_training_approximate_kl", "gauge",
           "Approximate KL divergence of the update, in nats (PPO).", ("run",)),
    Metric("mario_training_clip_ratio", "gauge",
           "Share of samples whose probability ratio was clipped, 0 to 1 (PPO).", ("run",)),
    Metric("mario_training_explained_variance", "gauge",
           "1 - Var[return - value] / Var[return]; at most 1 (PPO).", ("run",)),
    Metric("mario_training_value_loss", "gauge", "Value loss of the last update.", ("run",)),
    Metric("mario_training_gradient_norm", "gauge",
           "Norm of the gradient before clipping, of the last update.", ("run",)),
    Metric("mario_training_nonfinite_total", "counter",
           "Losses, gradients or outputs that were not finite.", ("run",)),
    Metric("mario_training_dormant_units_ratio", "gauge",
           "Share of hidden units that hardly fire, 0 to 1.", ("run",)),
    Metric("mario_training_q_value_max", "gauge", "Highest Q-value of the last batch (DQN).",
           ("run",)),
    Metric("mario_training_exploration_ratio", "gauge",
           "Chance of a random action, 0 to 1 (DQN).", ("run",)),
    Metric("mario_training_health", "gauge",
           "1 for the collapse detector's current state, else 0.", ("run", "state")),
    Metric("mario_training_health_changes_total", "counter",
           "Changes of the collapse detector's state, by the new state.", ("run", "state")),
    Metric("mario_training_health_rule", "gauge",
           "1 while a rule of the collapse detector is violated, else 0.", ("run", "rule")),
    Metric("mario_training_rollbacks_total", "counter",
           "Returns to the best checkpoint after a collapse.", ("run",)),
    Metric("mario_training_checkpoints_total", "counter",
           "Checkpoints by result: written, failed, skipped as broken.", ("run", "result")),
    Metric("mario_training_checkpoint_seconds", "histogram",
           "Time to write one checkpoint, in s.", ("run",), _WORK_BUCKETS_SECONDS),
    Metric("mario_training_last_checkpoint_timestamp_seconds", "gauge",
           "Unix time of the last complete checkpoint.", ("run",)),
    Metric("mario_training_selection_score", "gauge",
           "Mean episode score on the selection seeds, 0 to 1, of the last selection.", ("run",)),
    Metric("mario_training_best_selection_score", "gauge",
           "Mean episode score on the selection seeds, 0 to 1, of the best checkpoint.", ("run",)),
    Metric("mario_training_sink_errors_total", "counter",
           "Failed writes to a sink (store, mlflow, tensorboard, wandb); training continues.",
           ("run", "sink")),
)  # fmt: skip

#: The writer between a training run and the database, on the run's page.
STORE_METRICS: tuple[Metric, ...] = (
    Metric("mario_store_available", "gauge", "1 while the database accepts writes, else 0.",
           ("run",)),
    Metric("mario_store_written_rows_total", "counter", "Rows written to the database, by table.",
           ("run", "table")),
    Metric("mario_store_batches_total", "counter", "Batches by result: written, failed.",
           ("run", "result")),
    Metric("mario_store_batch_seconds", "histogram", "Time to write one batch, in s.", ("run",),
           _WORK_BUCKETS_SECONDS),
    Metric("mario_store_queue_rows", "gauge", "Rows that wait in memory.",
           ("run",)),
    Metric("mario_store_journal_rows", "gauge",
           "Rows in the journal on disk that are not in the database yet.", ("run",)),
    Metric("mario_store_journal_replayed_rows_total", "counter",
           "Rows written from the journal after an outage or a kill.", ("run",)),
    Metric("mario_store_last_write_timestamp_seconds", "gauge",
           "Unix time of the last written batch.", ("run",)),
)  # fmt: skip

#: Evaluations, verdicts, promotions and flow runs; `model` is the registered model of a task.
LOOP_METRICS: tuple[Metric, ...] = (
    Metric("mario_evaluation_units_total", "counter",
           "Units played under mario-eval-v1, by seed family.", ("model", "seed_family")),
    Metric("mario_evaluation_score", "gauge",
           "Mean episode score of the last evaluation, 0 to 1.",
           ("model", "version", "seed_family")),
    Metric("mario_evaluation_clear_ratio", "gauge",
           "Share of units cleared in the last evaluation, 0 to 1.",
           ("model", "version", "seed_family")),
    Metric("mario_evaluation_furthest_x_px", "gauge",
           "Mean furthest x of the last evaluation, in px.", ("model", "version", "seed_family")),
    Metric("mario_evaluation_last_timestamp_seconds", "gauge",
           "Unix time at which the last evaluation ended.", ("model", "seed_family")),
    Metric("mario_gate_verdicts_total", "counter",
           "Verdicts by decision: promote, reject, inconclusive.", ("model", "decision")),
    Metric("mario_gate_guard_failures_total", "counter",
           "Failed guards; each keeps the champion whatever the test's result.",
           ("model", "guard")),
    Metric("mario_gate_evidence", "gauge",
           "Evidence (e-value) against \"no better\" in the last verdict; promotion needs 1/alpha.",
           ("model",)),
    Metric("mario_gate_units", "gauge", "Units that the last verdict needed.", ("model",)),
    Metric("mario_champion_info", "gauge", "1; the labels name the champion.",
           ("model", "version", "digest")),
    Metric("mario_champion_since_timestamp_seconds", "gauge",
           "Unix time of the promotion that made the champion.", ("model",)),
    Metric("mario_champion_alias_in_line", "gauge",
           "1 while the registry's alias is on the ledger's champion, else 0.", ("model",)),
    Metric("mario_champion_baseline_score", "gauge",
           "Mean episode score of the champion's nightly baseline, 0 to 1: a fixed number of units "
           "played after its promotion.", ("model", "version")),
    Metric("mario_champion_nightly_score", "gauge",
           "Mean episode score of the champion's last nightly evaluation, 0 to 1.",
           ("model", "version")),
    Metric("mario_champion_drift_p_value", "gauge",
           "p-value of the nightly check: probability, 0 to 1, of a difference between baseline "
           "and last nightly evaluation at least as large if nothing changed.",
           ("model", "version")),
    Metric("mario_promotions_total", "counter", "Entries in the promotion ledger, by reason.",
           ("model", "reason")),
    Metric("mario_pipeline_runs_total", "counter",
           "Flow runs ended, by state: completed, failed, crashed, cancelled, collapsed, "
           "interrupted, drifted.",
           ("flow", "state")),
    Metric("mario_pipeline_stage_seconds", "histogram", "Time of one stage of a flow, in s.",
           ("flow", "stage"), _WORK_BUCKETS_SECONDS),
    Metric("mario_pipeline_last_success_timestamp_seconds", "gauge",
           "Unix time at which a flow last completed.", ("flow",)),
)  # fmt: skip


#: From 0.1 ms (one inference call of a small network) to the longest time-out.
_LATENCY_BUCKETS_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

SERVING_METRICS: tuple[Metric, ...] = (
    Metric("mario_serving_requests_total", "counter", "Requests answered, by status.",
           ("endpoint", "status")),
    Metric("mario_serving_errors_total", "counter", "Requests refused, by reason.",
           ("endpoint", "reason")),
    Metric("mario_serving_request_seconds", "histogram",
           "Time from the request's headers to its answer, in s.", ("endpoint",),
           _LATENCY_BUCKETS_SECONDS),
    Metric("mario_serving_inference_seconds", "histogram",
           "Time of one inference call of the network, in s.", ("role",),
           _LATENCY_BUCKETS_SECONDS),
    Metric("mario_serving_batch_observations", "histogram",
           "Observations in one inference call.", ("role",), _BATCH_BUCKETS),
    Metric("mario_serving_queue_observations", "gauge",
           "Observations that wait for inference or are in it.", (), (), "livesum"),
    Metric("mario_serving_in_flight_requests", "gauge", "Requests in progress.", (), (), "livesum"),
    Metric("mario_serving_sessions", "gauge", "Open sessions.", (), (), "livemax"),
    Metric("mario_serving_watchers", "gauge", "Open pages that watch a game.", (), (), "livesum"),
    Metric("mario_serving_version_info", "gauge",
           "Worker processes that answer with this version; 0 once it was replaced.",
           ("role", "model", "version", "digest"), (), "livesum"),
    Metric("mario_serving_swaps_total", "counter",
           "Checks for a new version, by result: swapped, removed, refused (the old version "
           "stays), unreachable.", ("role", "result")),
    Metric("mario_serving_last_swap_timestamp_seconds", "gauge",
           "Unix time of the last change of the serving version.", ("role",), (), "livemax"),
    Metric("mario_serving_actions_total", "counter", "Actions chosen.", ("action",)),
    Metric("mario_serving_action_entropy_ratio", "gauge",
           "Entropy of the actions chosen in the window over its maximum, 0 to 1.", (), (),
           "livemin"),
    Metric("mario_serving_observation_brightness_drift", "gauge",
           "Mean brightness in the window minus that in training, in standard deviations of "
           "training.", (), (), "livemostrecent"),
    Metric("mario_serving_observation_contrast_drift", "gauge",
           "Mean contrast in the window minus that in training, in standard deviations of "
           "training.", (), (), "livemostrecent"),
    Metric("mario_serving_observation_brightness", "gauge",
           "Mean grey level of the newest frames in the window, 0 to 255.", (), (),
           "livemostrecent"),
    Metric("mario_serving_observation_contrast", "gauge",
           "Mean standard deviation of the newest frames' grey levels in the window.", (), (),
           "livemostrecent"),
    Metric("mario_serving_observation_black_ratio", "gauge",
           "Share of all-black newest frames in the window, 0 to 1.", (), (), "livemax"),
    Metric("mario_serving_observation_frozen_ratio", "gauge",
           "Share of observations in the window whose four frames are equal, 0 to 1.", (), (),
           "livemax"),
    Metric("mario_serving_observation_black_excess_ratio", "gauge",
           "Share of all-black newest frames in the window minus that in training, -1 to 1.",
           (), (), "livemostrecent"),
    Metric("mario_serving_observation_frozen_excess_ratio", "gauge",
           "Share of observations in the window whose four frames are equal minus that in "
           "training, -1 to 1.", (), (), "livemostrecent"),
    Metric("mario_serving_shadow_observations_total", "counter",
           "Observations sent to the shadow challenger, by result: agree, differ, dropped (too "
           "slow).", ("result",)),
    Metric("mario_serving_canary_decisions_total", "counter",
           "Decisions in sessions, by the role that took them.", ("role",)),
)  # fmt: skip


ALL_METRICS: tuple[Metric, ...] = (
    *TRAINING_METRICS, *STORE_METRICS, *LOOP_METRICS, *SERVING_METRICS,
)  # fmt: skip


def series_names() -> frozenset[str]:
    """Name every series that a metrics page may show; a histogram has three."""
    names: set[str] = set()
    for metric in ALL_METRICS:
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(metric.name)
    return frozenset(names)
