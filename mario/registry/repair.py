"""What ``mario registry reconcile`` does: finish or bury half registrations, follow the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mario.errors import RegistryError
from mario.store.process_identity import host_name, is_alive, process_id
from mario.store.records import RegisteredVersion, utc_now
from mario.tracking.mlflow_client import CHAMPION, TAG_STATE

if TYPE_CHECKING:
    from mario.registry.registry import ModelRegistry

# A registration on another machine cannot be asked whether it lives; none takes this long.
_OLDEST_REGISTRATION_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One thing that was put right, or (``done`` False) that needs a person."""

    model: str
    what: str
    done: bool = True


def repair(registry: ModelRegistry, model: str) -> tuple[Repair, ...]:
    """Bring MLflow in line with the ledger; see ``ModelRegistry.reconcile``."""
    return (
        *_registrations(registry, model),
        *_unknown(registry, model),
        *_alias(registry, model),
    )


def _at_work(row: RegisteredVersion) -> bool:
    """Whether the process that registers this version may still be at it."""
    if row.host is None or row.pid is None:
        return False
    if row.host == host_name():
        # A container's process number may come back after a kill: this process is not at it.
        return row.pid != process_id() and is_alive(row.host, row.pid)
    return (utc_now() - row.created_at).total_seconds() < _OLDEST_REGISTRATION_SECONDS


def _registrations(registry: ModelRegistry, model: str) -> Iterator[Repair]:
    for row in registry.store.versions.list(model, state="pending"):
        with registry.translated(f"look for registration {row.id}"):
            found = registry.find_registration(model, row.id)
        if found is None and _at_work(row):
            yield Repair(
                model=model,
                what=f"registration {row.id} is under way in process {row.pid} on {row.host}",
                done=False,
            )
            continue
        if found is None:
            registry.store.versions.mark_broken(row.id)
            yield Repair(model=model, what=f"registration {row.id} never arrived: buried")
            continue
        registry.store.versions.complete(
            row.id,
            version=int(found.version),
            mlflow_run_id=found.run_id,
            source=str(found.source),
        )
        with registry.translated(f"complete v{found.version}"):
            registry.client.set_model_version_tag(model, found.version, TAG_STATE, "complete")
        yield Repair(model=model, what=f"v{found.version} was half-registered: completed")


def _unknown(registry: ModelRegistry, model: str) -> Iterator[Repair]:
    known = {row.version for row in registry.store.versions.list(model)}
    with registry.translated(f"list the versions of {model}"):
        entries = registry.client.search_model_versions(f"name='{model}'")
    for entry in entries:
        if int(entry.version) not in known:
            yield Repair(
                model=model,
                what=f"v{entry.version} is in MLflow but not in the store; it can be neither "
                "gated nor promoted: register its artefact with `mario register`",
                done=False,
            )
        elif entry.tags.get(TAG_STATE) == "pending":
            with registry.translated(f"tag v{entry.version}"):
                registry.client.set_model_version_tag(model, entry.version, TAG_STATE, "complete")


def _alias(registry: ModelRegistry, model: str) -> Iterator[Repair]:
    champion = registry.store.ledger.champion(model)
    alias = registry.aliases(model).get(CHAMPION)
    if champion is None:
        if alias is not None:
            with registry.translated(f"remove the champion alias of {model}"):
                registry.client.delete_registered_model_alias(model, CHAMPION)
            yield Repair(
                model=model, what=f"alias champion on v{alias} had no ledger entry: removed"
            )
        return
    if alias == champion.version:
        return
    try:
        registry.point_champion(champion)
    except RegistryError as error:
        yield Repair(model=model, what=f"alias champion cannot follow: {error}", done=False)
        return
    yield Repair(
        model=model,
        what=f"alias champion moved from {'nothing' if alias is None else f'v{alias}'} to "
        f"v{champion.version}, as the ledger says",
    )
