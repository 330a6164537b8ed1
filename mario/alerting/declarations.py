"""The types in which alerts and dashboards are declared.

Expressions are PromQL. Every metric in them is one of `mario.telemetry.names` or a recording rule;
:func:`mario.alerting.render.rendered_files` checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Alert:
    """One alert rule.

    Attributes:
        name: name of the alert and heading of its section in the runbook.
        severity: determines the receiver; see `monitoring/alertmanager/alertmanager.yml`.
        expr: the alert fires for each series that it returns.
        summary: one line that says what is wrong; a Prometheus template.
        description: what it means; a Prometheus template.
        pending: how long `expr` must hold before the alert fires ("5m"); empty for at once.
    """

    name: str
    severity: Literal["critical", "warning", "info", "none"]
    expr: str
    summary: str
    description: str
    pending: str = ""


@dataclass(frozen=True)
class RecordingRule:
    """An expression that Prometheus evaluates in advance and stores under a name."""

    name: str
    expr: str


@dataclass(frozen=True)
class AlertGroup:
    """The alerts about one part of the system.

    Attributes:
        name: name of the group, of its rules file and of its runbook.
        about: what the alerts are about, for the index of the runbooks.
        rules: in the order in which Prometheus evaluates them.
    """

    name: str
    about: str
    rules: tuple[Alert | RecordingRule, ...]

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The rules that alert."""
        return tuple(rule for rule in self.rules if isinstance(rule, Alert))

    def runbook(self, alert: Alert) -> str:
        """Path and anchor of the runbook's section for one of the alerts."""
        return f"docs/runbooks/{self.name}.md#{alert.name.lower()}"


@dataclass(frozen=True)
class Panel:
    """One panel of a dashboard.

    Attributes:
        title: what is shown.
        unit: Grafana's name of the unit ("short", "s", "percentunit", "reqps", …).
        queries: expression and legend of each line.
        about: how to read the panel.
        width: of 24 columns.
        big_number: show the newest value as a number instead of lines.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    width: int = 8
    big_number: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One dashboard.

    Attributes:
        uid: name in URLs and of the file.
        title: title in Grafana.
        variable: label whose values can be selected, and the metric to read them from.
        rows: heading and panels of each row.
    """

    uid: str
    title: str
    variable: tuple[str, str] | None
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """Queries of a panel for the median and the 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
            f"p{round(q * 100)}{legend}",
        )
        for q in (0.5, 0.99)
    )
