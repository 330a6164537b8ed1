"""Writes the Grafana dashboards: `generate.py [--check]`; --check says whether they are current.

The dashboards are data made from the few lists below, so that a panel is one line and no JSON is
edited by hand. Metric names are those of `mario.telemetry.names`; a test runs every expression
against a real Prometheus and fails where one of them answers nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FOLDER = Path(__file__).parents[2] / "monitoring" / "grafana" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


@dataclass(frozen=True)
class Graph:
    """One panel.

    Attributes:
        title: what is shown.
        unit: Grafana's name of the unit ("short", "s", "percentunit", "reqps", …).
        queries: expression and legend of each line.
        about: what a person should think on seeing it.
        width: of 24.
        big_number: the newest value in large instead of lines.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    width: int = 8
    big_number: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard: rows of graphs, and the label that its variable offers.

    Attributes:
        uid: name in URLs and of the file.
        title: name for people.
        variable: label whose values can be chosen, and the metric they are read from.
        rows: heading and graphs.
    """

    uid: str
    title: str
    variable: tuple[str, str] | None
    rows: tuple[tuple[str, tuple[Graph, ...]], ...]


def _quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
            f"p{round(q * 100)}{legend}",
        )
        for q in (0.5, 0.99)
    )


def _run(metric: str) -> str:
    return f'mario_training_{metric}{{run=~"$run"}}'


TRAINING = Board(
    "mario-training",
    "Mario training",
    ("run", "mario_training_info"),
    (
        (
            "Is it well?",
            (
                Graph("Health", "short", ((_run("health") + " == 1", "{{run}} {{state}}"),),
                      "healthy, warning, collapsed or diverged.", 6, True),
                Graph("Rules that hold", "short",
                      (("sum by (rule) (" + _run("health_rule") + ")", "{{rule}}"),),
                      "Runs in which each rule of the collapse detector holds.", 10),
                Graph("Age of the last update", "s",
                      (("time() - " + _run("last_update_timestamp_seconds"), "{{run}}"),),
                      "Rises without end when training hangs.", 8),
            ),
        ),
        (
            "Does it learn?",
            (
                Graph("Furthest x, mean of 100 episodes", "suffix: px",
                      ((_run("furthest_x_px"), "{{run}}"),
                       (_run("best_furthest_x_px"), "{{run}} best")),
                      "All environments. Far below its best: see the runbook.", 12),
                Graph("Cleared", "percentunit", ((_run("clear_ratio"), "{{run}}"),), width=6),
                Graph("Return", "short", ((_run("return"), "{{run}}"),), width=6),
                Graph("Score on selection seeds", "percentunit",
                      ((_run("selection_score"), "{{run}}"),
                       (_run("best_selection_score"), "{{run}} best")), width=8),
                Graph("Episode length", "short", ((_run("episode_steps"), "{{run}}"),),
                      "In agent steps.", 8),
                Graph("Episodes a minute, by end", "short",
                      (("60 * sum by (end) (rate(mario_training_episodes_total"
                        "{run=~\"$run\"}[$__rate_interval]))", "{{end}}"),), width=8),
                Graph("Episodes, by environment", "short",
                      ((_run("episodes_by_environment_total"), "{{environment}}"),),
                      "One line that stays flat is an environment that nobody sees.", 24),
            ),
        ),
        (
            "The policy",
            (
                Graph("Entropy of the actions", "percentunit",
                      ((_run("entropy_ratio"), "{{run}}"),), "1 is random, 0 always the same."),
                Graph("Share of the dominant action", "percentunit",
                      ((_run("dominant_action_ratio"), "{{run}}"),),
                      "DQN: its random actions taken out."),
                Graph("Dormant units", "percentunit", ((_run("dormant_units_ratio"), "{{run}}"),)),
                Graph("Approximate KL", "short", ((_run("approximate_kl"), "{{run}}"),),
                      "PPO. Too low is as bad as too high."),
                Graph("Clipped", "percentunit", ((_run("clip_ratio"), "{{run}}"),), "PPO."),
                Graph("Explained variance", "short", ((_run("explained_variance"), "{{run}}"),),
                      "PPO. At most 1; below 0 the value is worse than none."),
                Graph("Value loss", "short", ((_run("value_loss"), "{{run}}"),)),
                Graph("Gradient norm", "short", ((_run("gradient_norm"), "{{run}}"),)),
                Graph("Not finite", "short", ((_run("nonfinite_total"), "{{run}}"),),
                      "Anything above 0 is an error."),
                Graph("Highest Q-value", "short", ((_run("q_value_max"), "{{run}}"),), "DQN."),
                Graph("Exploration", "percentunit", ((_run("exploration_ratio"), "{{run}}"),),
                      "DQN."),
                Graph("Learning rate", "short", ((_run("learning_rate"), "{{run}}"),)),
            ),
        ),
        (
            "The machine and the records",
            (
                Graph("Steps a second", "short", ((_run("steps_per_second"), "{{run}}"),)),
                Graph("Progress", "percentunit",
                      ((_run("steps_total") + " / on (run) " + _run("planned_steps"), "{{run}}"),)),
                Graph("Rollout and update", "s",
                      (*_quantiles("mario_training_rollout_seconds"),
                       *_quantiles("mario_training_update_seconds"))),
                Graph("Checkpoints", "short",
                      (("sum by (run, result) (" + _run("checkpoints_total") + ")",
                        "{{run}} {{result}}"),)),
                Graph("Database", "short",
                      (('mario_store_available{run=~"$run"}', "{{run}} takes what is written"),),
                      "1 or 0."),
                Graph("Rows that wait", "short",
                      (('mario_store_queue_rows{run=~"$run"}', "{{run}} in memory"),
                       ('mario_store_journal_rows{run=~"$run"}', "{{run}} in the journal"))),
                Graph("Rows written a second", "short",
                      (('sum by (table) (rate(mario_store_written_rows_total{run=~"$run"}'
                        "[$__rate_interval]))", "{{table}}"),)),
                Graph("Time of a batch", "s", _quantiles("mario_store_batch_seconds")),
                Graph("Failed writes to sinks", "short",
                      (("sum by (sink) (increase(mario_training_sink_errors_total"
                        '{run=~"$run"}[$__rate_interval]))', "{{sink}}"),)),
            ),
        ),
    ),
)  # fmt: skip

SERVING = Board(
    "mario-serving",
    "Mario serving",
    None,
    (
        (
            "Who answers?",
            (
                Graph("Version", "short",
                      (("mario_serving_version_info > 0", "{{role}} {{model}} {{version}}"),),
                      "Workers that answer with it.", 12, True),
                Graph("Looks for another version", "short",
                      (("sum by (role, result) (mario_serving_swaps_total)",
                        "{{role}} {{result}}"),),
                      "refused: the former version answers on.", 12),
            ),
        ),
        (
            "How well?",
            (
                Graph("Requests a second", "reqps",
                      (("sum by (endpoint) (rate(mario_serving_requests_total"
                        "[$__rate_interval]))", "{{endpoint}}"),)),
                Graph("Refused a second, by reason", "reqps",
                      (("sum by (reason) (rate(mario_serving_errors_total[$__rate_interval]))",
                        "{{reason}}"),)),
                Graph("5xx", "percentunit",
                      (("mario:serving_failures:rate5m / (mario:serving_requests:rate5m > 0)",
                        "share of the answers"),), "Alerted above 1%."),
                Graph("Request", "s", _quantiles("mario_serving_request_seconds", "endpoint"),
                      width=12),
                Graph("Inference call", "s", _quantiles("mario_serving_inference_seconds", "role"),
                      "One decision at 15 a second is 66 ms.", 12),
                Graph("Observations in a call", "short",
                      _quantiles("mario_serving_batch_observations", "role")),
                Graph("Waiting", "short",
                      (("mario_serving_queue_observations", "observations"),
                       ("mario_serving_in_flight_requests", "requests"))),
                Graph("Sessions and watchers", "short",
                      (("mario_serving_sessions", "sessions"),
                       ("mario_serving_watchers", "watchers"))),
            ),
        ),
        (
            "What?",
            (
                Graph("Actions", "percentunit",
                      (("sum by (action) (rate(mario_serving_actions_total[$__rate_interval])) "
                        "/ on () group_left () sum(rate(mario_serving_actions_total"
                        "[$__rate_interval]))", "{{action}}"),), width=12),
                Graph("Entropy of the actions", "percentunit",
                      (("mario_serving_action_entropy_ratio", "entropy"),), width=12),
                Graph("Drift of the screens", "short",
                      (("mario_serving_observation_brightness_drift", "brightness"),
                       ("mario_serving_observation_contrast_drift", "contrast")),
                      "In standard deviations of the training data; alerted above 3."),
                Graph("Brightness and contrast", "short",
                      (("mario_serving_observation_brightness", "brightness"),
                       ("mario_serving_observation_contrast", "contrast")),
                      "Grey levels, 0 to 255."),
                Graph("Black and frozen", "percentunit",
                      (("mario_serving_observation_black_ratio", "black"),
                       ("mario_serving_observation_frozen_ratio", "frozen"),
                       ("mario_serving_observation_black_excess_ratio", "black, less training"),
                       ("mario_serving_observation_frozen_excess_ratio", "frozen, less training"))),
                Graph("Shadow", "short",
                      (("sum by (result) (rate(mario_serving_shadow_observations_total"
                        "[$__rate_interval]))", "{{result}}"),),
                      "Whether the challenger chose as the champion did.", 12),
                Graph("Canary", "short",
                      (("sum by (role) (rate(mario_serving_canary_decisions_total"
                        "[$__rate_interval]))", "{{role}}"),), width=12),
            ),
        ),
    ),
)  # fmt: skip

LOOP = Board(
    "mario-loop",
    "Mario loop",
    ("model", "mario_champion_info"),
    (
        (
            "The champion",
            (
                Graph("Champion", "short",
                      (('mario_champion_info{model=~"$model"}', "{{model}} version {{version}}"),),
                      width=8, big_number=True),
                Graph("Champion for", "s",
                      (('time() - mario_champion_since_timestamp_seconds{model=~"$model"}',
                        "{{model}}"),), width=8, big_number=True),
                Graph("Alias agrees with the ledger", "short",
                      (('mario_champion_alias_in_line{model=~"$model"}', "{{model}}"),),
                      "1 or 0; `mario registry reconcile` mends it.", 8, True),
                Graph("Score", "percentunit",
                      (('mario_evaluation_score{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Graph("Cleared", "percentunit",
                      (('mario_evaluation_clear_ratio{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Graph("Furthest x", "suffix: px",
                      (('mario_evaluation_furthest_x_px{model=~"$model"}',
                        "{{model}} {{version}} {{seed_family}}"),)),
                Graph("Last night and baseline", "percentunit",
                      (('mario_champion_nightly_score{model=~"$model"}',
                        "{{model}} {{version}} last night"),
                       ('mario_champion_baseline_score{model=~"$model"}',
                        "{{model}} {{version}} baseline")),
                      "Scores of as many units each; the baseline was played after the promotion.",
                      12),
                Graph("Chance of such a night", "short",
                      (('mario_champion_drift_p_value{model=~"$model"}', "{{model}} {{version}}"),),
                      "p-value where nothing changed; alerted at 0.001.", 12),
            ),
        ),
        (
            "Gate and promotions",
            (
                Graph("Verdicts", "short",
                      (('sum by (model, decision) (mario_gate_verdicts_total{model=~"$model"})',
                        "{{model}} {{decision}}"),)),
                Graph("Evidence of the last verdict", "short",
                      (('mario_gate_evidence{model=~"$model"}', "{{model}}"),),
                      "Promotion needs 1/alpha, that is 20 at alpha 0.05."),
                Graph("Units of the last verdict", "short",
                      (('mario_gate_units{model=~"$model"}', "{{model}}"),)),
                Graph("Guards that refused", "short",
                      (('sum by (guard) (mario_gate_guard_failures_total{model=~"$model"})',
                        "{{guard}}"),)),
                Graph("Promotions", "short",
                      (('sum by (model, reason) (mario_promotions_total{model=~"$model"})',
                        "{{model}} {{reason}}"),)),
            ),
        ),
        (
            "Evaluation and flows",
            (
                Graph("Units played a minute", "short",
                      (('60 * sum by (seed_family) (rate(mario_evaluation_units_total'
                        '{model=~"$model"}[$__rate_interval]))', "{{seed_family}}"),)),
                Graph("Since the last evaluation", "s",
                      (('time() - mario_evaluation_last_timestamp_seconds{model=~"$model"}',
                        "{{model}} {{seed_family}}"),)),
                Graph("Flow runs", "short",
                      (("sum by (flow, state) (mario_pipeline_runs_total)",
                        "{{flow}} {{state}}"),)),
                Graph("Time of a stage", "s",
                      _quantiles("mario_pipeline_stage_seconds", "stage")),
                Graph("Since the last success", "s",
                      (("time() - mario_pipeline_last_success_timestamp_seconds", "{{flow}}"),)),
            ),
        ),
        ("Platform", (
            Graph("Targets that answer", "short", (("up", "{{job}} {{instance}}"),), "1 or 0.", 24),
        )),
    ),
)  # fmt: skip

BOARDS = (TRAINING, SERVING, LOOP)


def _panel(graph: Graph, number: int) -> stat.Panel | timeseries.Panel:
    panel: stat.Panel | timeseries.Panel
    if graph.big_number:
        newest = common.ReduceDataOptions().calcs(["lastNotNull"])
        panel = stat.Panel().text_mode(BigValueTextMode.VALUE_AND_NAME).reduce_options(newest)
    else:
        panel = timeseries.Panel().legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    panel = panel.id(number).title(graph.title).unit(graph.unit).datasource(SOURCE)
    panel = panel.span(graph.width).height(8)
    if graph.about:
        panel = panel.description(graph.about)
    for index, (expression, legend) in enumerate(graph.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend)
        panel = panel.with_target(query.ref_id(chr(ord("A") + index)))
    return panel


def build(board: Board) -> str:
    """Return a dashboard as JSON, keys sorted, so that a change of it can be read."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["mario", "generated"])
        .description("Made by mario/alerting/dashboards.py; changes made here are lost.")
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
    )
    if board.variable:
        label, metric = board.variable
        made = made.with_variable(
            dashboard.QueryVariable(label)
            .datasource(SOURCE)
            .query(f"label_values({metric}, {label})")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
        )
    number = 0
    for heading, graphs in board.rows:
        made = made.with_row(dashboard.Row(heading))
        for graph in graphs:
            number += 1
            made = made.with_panel(_panel(graph, number))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(made.build())), indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the dashboards, or with --check say which are not current (exit code 1)."""
    stale = []
    for board in BOARDS:
        path = FOLDER / f"{board.uid}.json"
        text = build(board)
        if "--check" not in arguments:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(
                f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
            )
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"not current: {', '.join(stale)}; run `make dashboards`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
