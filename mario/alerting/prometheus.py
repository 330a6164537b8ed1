"""Render an alert group as a rules file of Prometheus."""

from __future__ import annotations

from typing import Any

import yaml

from mario.alerting.declarations import Alert, AlertGroup, RecordingRule


def rules_file(group: AlertGroup) -> str:
    """Return the YAML of a rules file with one group."""
    rules = [_rule(group, rule) for rule in group.rules]
    head = (
        f"# Rendered by `python -m mario.alerting` from mario/alerting/alerts/{group.name}.py; "
        "edits here are lost.\n"
    )
    document = {"groups": [{"name": group.name, "rules": rules}]}
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=72)


def _rule(group: AlertGroup, rule: Alert | RecordingRule) -> dict[str, Any]:
    if isinstance(rule, RecordingRule):
        return {"record": rule.name, "expr": rule.expr}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        **({"for": rule.pending} if rule.pending else {}),
        "labels": {"severity": rule.severity},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "runbook": group.runbook(rule),
        },
    }


class _Dumper(yaml.SafeDumper):
    """Indents lists, as yamllint expects."""

    def increase_indent(self, flow: bool = False, *_: bool, **__: bool) -> None:
        super().increase_indent(flow, indentless=False)
