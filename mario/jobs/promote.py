"""Promote: write the promotion to the ledger, then move MLflow's alias."""

from __future__ import annotations

from mario.errors import RegistryError
from mario.jobs.context import JobContext
from mario.jobs.versions import who
from mario.store.records import Promotion


def promote_verdict(verdict_id: str, context: JobContext, *, note: str | None = None) -> Promotion:
    """Make the challenger of a stored verdict the champion.

    Repeated after a kill, it only moves the alias.

    Args:
        verdict_id: a verdict that says promote.
        context: store and registry.
        note: the reason, kept in the ledger.

    Raises:
        PromotionConflict: another version was promoted since the verdict.
        RegistryError: the verdict does not say promote, or its challenger is not registered.
    """
    verdict = context.store.evaluations.verdict(verdict_id)
    if verdict.challenger_version is None:
        raise RegistryError(
            f"verdict {verdict_id} judged an artefact folder, not a registered version; "
            "expected a version; register it and judge it again with `mario gate`"
        )
    return context.registry.promote(
        verdict.model,
        verdict.challenger_version,
        verdict_id=verdict_id,
        promoted_by=who(),
        note=note,
    )
