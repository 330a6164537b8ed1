"""Alerts about the champion in the database: ledger, alias, re-evaluation, gate."""

from __future__ import annotations

from mario.alerting.declarations import Alert, AlertGroup

CHAMPION_ALERTS = AlertGroup(
    "champion",
    "ledger, alias, re-evaluation, gate",
    (
        Alert("MarioChampionAliasOutOfLine", "warning",
              "mario_champion_alias_in_line == 0",
              "The registry's alias of {{ $labels.model }} disagrees with the ledger",
              "The ledger decides; `mario registry reconcile` moves the alias.", pending="5m"),
        # The test of `mario.jobs.nightly`, with a false alarm in 1 night of 1,000. It compares with
        # the baseline, whose number of units was fixed beforehand. The gate's confirmation stopped
        # when the units went well, so any champion would seem to be worse than that.
        Alert("MarioChampionDrifted", "warning",
              "mario_champion_drift_p_value <= 0.001 and on (model, version) mario_champion_info",
              "The champion of {{ $labels.model }} plays differently than after its promotion",
              "The last nightly score differs from the baseline; if nothing changed, such a "
              'difference has p = {{ $value | printf "%.2g" }}. '
              'The dashboard "Mario loop" shows both.'),
        Alert("MarioChampionNotReevaluated", "info",
              "time() - max by (model) (mario_evaluation_last_timestamp_seconds) > 2 * 86400 "
              "and on (model) mario_champion_info",
              "No version of {{ $labels.model }} was evaluated for two days",
              "The nightly re-evaluation does not run."),
        Alert("MarioGateGuardFailed", "info",
              "increase(mario_gate_guard_failures_total[1h]) > 0",
              "Guard {{ $labels.guard }} refused a challenger of {{ $labels.model }}",
              "A guard refuses a challenger whatever the test says; read the verdict."),
    ),
)  # fmt: skip
