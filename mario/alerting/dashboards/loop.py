"""The dashboard of the loop: champion, gate, promotions, evaluations, flows, targets."""

from __future__ import annotations

from mario.alerting.declarations import Dashboard, Panel, quantiles

LOOP_DASHBOARD = Dashboard(
    "mario-loop",
    "Mario loop",
    ("model", "mario_champion_info"),
    (
        (
            "Champion",
            (
                Panel("Champion", "short",
                      (('mario_champion_info{model=~"$model"}', "{{model}} version {{version}}"),),
                      width=8, big_number=True),
                Panel("Champion for", "s",
                      (('time() - mario_champion_since_timestamp_seconds{model=~"$model"}',
                        "{{model}}"),), width=8, big_number=True),
                Panel("Alias agrees with the ledger", "short",
                      (('mario_champion_alias_in_line{model=~"$model"}', "{{model}}"),),
                      "1 or 0; `mario registry reconcile` repairs it.", 8, True),
                Panel("Score", "percentunit",
                      (('mario_evaluation_score{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Panel("Cleared", "percentunit",
                      (('mario_evaluation_clear_ratio{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Panel("Furthest x", "suffix: px",
                      (('mario_evaluation_furthest_x_px{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Panel("Nightly score and baseline", "percentunit",
                      (('mario_champion_nightly_score{model=~"$model"}',
                        "{{model}} {{version}} last night"),
                       ('mario_champion_baseline_score{model=~"$model"}',
                        "{{model}} {{version}} baseline")),
                      "Over equally many units; the baseline was played after the promotion.",
                      12),
                Panel("p-value of the nightly score", "short",
                      (('mario_champion_drift_p_value{model=~"$model"}', "{{model}} {{version}}"),),
                      "Under the hypothesis that nothing changed; an alert fires at 0.001.", 12),
            ),
        ),
        (
            "Gate and promotions",
            (
                Panel("Verdicts", "short",
                      (('sum by (model, decision) (mario_gate_verdicts_total{model=~"$model"})',
                        "{{model}} {{decision}}"),)),
                Panel("Evidence of the last verdict", "short",
                      (('mario_gate_evidence{model=~"$model"}', "{{model}}"),),
                      "Promotion needs 1/alpha: 20 at alpha 0.05."),
                Panel("Units of the last verdict", "short",
                      (('mario_gate_units{model=~"$model"}', "{{model}}"),)),
                Panel("Guards that refused", "short",
                      (('sum by (guard) (mario_gate_guard_failures_total{model=~"$model"})',
                        "{{guard}}"),)),
                Panel("Promotions", "short",
                      (('sum by (model, reason) (mario_promotions_total{model=~"$model"})',
                        "{{model}} {{reason}}"),)),
            ),
        ),
        (
            "Evaluation and flows",
            (
                Panel("Units played a minute", "short",
                      (('60 * sum by (seed_family) (rate(mario_evaluation_units_total'
                        '{model=~"$model"}[$__rate_interval]))', "{{seed_family}}"),)),
                Panel("Since the last evaluation", "s",
                      (('time() - mario_evaluation_last_timestamp_seconds{model=~"$model"}',
                        "{{model}} {{seed_family}}"),)),
                Panel("Flow runs", "short",
                      (("sum by (flow, state) (mario_pipeline_runs_total)",
                        "{{flow}} {{state}}"),)),
                Panel("Time of a stage", "s",
                      quantiles("mario_pipeline_stage_seconds", "stage")),
                Panel("Since the last success", "s",
                      (("time() - mario_pipeline_last_success_timestamp_seconds", "{{flow}}"),)),
            ),
        ),
        ("Platform", (
            Panel("Targets that answer", "short", (("up", "{{job}} {{instance}}"),), "1 or 0.", 24),
        )),
    ),
)  # fmt: skip
