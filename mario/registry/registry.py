"""Register, resolve, download, promote and roll back the versions of a model.

The promotion ledger in SQL is the source of truth (docs/adr/0006). A promotion is written to the
ledger first; the MLflow alias ``champion`` is moved afterwards. MLflow aliases have no atomic swap
and no history, so ``reconcile`` repairs what a process killed between the two steps leaves behind.

``resolve`` and ``download`` need only ``mlflow-skinny``; ``register`` needs ``mlflow``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mario.errors import ArtefactError, RegistryError
from mario.policy.artefact import Artefact, load_artefact
from mario.registry.download import ResolvedVersion, download_version
from mario.registry.mlflow_registry import MlflowRegistry
from mario.registry.repair import Repair, repair
from mario.registry.upload import upload_version
from mario.store.records import Promotion, RegisteredVersion
from mario.store.store import ExperimentStore
from mario.store.vocabulary import VersionState
from mario.tracking.mlflow_client import CHALLENGER, CHAMPION, TAG_DIGEST, TAG_RUN

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """One line of ``mario registry list``.

    Attributes:
        model: ``mario-<task>``.
        version: its number; None before MLflow gave one.
        digest: SHA-256 of its ``policy.json``; None if MLflow's entry carries none.
        state: the store's state, or ``unknown`` for a version that only MLflow holds.
        aliases: MLflow aliases on the version.
        champion: whether the ledger names it as champion.
        run_id: the training run that it comes from, if known.
    """

    model: str
    version: int | None
    digest: str | None
    state: str
    aliases: tuple[str, ...]
    champion: bool
    run_id: str | None


class ModelRegistry:
    """An MLflow registry together with the ledger of one store.

    Args:
        tracking_uri: ``sqlite:///runs/mlflow.db`` or ``http://mlflow:5000``.
        store: the opened store that holds the ledger.
        artifact_dir: folder of an embedded registry's artefacts; a server chooses its own.

    Attributes:
        mlflow: the MLflow side: aliases, tags and versions as MLflow has them.
        store: the opened store.
    """

    def __init__(
        self, tracking_uri: str, store: ExperimentStore, artifact_dir: Path | str | None = None
    ) -> None:
        self.mlflow = MlflowRegistry(
            tracking_uri, None if artifact_dir is None else Path(artifact_dir)
        )
        self.store = store

    # -- registering ------------------------------------------------------------------------

    def register(
        self,
        model: str,
        folder: Path | str,
        *,
        run_id: str | None = None,
        registration_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RegisteredVersion:
        """Register an artefact folder as a new version, completely or not at all.

        The order is: a ``pending`` row in the store, the upload, the MLflow version, the state
        ``complete``. A second call with the same key resumes an interrupted registration and
        returns the same version.

        Args:
            model: ``mario-<task>``.
            folder: a policy artefact.
            run_id: the stored training run that it comes from.
            registration_key: identity of this registration; ``<run_id>:<digest>`` if None.
            tags: additional tags of the MLflow version.

        Raises:
            ArtefactError: if the folder holds no valid artefact.
            RegistryError: if MLflow does not answer, or the key belongs to another policy.
            StoreError: if the store does not answer.
        """
        artefact = load_artefact(folder)
        run = None if run_id is None else self.store.runs.get(run_id)
        row = self.store.versions.begin(
            model,
            registration_key or f"{run_id or 'import'}:{artefact.digest}",
            digest=artefact.digest,
            run_id=run_id,
        )
        if row.state == VersionState.COMPLETE:
            return row
        self.mlflow.prepare()
        with self.mlflow.translated(f"register {model}"):
            found = self.mlflow.find_registration(model, row.id)
            if found is None:
                found = upload_version(
                    self.mlflow.client,
                    row,
                    artefact,
                    mlflow_run_id=run.mlflow_run_id if run else None,
                    tags=tags or {},
                    artifact_dir=self.mlflow.artifact_dir,
                )
            version = int(found.version)
            completed = self.store.versions.complete(
                row.id, version=version, mlflow_run_id=found.run_id, source=str(found.source)
            )
            self.mlflow.tag_complete(model, version)
        return completed

    # -- reading ----------------------------------------------------------------------------

    def resolve(self, model: str, which: str | int = CHAMPION) -> ResolvedVersion:
        """Find the version behind ``champion``, ``challenger`` or a number.

        The champion comes from the ledger, not from the MLflow alias.

        Raises:
            RegistryError: if there is no such version, if its registration is incomplete, or if
                MLflow does not hold it.
        """
        promotion: Promotion | None = None
        if str(which) == CHAMPION:
            promotion = self.store.ledger.champion(model)
            if promotion is None:
                raise RegistryError(
                    f"{model} has no champion; expected one in the ledger; run `mario pipeline` "
                    "or `mario promote` first"
                )
            number = promotion.version
        elif str(which) == CHALLENGER:
            challenger = self.mlflow.aliases(model).get(CHALLENGER)
            if challenger is None:
                raise RegistryError(
                    f"{model} has no challenger; expected the alias on a version; register one "
                    "with `mario register`, or name a version by its number"
                )
            number = challenger
        else:
            try:
                number = int(str(which).removeprefix("v"))
            except ValueError:
                raise RegistryError(
                    f"got the version {which!r} of {model}; expected champion, challenger or a "
                    "number; list them with `mario registry list`"
                ) from None
        row = self.store.versions.get(model, number)
        if row is None or row.state != VersionState.COMPLETE:
            raise RegistryError(
                f"{model} v{number} is {'not registered' if row is None else row.state}; expected "
                "a completely registered version; list them with `mario registry list`"
            )
        with self.mlflow.translated(f"find {model} v{number}"):
            source = self.mlflow.client.get_model_version_download_uri(model, str(number))
        return ResolvedVersion(
            model=model,
            version=number,
            digest=row.digest,
            source=source,
            run_id=row.run_id,
            promotion=promotion,
        )

    def download(
        self, version: ResolvedVersion, folder: Path | str, *, with_archive: bool = False
    ) -> Artefact:
        """Download a version's artefact, verify it, and move it into place as a whole.

        Several processes may download into one folder at once.

        Args:
            version: from ``resolve``.
            folder: the target; content with the same digest is kept, other content is replaced.
            with_archive: also fetch the archive that resumes training (a pickle, which serving
                and evaluation never open), if the folder has to be downloaded.

        Raises:
            ArtefactError: if the artefact is missing, incomplete, or has another digest.
            RegistryError: if MLflow does not answer.
        """
        return download_version(self.mlflow.tracking_uri, version, Path(folder), with_archive)

    def versions(self, model: str) -> tuple[VersionSummary, ...]:
        """List every version that the store or MLflow holds, pending ones included, by number."""
        champion = self.store.ledger.champion(model)
        aliases: dict[int, list[str]] = {}
        for name, number in self.mlflow.aliases(model).items():
            aliases.setdefault(number, []).append(name)
        found = [
            VersionSummary(
                model=model,
                version=row.version,
                digest=row.digest,
                state=row.state,
                aliases=tuple(sorted(aliases.get(row.version or 0, ()))),
                champion=champion is not None and champion.version == row.version,
                run_id=row.run_id,
            )
            for row in self.store.versions.list(model)
        ]
        known = {summary.version for summary in found}
        found += [
            VersionSummary(
                model=model,
                version=int(entry.version),
                digest=entry.tags.get(TAG_DIGEST),
                state="unknown",
                aliases=tuple(sorted(aliases.get(int(entry.version), ()))),
                champion=False,
                run_id=entry.tags.get(TAG_RUN),
            )
            for entry in self.mlflow.versions(model)
            if int(entry.version) not in known
        ]
        return tuple(sorted(found, key=lambda summary: (summary.version is None, summary.version)))

    # -- aliases and promotion --------------------------------------------------------------

    def set_challenger(self, model: str, version: int) -> None:
        """Point the alias ``challenger`` at a completely registered version."""
        self.mlflow.set_alias(model, CHALLENGER, self.resolve(model, version).version)

    def promote(
        self,
        model: str,
        version: int,
        *,
        verdict_id: str | None,
        promoted_by: str,
        note: str | None = None,
    ) -> Promotion:
        """Promote a version: first the ledger's transaction, then the alias.

        A promotion that was killed between the two steps can be repeated: if the verdict already
        made this version champion, the call only moves the alias.

        Raises:
            PromotionConflict: if another promoter was first; the message names the champion.
            RegistryError: if the version or the verdict does not allow it, or if the version has
                no valid artefact.
        """
        current = self.store.ledger.champion(model)
        if (
            current is not None
            and verdict_id is not None
            and (current.verdict_id, current.version) == (verdict_id, version)
        ):
            self._move_alias(current)
            return current
        self.require_artefact(self.resolve(model, version))
        promotion = self.store.ledger.promote(
            model, version, verdict_id=verdict_id, promoted_by=promoted_by, note=note
        )
        self._move_alias(promotion)
        return promotion

    def rollback(
        self,
        model: str,
        version: int | None = None,
        *,
        promoted_by: str,
        note: str | None = None,
    ) -> Promotion:
        """Promote a former champion again: first the ledger, then the alias.

        Raises:
            RegistryError: if there is no former champion.
        """
        promotion = self.store.ledger.rollback(model, version, promoted_by=promoted_by, note=note)
        self._move_alias(promotion)
        return promotion

    def require_artefact(self, version: ResolvedVersion) -> None:
        """Check that a version's artefact can be downloaded and is valid.

        Raises:
            RegistryError: if the artefact is missing or damaged.
        """
        with tempfile.TemporaryDirectory(prefix="mario-verify-") as temporary:
            try:
                self.download(version, Path(temporary) / "policy")
            except ArtefactError as error:
                raise RegistryError(
                    f"{version.model} v{version.version} has no sound artefact: {error}"
                ) from error

    def _move_alias(self, promotion: Promotion) -> None:
        """Point the alias at the ledger's newest champion; log a failure as a warning."""
        newest = self.store.ledger.champion(promotion.model) or promotion
        try:
            self.mlflow.point_champion(newest)
        except RegistryError as error:
            _log.warning(
                "the ledger's champion is %s v%s, but the MLflow alias could not be moved (%s); "
                "`mario registry reconcile` moves it",
                newest.model,
                newest.version,
                error,
            )

    # -- repair -----------------------------------------------------------------------------

    def reconcile(self, model: str) -> tuple[Repair, ...]:
        """Bring MLflow in line with the ledger; complete or discard unfinished registrations.

        It is safe at any time, also while promotions run; a second call finds nothing to do.

        Returns:
            What was repaired, and what needs a person (``done`` False).
        """
        self.mlflow.prepare()
        return repair(self.store, self.mlflow, model)
