"""Declared alerts and dashboards, and the files rendered from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mario.alerting.__main__ import main
from mario.alerting.alerts.store import STORE_ALERTS
from mario.alerting.dashboards.loop import LOOP_DASHBOARD
from mario.alerting.declarations import Alert, Panel, RecordingRule
from mario.alerting.prometheus import rules_file
from mario.alerting.render import rendered_files
from mario.errors import ConfigError


def test_a_rule_is_rendered_with_all_that_was_declared() -> None:
    alert = Alert("MarioLow", "warning", "mario:low > 1", "Low: {{ $value }}", "It is: low", "5m")
    group = replace(STORE_ALERTS, rules=(RecordingRule("mario:low", "vector(2)"), alert))
    assert yaml.safe_load(rules_file(group)) == {
        "groups": [
            {
                "name": "store",
                "rules": [
                    {"record": "mario:low", "expr": "vector(2)"},
                    {
                        "alert": "MarioLow",
                        "expr": "mario:low > 1",
                        "for": "5m",
                        "labels": {"severity": "warning"},
                        "annotations": {
                            "summary": "Low: {{ $value }}",
                            "description": "It is: low",
                            "runbook": "docs/runbooks/store.md#mariolow",
                        },
                    },
                ],
            }
        ]
    }


def test_an_alert_at_once_has_no_pending_period() -> None:
    alert = Alert("MarioNow", "info", "vector(1)", "Now", "Now")
    (rule,) = yaml.safe_load(rules_file(replace(STORE_ALERTS, rules=(alert,))))["groups"][0][
        "rules"
    ]
    assert "for" not in rule


def test_expressions_may_use_declared_metrics_and_recording_rules_only() -> None:
    recorded = RecordingRule("mario:rows", "sum(mario_store_journal_rows)")
    alert = Alert("MarioRows", "info", 'mario:rows{run="mario_in_a_string"} > 1', "Rows", "Rows")
    rendered_files(groups=[replace(STORE_ALERTS, rules=(recorded, alert))], dashboards=[])
    with pytest.raises(ConfigError, match="MarioRows: got the metric mario:rows"):
        rendered_files(groups=[replace(STORE_ALERTS, rules=(alert,))], dashboards=[])
    panel = Panel("Rows", "short", (("mario_store_no_such_metric", "rows"),))
    board = replace(LOOP_DASHBOARD, rows=(("Rows", (panel,)),))
    with pytest.raises(ConfigError, match="Mario loop: Rows: got the metric mario_store_no"):
        rendered_files(groups=[], dashboards=[board])


def test_check_names_stale_and_leftover_files_and_a_rendering_mends_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in rendered_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    assert main([], root=tmp_path) == 0
    assert main(["--check"], root=tmp_path) == 0
    capsys.readouterr()
    rules = tmp_path / "monitoring" / "prometheus" / "rules"
    (rules / "store.yml").write_text("groups: []\n")
    (rules / "former.yml").write_text("groups: []\n")
    assert main(["--check"], root=tmp_path) == 1
    said = capsys.readouterr().out
    assert "not current: monitoring/prometheus/rules/store.yml" in said
    assert "not current: monitoring/prometheus/rules/former.yml" in said
    assert main([], root=tmp_path) == 0
    assert main(["--check"], root=tmp_path) == 0
    assert not (rules / "former.yml").exists()


def test_the_index_of_the_runbooks_links_every_alert() -> None:
    files = rendered_files()
    index = files["docs/runbooks/index.md"]
    alerts = [
        rule["alert"]
        for name, text in files.items()
        if name.endswith(".yml")
        for rule in yaml.safe_load(text)["groups"][0]["rules"]
        if "alert" in rule
    ]
    assert len(alerts) >= 20
    for alert in alerts:
        assert f"[{alert}](" in index
        assert f".md#{alert.lower()})" in index
