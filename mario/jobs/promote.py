"""Promote: the ledger's transaction first, the alias second."""

from __future__ import annotations

from mario.errors import RegistryError
from mario.jobs.context import JobContext
from mario.jobs.versions import who
from mario.store.records import Promotion


def promote_verdict(verdict_id: str, context: JobContext, *, note: str | None = None) -> Promotion:
    """Make the challenger of a stored verdict the champion.

    Repeating it after a kill only brings the alias in line.

    Args:
        verdict_id: a verdict that says promote.
        context: store and registry.
        note: why, in words; kept in the ledger.

    Raises:
        PromotionConflict: another promoter was first.
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
