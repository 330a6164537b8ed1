"""Render a dashboard as JSON for Grafana."""

from __future__ import annotations

import json

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

from mario.alerting.declarations import Dashboard, Panel

_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


def dashboard_json(board: Dashboard) -> str:
    """Return a dashboard as JSON with sorted keys, so that its changes are easy to review."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["mario", "generated"])
        .description("Rendered by `python -m mario.alerting`; edits here are lost.")
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
    )
    if board.variable:
        label, metric = board.variable
        made = made.with_variable(
            dashboard.QueryVariable(label)
            .datasource(_SOURCE)
            .query(f"label_values({metric}, {label})")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
        )
    number = 0
    for heading, panels in board.rows:
        made = made.with_row(dashboard.Row(heading))
        for panel in panels:
            number += 1
            made = made.with_panel(_panel(panel, number))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(made.build())), indent=1) + "\n"


def _panel(panel: Panel, number: int) -> stat.Panel | timeseries.Panel:
    made: stat.Panel | timeseries.Panel
    if panel.big_number:
        newest = common.ReduceDataOptions().calcs(["lastNotNull"])
        made = stat.Panel().text_mode(BigValueTextMode.VALUE_AND_NAME).reduce_options(newest)
    else:
        made = timeseries.Panel().legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    made = made.id(number).title(panel.title).unit(panel.unit).datasource(_SOURCE)
    made = made.span(panel.width).height(8)
    if panel.about:
        made = made.description(panel.about)
    for index, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend)
        made = made.with_target(query.ref_id(chr(ord("A") + index)))
    return made
