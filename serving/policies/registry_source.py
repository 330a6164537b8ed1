"""The source that reads the champion from the promotion ledger and its artefact from MLflow."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mario.config.addresses import Addresses
from mario.config.levels import model_name, task_of_model
from mario.errors import RegistryError
from mario.evaluation.seeds import SeedFamily
from mario.registry.registry import ModelRegistry
from mario.store.records import ServingComparison
from mario.store.store import ExperimentStore
from mario.store.vocabulary import EvaluationStatus, PromotionReason
from serving.policies.sources import Role, VersionCard, VersionRef
from serving.settings import ServingSettings
from serving.shared_folder import private_folder

#: The card shows the evaluations that judged the policy, not those that selected its checkpoint.
_FAMILIES = (SeedFamily.CONFIRMATION, SeedFamily.SCREENING)


class ComparisonStoreSink:
    """Stores comparisons; see :class:`serving.policies.traffic_comparison.ComparisonSink`."""

    def __init__(self, source: RegistrySource) -> None:
        """Write to the store of ``source``."""
        self._source = source

    def write(self, comparison: ServingComparison) -> None:
        """See :class:`serving.policies.traffic_comparison.ComparisonSink`."""
        self._source.store.serving.add(comparison)


class RegistrySource:
    """See :class:`serving.policies.sources.PolicySource`."""

    def __init__(self, settings: ServingSettings) -> None:
        """Follow the model of the settings' task; nothing is opened before the first poll."""
        shared = Addresses.from_environment().absolute()
        self._database_url = settings.database_url or shared.database_url
        self._tracking_uri = settings.tracking_uri or shared.tracking_uri
        self._artifact_dir = shared.artifact_dir
        self._cache = settings.cache or private_folder("mario-cache")
        self._model = model_name(settings.task)
        self._registry: ModelRegistry | None = None

    @property
    def store(self) -> ExperimentStore:
        """The store with the ledger.

        Raises:
            StoreError: it does not exist or is unreachable.
        """
        return self._open().store

    def resolve(self, role: Role) -> VersionRef | None:
        """See :class:`serving.policies.sources.PolicySource`."""
        registry = self._open()
        if role == "champion":
            # The ledger alone, without MLflow: this runs every second.
            promotion = registry.store.ledger.champion(self._model)
            if promotion is None:
                return None
            return VersionRef(self._model, str(promotion.version), promotion.digest)
        try:
            resolved = registry.resolve(self._model, role)
        except RegistryError as error:
            if "has no challenger" in str(error):
                return None
            raise
        return VersionRef(self._model, str(resolved.version), resolved.digest)

    def fetch(self, ref: VersionRef) -> Path:
        """See :class:`serving.policies.sources.PolicySource`."""
        registry = self._open()
        resolved = registry.resolve(ref.model, int(ref.version))
        folder = self._cache / ref.model / f"{ref.version}-{ref.digest[:16]}"
        with _only_one_worker(self._cache):
            return registry.download(resolved, folder).folder

    def card(self, ref: VersionRef) -> VersionCard:
        """See :class:`serving.policies.sources.PolicySource`."""
        store = self._open().store
        promotions = [p for p in store.ledger.history(ref.model) if str(p.version) == ref.version]
        details = {"source": "registry", "task": task_of_model(ref.model)}
        promoted_at = reason = None
        if promotions:
            last = promotions[-1]
            promoted_at = last.promoted_at.isoformat()
            reason = _REASONS.get(last.reason, last.reason) + (
                f": {last.note}" if last.note else ""
            )
            details["promoted by"] = last.promoted_by
            if last.verdict_id is not None:
                details["verdict"] = last.verdict_id
        version = store.versions.get(ref.model, int(ref.version))
        if version is not None and version.run_id is not None:
            details["training run"] = version.run_id
        return VersionCard(promoted_at, reason, self._clear_rates(store, ref), details)

    def _clear_rates(self, store: ExperimentStore, ref: VersionRef) -> tuple[dict[str, Any], ...]:
        evaluations = store.evaluations.list(policy_digest=ref.digest)
        for family in _FAMILIES:
            found = [e for e in evaluations if e.key.seed_family == family and e.finished_units]
            if not found:
                continue
            # Prefer finished evaluations to running ones, then the one with the most units.
            best = max(
                found, key=lambda e: (e.status == EvaluationStatus.FINISHED, e.finished_units)
            )
            played: dict[str, list[bool]] = {}
            for record in store.evaluations.records(best.id):
                played.setdefault(record.level, []).append(record.cleared)
            return tuple(
                clear_rate(level, sum(cleared), len(cleared)) for level, cleared in played.items()
            )
        return ()

    def _open(self) -> ModelRegistry:
        if self._registry is None:
            store = ExperimentStore.open(self._database_url, create=False)
            self._registry = ModelRegistry(self._tracking_uri, store, self._artifact_dir)
        return self._registry


_REASONS = {
    PromotionReason.FIRST: "first champion",
    PromotionReason.GATE: "beat the champion before it",
    PromotionReason.ROLLBACK: "rolled back to",
}


def clear_rate(level: str, cleared: int, episodes: int) -> dict[str, Any]:
    """Share of cleared episodes with its 95 % score interval (Wilson 1927, JASA 22:209-212).

    Args:
        level: the level's name.
        cleared: episodes that reached the flag.
        episodes: episodes played, at least 1.

    Returns:
        Keys ``level``, ``episodes``, ``cleared``, ``rate``, ``low``, ``high``; rates 0..1.
    """
    z = 1.959963984540054
    share = cleared / episodes
    centre = (share + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = (z / (1 + z * z / episodes)) * math.sqrt(
        share * (1 - share) / episodes + z * z / (4 * episodes * episodes)
    )
    return {
        "level": level,
        "episodes": episodes,
        "cleared": cleared,
        "rate": share,
        "low": max(0.0, centre - half),
        "high": min(1.0, centre + half),
    }


@contextmanager
def _only_one_worker(folder: Path) -> Iterator[None]:
    """Let one process at a time download into the cache; the others then find the files there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
