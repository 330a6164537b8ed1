"""Repair a registry: finish or discard unfinished registrations, bring aliases in line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mario.errors import RegistryError
from mario.registry.mlflow_registry import MlflowRegistry
from mario.store.process_identity import host_name, is_alive, process_id
from mario.store.records import RegisteredVersion, utc_now
from mario.store.store import ExperimentStore
from mario.store.vocabulary import VersionState
from mario.tracking.mlflow_client import CHAMPION, TAG_STATE

# A process on another machine cannot be checked; no registration takes longer than this.
_LONGEST_REGISTRATION_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One thing that was repaired, or (``done`` False) that needs a person."""

    model: str
    what: str
    done: bool = True


def repair(store: ExperimentStore, mlflow: MlflowRegistry, model: str) -> tuple[Repair, ...]:
    """Repair the registrations and the champion alias of a model.

    Args:
        store: holds the registrations and the ledger.
        mlflow: the registry, prepared.
        model: ``mario-<task>``.

    Returns:
        What was repaired, and what needs a person.

    Raises:
        RegistryError: if MLflow does not answer.
        StoreError: if the store does not answer.
    """
    return (
        *_pending_registrations(store, mlflow, model),
        *_mlflow_versions(store, mlflow, model),
        *_champion_alias(store, mlflow, model),
    )


def _may_be_running(row: RegisteredVersion) -> bool:
    """Whether the process that registers this version may still be alive."""
    if row.host is None or row.pid is None:
        return False
    if row.host == host_name():
        # Process numbers repeat in containers: this process does not run that registration.
        return row.pid != process_id() and is_alive(row.host, row.pid)
    return (utc_now() - row.created_at).total_seconds() < _LONGEST_REGISTRATION_SECONDS


def _pending_registrations(
    store: ExperimentStore, mlflow: MlflowRegistry, model: str
) -> Iterator[Repair]:
    for row in store.versions.list(model, state=VersionState.PENDING):
        with mlflow.translated(f"look for registration {row.id}"):
            found = mlflow.find_registration(model, row.id)
        if found is None and _may_be_running(row):
            yield Repair(
                model=model,
                what=f"registration {row.id} is under way in process {row.pid} on {row.host}",
                done=False,
            )
            continue
        if found is None:
            store.versions.mark_broken(row.id)
            yield Repair(
                model=model, what=f"registration {row.id} never reached MLflow: marked broken"
            )
            continue
        store.versions.complete(
            row.id,
            version=int(found.version),
            mlflow_run_id=found.run_id,
            source=str(found.source),
        )
        with mlflow.translated(f"complete v{found.version}"):
            mlflow.tag_complete(model, found.version)
        yield Repair(model=model, what=f"v{found.version} was half-registered: completed")


def _mlflow_versions(
    store: ExperimentStore, mlflow: MlflowRegistry, model: str
) -> Iterator[Repair]:
    """Report versions that the store does not know, and complete the tags of those it knows."""
    known = {row.version for row in store.versions.list(model)}
    for entry in mlflow.versions(model):
        if int(entry.version) not in known:
            yield Repair(
                model=model,
                what=f"v{entry.version} is in MLflow but not in the store; it can be neither "
                "gated nor promoted: register its artefact with `mario register`",
                done=False,
            )
        elif entry.tags.get(TAG_STATE) == VersionState.PENDING:
            with mlflow.translated(f"tag v{entry.version}"):
                mlflow.tag_complete(model, entry.version)


def _champion_alias(store: ExperimentStore, mlflow: MlflowRegistry, model: str) -> Iterator[Repair]:
    champion = store.ledger.champion(model)
    alias = mlflow.aliases(model).get(CHAMPION)
    if champion is None:
        if alias is not None:
            mlflow.remove_alias(model, CHAMPION)
            yield Repair(
                model=model, what=f"alias champion on v{alias} had no ledger entry: removed"
            )
        return
    if alias == champion.version:
        return
    try:
        mlflow.point_champion(champion)
    except RegistryError as error:
        yield Repair(model=model, what=f"alias champion cannot be moved: {error}", done=False)
        return
    yield Repair(
        model=model,
        what=f"alias champion moved from {'nothing' if alias is None else f'v{alias}'} to "
        f"v{champion.version}, as the ledger says",
    )
