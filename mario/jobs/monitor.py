"""Export the state of the loop to Prometheus: champions, verdicts, evaluations.

Flows end before Prometheus could scrape them. This page reads their results from the store at each
poll, so it also shows what commands did, and survives restarts.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import fmean

from mario.errors import MarioError
from mario.evaluation.drift import compare_drift
from mario.jobs.context import JobContext
from mario.jobs.monitor_flows import FlowMonitor
from mario.jobs.nightly import newest_night
from mario.store.records import Evaluation, Promotion, StoredVerdict
from mario.store.store import ExperimentStore
from mario.store.vocabulary import EvaluationStatus, VersionState
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.loop import LoopMetrics
from mario.telemetry.page import MetricsPage
from mario.tracking.mlflow_client import CHAMPION

log = logging.getLogger(__name__)


class LoopMonitor:
    """Updates the metrics of the loop from the store; one object for each process.

    Args:
        instruments: where it is shown.
    """

    def __init__(self, instruments: InstrumentSet) -> None:
        self._instruments = instruments
        self._metrics = LoopMetrics(instruments)
        self._seen_promotions: Counter[str] = Counter()
        self._seen_verdicts: set[str] = set()
        self._seen_evaluations: dict[tuple[str, str], str] = {}
        self._seen_units: Counter[str] = Counter()
        self._seen_nights: dict[str, tuple[str, str]] = {}

    def refresh(self, context: JobContext) -> None:
        """Read what changed since the last call.

        Raises:
            StoreError: the database does not answer.
        """
        store = context.store
        known = {version.model for version in store.versions.list(state=VersionState.COMPLETE)}
        models = sorted(known | set(store.ledger.models()))
        for model in models:
            history = store.ledger.history(model)
            if history:
                self._promotions(model, history)
                self._alias(model, history[-1].version, context)
                self._night(store, history[-1])
            self._verdicts(store.evaluations.verdicts(model))
        self._evaluations(store, models)

    def _promotions(self, model: str, history: tuple[Promotion, ...]) -> None:
        for promotion in history[self._seen_promotions[model] :]:
            self._metrics.promotion(model, promotion.reason)
        self._seen_promotions[model] = len(history)
        champion = history[-1]
        self._metrics.champion(
            model, str(champion.version), champion.digest, champion.promoted_at.timestamp()
        )

    def _alias(self, model: str, champion: int, context: JobContext) -> None:
        try:
            in_line = context.registry.mlflow.aliases(model).get(CHAMPION) == champion
        except MarioError as error:
            # An unknown alias is not a wrong alias: remove the series.
            log.warning("the alias of %s cannot be read: %s", model, error)
            self._instruments.forget("mario_champion_alias_in_line", model=model)
            return
        self._metrics.alias_in_line(model, in_line)

    def _night(self, store: ExperimentStore, champion: Promotion) -> None:
        """Compare the champion's last night with its baseline; see `mario.jobs.nightly`."""
        found = newest_night(store.evaluations.list(policy_digest=champion.digest))
        model = champion.model
        seen = (str(champion.version), found[1].id if found else "")
        if self._seen_nights.get(model) == seen:
            return
        self._seen_nights[model] = seen
        self._metrics.no_night(model)
        if found is None:
            return
        baseline, night = (store.evaluations.records(each.id) for each in found)
        drift = compare_drift(baseline, night)
        self._metrics.night(
            model,
            str(champion.version),
            baseline_score=drift.score_before,
            score=drift.score_now,
            p_value=drift.p_value,
        )

    def _verdicts(self, verdicts: Iterable[StoredVerdict]) -> None:
        for verdict in sorted(verdicts, key=lambda each: each.created_at):
            if verdict.id in self._seen_verdicts:
                continue
            self._seen_verdicts.add(verdict.id)
            detail = verdict.detail
            self._metrics.verdict(
                verdict.model,
                verdict.decision,
                evidence=float(detail.get("e_better", float("nan"))),
                units=int(detail.get("units", 0)),
                guards=[each["name"] for each in detail.get("guards", ()) if not each["passed"]],
            )

    def _evaluations(self, store: ExperimentStore, models: Iterable[str]) -> None:
        for model in models:
            for version in store.versions.list(model, state=VersionState.COMPLETE):
                newest: dict[str, Evaluation] = {}
                for each in store.evaluations.list(policy_digest=version.digest):
                    self._units(model, each)
                    if each.status == EvaluationStatus.FINISHED and each.finished_units:
                        newest.setdefault(each.key.seed_family, each)
                for family, evaluation in newest.items():
                    self._evaluation(store, model, str(version.version), family, evaluation)

    def _units(self, model: str, found: Evaluation) -> None:
        fresh = found.finished_units - self._seen_units[found.id]
        if fresh > 0:
            self._metrics.units(model, found.key.seed_family, fresh)
            self._seen_units[found.id] = found.finished_units

    def _evaluation(
        self, store: ExperimentStore, model: str, version: str, family: str, found: Evaluation
    ) -> None:
        key = (f"{model}/{version}", family)
        if self._seen_evaluations.get(key) == found.id:
            return
        self._seen_evaluations[key] = found.id
        records = store.evaluations.records(found.id)
        self._metrics.evaluation(
            model,
            version,
            family,
            score=fmean(each.episode_score for each in records),
            clear_ratio=fmean(each.cleared for each in records),
            furthest_x_px=fmean(each.furthest_px for each in records),
            ended_at=found.ended_at.timestamp() if found.ended_at else None,
        )


def monitor(
    context: JobContext,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    poll_seconds: float = 30.0,
    stop: threading.Event | None = None,
    prefect_api_url: str | None = None,
    on_page: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until `stop` is set; an unreachable database is tried again at each poll.

    Args:
        context: store and registry; disconnected between two readings.
        host: address to bind.
        port: 0 takes a free one.
        poll_seconds: time between two readings of the store and of the Prefect server.
        stop: set to return; None serves until the process ends.
        prefect_api_url: the Prefect server whose flow runs are shown; None shows none.
        on_page: called once with the page's URL.

    Raises:
        ConfigError: the address cannot be bound.
    """
    ended = stop or threading.Event()
    instruments = InstrumentSet()
    loop = LoopMonitor(instruments)
    flows = None
    if prefect_api_url:
        flows = FlowMonitor(prefect_api_url, LoopMetrics(instruments))
    with MetricsPage(instruments.registry, host=host, port=port) as page:
        if on_page is not None:
            on_page(page.url)
        while not ended.is_set():
            try:
                loop.refresh(context)
            except MarioError as error:
                log.warning("%s", error)
            try:
                if flows is not None:
                    flows.refresh()
            except MarioError as error:
                log.warning("%s", error)
            context.disconnect()
            ended.wait(poll_seconds)
