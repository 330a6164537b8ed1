"""Fetch, list, reconcile and roll back registered versions, and show the ledger."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from pathlib import Path

from mario.config.levels import model_name
from mario.errors import ArtefactError
from mario.jobs.context import JobContext


@dataclass(frozen=True)
class FetchedVersion:
    """A version whose verified artefact is in a local folder.

    Attributes:
        model: ``mario-<task>``.
        version: its number.
        folder: the artefact.
    """

    model: str
    version: int
    folder: Path


def who() -> str:
    """Name the user and machine, for the ledger."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def fetch_version(reference: str, task: str, context: JobContext) -> FetchedVersion:
    """Download a version's artefact (once) and verify it.

    Args:
        reference: ``champion``, ``challenger`` or a number.
        task: the task whose registered model is meant.
        context: settings and registry.

    Raises:
        RegistryError: there is no such version, or the registry is unreachable.
        ArtefactError: its artefact is missing or broken.
    """
    registry = context.registry
    resolved = registry.resolve(model_name(task), reference)
    folder = context.settings.runs_dir / "versions" / resolved.model / f"v{resolved.version}"
    try:
        registry.download(resolved, folder)
    except ArtefactError:
        # MLflow reports an unreachable server like a missing file; asking again tells which it is.
        registry.resolve(model_name(task), resolved.version)
        raise
    return FetchedVersion(resolved.model, resolved.version, folder)


def champion_version(task: str, context: JobContext) -> int | None:
    """The number of the champion in the ledger; None without a champion."""
    champion = context.store.ledger.champion(model_name(task))
    return None if champion is None else champion.version


def list_versions(task: str, context: JobContext) -> str:
    """Describe the versions of a task, one line for each."""
    found = context.registry.versions(model_name(task))
    if not found:
        return f"{model_name(task)} has no versions yet; train one with `mario pipeline`"
    lines = []
    for version in found:
        marks = " ".join([*(("CHAMPION",) if version.champion else ()), *version.aliases])
        lines.append(
            f"v{version.version if version.version is not None else '-':<4} {version.state:<9} "
            f"{(version.digest or '')[:12]:<12} {version.run_id or '':<34} {marks}".rstrip()
        )
    return "\n".join(lines)


def show_ledger(task: str, context: JobContext) -> str:
    """Describe the ledger of a task, one line for each row, oldest first."""
    rows = context.store.ledger.history(model_name(task))
    if not rows:
        return f"the ledger of {model_name(task)} is empty; nothing was promoted yet"
    return "\n".join(
        f"{row.sequence:>3} {row.promoted_at:%Y-%m-%d %H:%M:%S} v{row.version} ({row.reason}) "
        f"by {row.promoted_by}, verdict {row.verdict_id or '-'}"
        + (f": {row.note}" if row.note else "")
        for row in rows
    )


def reconcile(task: str, context: JobContext) -> str:
    """Repair what a killed registration or promotion left; describe the repairs."""
    repairs = context.registry.reconcile(model_name(task))
    if not repairs:
        return f"{model_name(task)}: MLflow and the ledger agree; nothing to repair"
    return "\n".join(
        f"{'repaired' if repair.done else 'needs a person'}: {repair.what}" for repair in repairs
    )


def rollback(task: str, context: JobContext, *, version: int | None, note: str) -> str:
    """Make an earlier champion the champion again; describe it."""
    promotion = context.registry.rollback(
        model_name(task), version, promoted_by=who(), note=note or None
    )
    return (
        f"{promotion.model} champion is v{promotion.version} again "
        f"(was v{promotion.previous_version}); ledger row {promotion.sequence}"
    )
