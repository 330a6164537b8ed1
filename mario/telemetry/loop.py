"""The metrics of the steps after training: evaluation, gate, promotion, flows."""

from __future__ import annotations

import time
from collections.abc import Collection

from mario.telemetry.instruments import InstrumentSet


class LoopMetrics:
    """The metrics of evaluations, verdicts, promotions and flow runs.

    Args:
        instruments: the instruments to update.
    """

    def __init__(self, instruments: InstrumentSet) -> None:
        self._all = instruments

    def units(self, model: str, seed_family: str, count: int) -> None:
        """Count evaluated units."""
        self._all.add("mario_evaluation_units_total", count, model=model, seed_family=seed_family)

    def evaluation(
        self,
        model: str,
        version: str,
        seed_family: str,
        *,
        score: float,
        clear_ratio: float,
        furthest_x_px: float,
        ended_at: float | None = None,
    ) -> None:
        """Show the means of a finished evaluation.

        Args:
            model: `mario-<task>`.
            version: the evaluated version.
            seed_family: the family of its seeds.
            score: mean episode score, 0 to 1.
            clear_ratio: share of units cleared, 0 to 1.
            furthest_x_px: mean furthest x.
            ended_at: Unix time of its end; None: now.
        """
        labels = {"model": model, "version": version, "seed_family": seed_family}
        self._all.set("mario_evaluation_score", score, **labels)
        self._all.set("mario_evaluation_clear_ratio", clear_ratio, **labels)
        self._all.set("mario_evaluation_furthest_x_px", furthest_x_px, **labels)
        self._all.set(
            "mario_evaluation_last_timestamp_seconds",
            time.time() if ended_at is None else ended_at,
            model=model,
            seed_family=seed_family,
        )

    def verdict(
        self, model: str, decision: str, *, evidence: float, units: int, guards: Collection[str]
    ) -> None:
        """Show a verdict.

        Args:
            model: `mario-<task>`.
            decision: `promote`, `reject` or `inconclusive`.
            evidence: its e-value.
            units: the units that it needed.
            guards: names of the guards that failed.
        """
        self._all.add("mario_gate_verdicts_total", model=model, decision=decision)
        self._all.set("mario_gate_evidence", evidence, model=model)
        self._all.set("mario_gate_units", units, model=model)
        for guard in guards:
            self._all.add("mario_gate_guard_failures_total", model=model, guard=guard)

    def champion(self, model: str, version: str, digest: str, since: float) -> None:
        """Show the champion and its promotion's Unix time; remove the former champion's series."""
        self._all.forget("mario_champion_info", model=model)
        self._all.set("mario_champion_info", 1, model=model, version=version, digest=digest)
        self._all.set("mario_champion_since_timestamp_seconds", since, model=model)

    def night(
        self, model: str, version: str, *, baseline_score: float, score: float, p_value: float
    ) -> None:
        """Show the champion's last nightly evaluation beside its baseline."""
        for name, value in (
            ("baseline_score", baseline_score),
            ("nightly_score", score),
            ("drift_p_value", p_value),
        ):
            self._all.set(f"mario_champion_{name}", value, model=model, version=version)

    def no_night(self, model: str) -> None:
        """Remove the series of a former champion's nightly evaluation."""
        for name in ("baseline_score", "nightly_score", "drift_p_value"):
            self._all.forget(f"mario_champion_{name}", model=model)

    def alias_in_line(self, model: str, yes: bool) -> None:
        """Show whether the registry's alias is on the ledger's champion."""
        self._all.set("mario_champion_alias_in_line", yes, model=model)

    def promotion(self, model: str, reason: str) -> None:
        """Count an entry in the promotion ledger."""
        self._all.add("mario_promotions_total", model=model, reason=reason)

    def stage(self, flow: str, stage: str, seconds: float) -> None:
        """Show the duration of one stage of a flow."""
        self._all.observe("mario_pipeline_stage_seconds", seconds, flow=flow, stage=stage)

    def flow_ended(self, flow: str, state: str, ended_at: float | None = None) -> None:
        """Count a flow run that ended at a Unix time; None means now."""
        self._all.add("mario_pipeline_runs_total", flow=flow, state=state)
        if state == "completed":
            moment = time.time() if ended_at is None else ended_at
            self._all.set("mario_pipeline_last_success_timestamp_seconds", moment, flow=flow)
