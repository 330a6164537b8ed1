"""Render all alerts and dashboards into files of monitoring/ and docs/runbooks/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mario.alerting.alerts.champion import CHAMPION_ALERTS
from mario.alerting.alerts.platform import PLATFORM_ALERTS
from mario.alerting.alerts.serving import SERVING_ALERTS
from mario.alerting.alerts.store import STORE_ALERTS
from mario.alerting.alerts.training import TRAINING_ALERTS
from mario.alerting.dashboards.loop import LOOP_DASHBOARD
from mario.alerting.dashboards.serving import SERVING_DASHBOARD
from mario.alerting.dashboards.training import TRAINING_DASHBOARD
from mario.alerting.declarations import AlertGroup, Dashboard, RecordingRule
from mario.alerting.grafana import dashboard_json
from mario.alerting.prometheus import rules_file
from mario.errors import ConfigError
from mario.telemetry.names import series_names

GROUPS = (TRAINING_ALERTS, STORE_ALERTS, SERVING_ALERTS, CHAMPION_ALERTS, PLATFORM_ALERTS)
DASHBOARDS = (TRAINING_DASHBOARD, SERVING_DASHBOARD, LOOP_DASHBOARD)

#: Folders whose files are all rendered here.
RULES_FOLDER = "monitoring/prometheus/rules"
DASHBOARDS_FOLDER = "monitoring/grafana/dashboards"


def rendered_files(
    groups: Sequence[AlertGroup] = GROUPS, dashboards: Sequence[Dashboard] = DASHBOARDS
) -> dict[str, str]:
    """Return all rendered files: path from the root of the repository → text.

    Raises:
        ConfigError: an expression uses a metric that is not declared.
    """
    recorded = {r.name for group in groups for r in group.rules if isinstance(r, RecordingRule)}
    known = series_names() | recorded
    for where, expression in _expressions(groups, dashboards):
        unknown = names_in(expression) - known
        if unknown:
            raise ConfigError(
                f"{where}: got the metric {min(unknown)}; expected one of mario.telemetry.names or "
                "a recording rule; declare it there, or correct the name"
            )
    return {
        **{f"{RULES_FOLDER}/{group.name}.yml": rules_file(group) for group in groups},
        **{f"{DASHBOARDS_FOLDER}/{board.uid}.json": dashboard_json(board) for board in dashboards},
        "docs/runbooks/index.md": runbooks_index(groups),
    }


def runbooks_index(groups: Sequence[AlertGroup]) -> str:
    """Return the page that leads from every alert to its section of a runbook."""
    lines = [
        "# Runbooks",
        "",
        "Each alert links to its section here: what it means, how to look, what to do.",
        "",
        "| page | alerts about |",
        "|---|---|",
        *(f"| [{g.name.capitalize()}]({g.name}.md) | {g.about} |" for g in groups),
        "",
        "## All alerts",
        "",
        "The rules are in `monitoring/prometheus/rules/`, with a test for each in",
        "`monitoring/prometheus/tests/`. `make dashboards` renders rules, dashboards and this page",
        "from `mario/alerting`.",
        "",
        "| alert | severity | fires after |",
        "|---|---|---|",
        *(
            f"| [{alert.name}]({group.runbook(alert).rpartition('/')[2]}) | {alert.severity} "
            f"| {alert.pending or 'at once'} |"
            for group in groups
            for alert in group.alerts
        ),
    ]
    return "\n".join(lines) + "\n"


def names_in(expression: str) -> set[str]:
    """Return the names of this project's metrics in an expression, not those in its strings."""
    return set(re.findall(r"\bmario[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', '""', expression)))


def _expressions(
    groups: Sequence[AlertGroup], dashboards: Sequence[Dashboard]
) -> Iterator[tuple[str, str]]:
    """Yield every expression, and where it is declared."""
    for group in groups:
        for rule in group.rules:
            yield rule.name, rule.expr
    for board in dashboards:
        for _, panels in board.rows:
            for panel in panels:
                for expression, _ in panel.queries:
                    yield f"{board.title}: {panel.title}", expression
        if board.variable is not None:
            yield board.title, board.variable[1]
