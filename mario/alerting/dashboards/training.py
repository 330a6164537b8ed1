"""The dashboard of training runs: health, learning, policy, machine and records."""

from __future__ import annotations

from mario.alerting.declarations import Dashboard, Panel, quantiles


def _run(metric: str) -> str:
    return f'mario_training_{metric}{{run=~"$run"}}'


TRAINING_DASHBOARD = Dashboard(
    "mario-training",
    "Mario training",
    ("run", "mario_training_info"),
    (
        (
            "Health",
            (
                Panel("Health", "short", ((_run("health") + " == 1", "{{run}} {{state}}"),),
                      "healthy, warning, collapsed or diverged.", 6, True),
                Panel("Collapse rules that hold", "short",
                      (("sum by (rule) (" + _run("health_rule") + ")", "{{rule}}"),),
                      "For each rule of the collapse detector, the runs in which it holds.", 10),
                Panel("Age of the last update", "s",
                      (("time() - " + _run("last_update_timestamp_seconds"), "{{run}}"),),
                      "Keeps rising if training hangs.", 8),
            ),
        ),
        (
            "Learning",
            (
                Panel("Furthest x, mean of 100 episodes", "suffix: px",
                      ((_run("furthest_x_px"), "{{run}}"),
                       (_run("best_furthest_x_px"), "{{run}} best")),
                      "All environments. If far below its best, see the runbook.", 12),
                Panel("Cleared", "percentunit", ((_run("clear_ratio"), "{{run}}"),), width=6),
                Panel("Return", "short", ((_run("return"), "{{run}}"),), width=6),
                Panel("Score on selection seeds", "percentunit",
                      ((_run("selection_score"), "{{run}}"),
                       (_run("best_selection_score"), "{{run}} best")), width=8),
                Panel("Episode length", "short", ((_run("episode_steps"), "{{run}}"),),
                      "In agent steps.", 8),
                Panel("Episodes a minute, by end", "short",
                      (("60 * sum by (end) (rate(mario_training_episodes_total"
                        "{run=~\"$run\"}[$__rate_interval]))", "{{end}}"),), width=8),
                Panel("Episodes, by environment", "short",
                      ((_run("episodes_by_environment_total"), "{{environment}}"),),
                      "A flat line is an environment that is stuck or not recorded.", 24),
            ),
        ),
        (
            "Policy",
            (
                Panel("Entropy of the actions", "percentunit",
                      ((_run("entropy_ratio"), "{{run}}"),),
                      "1: uniformly random; 0: always the same action."),
                Panel("Share of the dominant action", "percentunit",
                      ((_run("dominant_action_ratio"), "{{run}}"),),
                      "Without DQN's random actions."),
                Panel("Dormant units", "percentunit", ((_run("dormant_units_ratio"), "{{run}}"),)),
                Panel("Approximate KL", "short", ((_run("approximate_kl"), "{{run}}"),),
                      "PPO. Both very low and very high values are bad signs."),
                Panel("Clipped", "percentunit", ((_run("clip_ratio"), "{{run}}"),), "PPO."),
                Panel("Explained variance", "short", ((_run("explained_variance"), "{{run}}"),),
                      "PPO. At most 1; below 0 the value predicts worse than a constant."),
                Panel("Value loss", "short", ((_run("value_loss"), "{{run}}"),)),
                Panel("Gradient norm", "short", ((_run("gradient_norm"), "{{run}}"),)),
                Panel("Not finite", "short", ((_run("nonfinite_total"), "{{run}}"),),
                      "Anything above 0 is an error."),
                Panel("Highest Q-value", "short", ((_run("q_value_max"), "{{run}}"),), "DQN."),
                Panel("Exploration", "percentunit", ((_run("exploration_ratio"), "{{run}}"),),
                      "DQN."),
                Panel("Learning rate", "short", ((_run("learning_rate"), "{{run}}"),)),
            ),
        ),
        (
            "Machine and records",
            (
                Panel("Steps a second", "short", ((_run("steps_per_second"), "{{run}}"),)),
                Panel("Progress", "percentunit",
                      ((_run("steps_total") + " / on (run) " + _run("planned_steps"), "{{run}}"),)),
                Panel("Rollout and update", "s",
                      (*quantiles("mario_training_rollout_seconds"),
                       *quantiles("mario_training_update_seconds"))),
                Panel("Checkpoints", "short",
                      (("sum by (run, result) (" + _run("checkpoints_total") + ")",
                        "{{run}} {{result}}"),)),
                Panel("Database", "short",
                      (('mario_store_available{run=~"$run"}', "{{run}} accepts writes"),),
                      "1 or 0."),
                Panel("Waiting rows", "short",
                      (('mario_store_queue_rows{run=~"$run"}', "{{run}} in memory"),
                       ('mario_store_journal_rows{run=~"$run"}', "{{run}} in the journal"))),
                Panel("Rows written a second", "short",
                      (('sum by (table) (rate(mario_store_written_rows_total{run=~"$run"}'
                        "[$__rate_interval]))", "{{table}}"),)),
                Panel("Time of a batch", "s", quantiles("mario_store_batch_seconds")),
                Panel("Failed writes to sinks", "short",
                      (("sum by (sink) (increase(mario_training_sink_errors_total"
                        '{run=~"$run"}[$__rate_interval]))', "{{sink}}"),)),
            ),
        ),
    ),
)  # fmt: skip
