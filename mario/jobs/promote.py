"""Promote: the ledger's transaction first, the alias second."""

from __future__ import annotations

from mario.errors import RegistryError
from mario.jobs.context import Runtime
from mario.jobs.versions import open_registry, who
from mario.store.records import Promotion


def promote_verdict(verdict_id: str, runtime: Runtime, *, note: str | None = None) -> Promotion:
    """Make the challenger of a stored verdict the champion.

    Repeating it after a kill only brings the alias in line.

    Args:
        verdict_id: a verdict that says promote.
        runtime: where store and registry are.
        note: why, in words; kept in the ledger.

    Raises:
        PromotionConflict: another promoter was first.
        RegistryError: the verdict does not say promote, or its challenger is not registered.
    """
    with open_registry(runtime) as registry:
        verdict = registry.store.evaluations.verdict(verdict_id)
        if verdict.challenger_version is None:
            raise RegistryError(
                f"verdict {verdict_id} judged an artefact folder, not a registered version; "
                "expected a version; register it and judge it again with `mario gate`"
            )
        return registry.promote(
            verdict.model,
            verdict.challenger_version,
            verdict_id=verdict_id,
            promoted_by=who(),
            note=note,
        )
