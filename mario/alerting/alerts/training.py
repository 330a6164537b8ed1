"""Alerts about training runs: collapse first, then what would hide one."""

from __future__ import annotations

from mario.alerting.declarations import Alert, AlertGroup

TRAINING_ALERTS = AlertGroup(
    "training",
    "collapse, divergence, silence, checkpoints, sinks",
    (
        Alert("MarioTrainingCollapsed", "critical",
              'mario_training_health{state="collapsed"} == 1',
              "Training run {{ $labels.run }} has collapsed",
              "The collapse detector sees a policy that has degenerated."),
        Alert("MarioTrainingDiverged", "critical",
              'mario_training_health{state="diverged"} == 1 '
              "or on (run) increase(mario_training_nonfinite_total[5m]) > 0",
              "Training run {{ $labels.run }} has diverged",
              "A loss, a gradient, a weight or a Q-value left all bounds, or is NaN or infinite."),
        Alert("MarioTrainingUnhealthy", "warning",
              'mario_training_health{state="warning"} == 1',
              "Training run {{ $labels.run }} has been unhealthy for 15 minutes",
              "A rule of the collapse detector holds; mario_training_health_rule says which.",
              pending="15m"),
        # Independent of the detector in the run: it compares distances only.
        Alert("MarioTrainingRegressed", "warning",
              "mario_training_furthest_x_px < 0.5 * mario_training_best_furthest_x_px "
              "and mario_training_best_furthest_x_px > 500",
              "Training run {{ $labels.run }} gets less than half as far as it did",
              'Mean furthest x is {{ $value | printf "%.0f" }} px, under half of this run\'s best.',
              pending="10m"),
        # The failure that this system was built after: only environment 0 was recorded.
        Alert("MarioTrainingEnvironmentSilent", "warning",
              "increase(mario_training_episodes_by_environment_total[30m]) == 0 "
              "and on (run) sum by (run) (increase(mario_training_episodes_total[30m])) "
              "> on (run) 5 * mario_training_environments",
              "Environment {{ $labels.environment }} of run {{ $labels.run }} ends no episodes",
              "The others end several each; it is stuck, or its episodes are not recorded.",
              pending="5m"),
        Alert("MarioTrainingStalled", "warning",
              "time() - mario_training_last_update_timestamp_seconds > 900",
              "Training run {{ $labels.run }} has not updated its network for 15 minutes",
              "The last update was {{ $value | humanizeDuration }} ago."),
        Alert("MarioTrainingGone", "warning",
              'up{job="training"} == 0',
              "Training run {{ $labels.instance }} disappeared before it ended",
              "Its metrics page is still listed as a target but does not answer.", pending="2m"),
        Alert("MarioTrainingCheckpointFailing", "warning",
              'increase(mario_training_checkpoints_total{result="failed"}[15m]) > 0',
              "Training run {{ $labels.run }} cannot write checkpoints",
              "If the run is killed, everything since the last checkpoint is lost."),
        Alert("MarioTrainingSinkFailing", "info",
              "increase(mario_training_sink_errors_total[15m]) > 0",
              "Run {{ $labels.run }} cannot write to {{ $labels.sink }}",
              "Training continues; the record in this sink has gaps.", pending="15m"),
    ),
)  # fmt: skip
