"""MLflow behind the ledger: register a version, resolve it, move aliases, repair what was broken.

The promotion ledger in SQL is the truth (docs/adr/0006): every promotion is written there first,
and the MLflow alias ``champion`` only follows. MLflow aliases have no atomic swap and no history,
so whatever is killed between the two steps is repaired by ``reconcile``.

Reading (``resolve``, ``download``) needs ``mlflow-skinny`` only; registering needs ``mlflow``.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mario.errors import ArtefactError, RegistryError, RegistryUnavailableError
from mario.policy.artefact import Artefact, load_artefact
from mario.registry.download import ResolvedVersion, download_version
from mario.registry.repair import Repair, repair
from mario.registry.upload import upload_version
from mario.store.records import Promotion, RegisteredVersion
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import (
    CHALLENGER,
    CHAMPION,
    TAG_DIGEST,
    TAG_REGISTRATION,
    TAG_STATE,
    is_away,
    prepare_tracking,
    tracking_client,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "ModelRegistry",
    "Repair",
    "ResolvedVersion",
    "VersionSummary",
    "model_name",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """One line of ``mario registry list``; ``state`` is what the store says, or ``unknown``."""

    model: str
    version: int | None
    digest: str | None
    state: str
    aliases: tuple[str, ...]
    champion: bool
    run_id: str | None


class ModelRegistry:
    """Versions and aliases of one MLflow registry, under one store's ledger.

    Args:
        tracking_uri: ``sqlite:///runs/mlflow.db`` or ``http://mlflow:5000``.
        store: the opened store with the ledger.
        artifact_dir: where an embedded registry keeps artefacts; a server has its own place.
    """

    def __init__(
        self, tracking_uri: str, store: ExperimentStore, artifact_dir: Path | str | None = None
    ) -> None:
        self.tracking_uri = tracking_uri
        self.store = store
        self._artifact_dir = None if artifact_dir is None else Path(artifact_dir)

    @property
    def client(self) -> MlflowClient:
        """The MLflow client of this registry's address."""
        return tracking_client(self.tracking_uri)

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn MLflow's exceptions into one line: what could not be done, and where."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            text = str(error).splitlines()[0][:300]
            kind = RegistryUnavailableError if is_away(error) else RegistryError
            raise kind(
                f"cannot {doing} at {self.tracking_uri} ({text}); expected a registry that "
                "answers; start MLflow, or name another with MLFLOW_TRACKING_URI"
            ) from error

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
        """Register an artefact folder as a new version, complete or not at all.

        First a ``pending`` row in the store, then the upload, then the MLflow version, then
        ``complete``. Registering the same key again goes on with what was broken off and returns
        the same version.

        Args:
            model: ``mario-<task>``.
            folder: a policy artefact.
            run_id: the training run in the store that it comes from.
            registration_key: identity of this registration; ``<run_id>:<digest>`` if None.
            tags: more tags for the MLflow version.

        Raises:
            ArtefactError: if the folder is no sound artefact.
            RegistryError: if MLflow does not answer or the key means another policy.
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
        if row.state == "complete":
            return row
        prepare_tracking(self.tracking_uri, self._artifact_dir)
        with self.translated(f"register {model}"):
            found = self.find_registration(model, row.id)
            if found is None:
                found = upload_version(
                    self.client,
                    row,
                    artefact,
                    mlflow_run_id=run.mlflow_run_id if run else None,
                    tags=tags or {},
                    artifact_dir=self._artifact_dir,
                )
            version = int(found.version)
            completed = self.store.versions.complete(
                row.id, version=version, mlflow_run_id=found.run_id, source=str(found.source)
            )
            self.client.set_model_version_tag(model, str(version), TAG_STATE, "complete")
        return completed

    def find_registration(self, model: str, registration_id: str) -> ModelVersion | None:
        """Find the MLflow version that a registration made, if it came that far."""
        found = self.client.search_model_versions(
            f"name='{model}' and tags.`{TAG_REGISTRATION}`='{registration_id}'"
        )
        return found[0] if found else None

    # -- reading ----------------------------------------------------------------------------

    def resolve(self, model: str, which: str | int = CHAMPION) -> ResolvedVersion:
        """Find the version behind ``champion``, ``challenger`` or a number.

        The champion is the ledger's, whatever the alias says.

        Raises:
            RegistryError: if there is no such version, it is half-registered, or MLflow does not
                know it.
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
            number = self._alias(model, CHALLENGER)
        else:
            try:
                number = int(str(which).removeprefix("v"))
            except ValueError:
                raise RegistryError(
                    f"got the version {which!r} of {model}; expected champion, challenger or a "
                    "number; list them with `mario registry list`"
                ) from None
        row = self.store.versions.get(model, number)
        if row is None or row.state != "complete":
            raise RegistryError(
                f"{model} v{number} is {'not registered' if row is None else row.state}; expected "
                "a completely registered version; list them with `mario registry list`"
            )
        with self.translated(f"find {model} v{number}"):
            source = self.client.get_model_version_download_uri(model, str(number))
        return ResolvedVersion(
            model=model,
            version=number,
            digest=row.digest,
            source=source,
            run_id=row.run_id,
            promotion=promotion,
        )

    def _alias(self, model: str, alias: str) -> int:
        found = self.aliases(model).get(alias)
        if found is None:
            raise RegistryError(
                f"{model} has no {alias}; expected the alias on a version; register one with "
                "`mario register`, or name a version by its number"
            )
        return found

    def aliases(self, model: str) -> dict[str, int]:
        """Read the aliases of a model as MLflow has them; empty if it knows no such model."""
        from mlflow.exceptions import MlflowException

        with self.translated(f"read the aliases of {model}"):
            try:
                found = self.client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {name: int(version) for name, version in found.items()}

    def download(
        self, version: ResolvedVersion, folder: Path | str, *, with_archive: bool = False
    ) -> Artefact:
        """Download a version's artefact, verify it, and put it in place whole.

        Several processes may download into one folder at once.

        Args:
            version: from ``resolve``.
            folder: where it shall be; what is there with the same digest is used as it is,
                anything else is replaced.
            with_archive: also the archive for going on with training (a pickle; serving and
                evaluation never touch it), if the folder is not there yet.

        Raises:
            ArtefactError: if the artefact is missing, incomplete, or has another digest.
            RegistryError: if MLflow does not answer.
        """
        return download_version(self.tracking_uri, version, Path(folder), with_archive)

    def versions(self, model: str) -> tuple[VersionSummary, ...]:
        """Every version that the store or MLflow knows, pending ones included, by number."""
        champion = self.store.ledger.champion(model)
        aliases: dict[int, list[str]] = {}
        for name, number in self.aliases(model).items():
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
        with self.translated(f"list the versions of {model}"):
            for entry in self.client.search_model_versions(f"name='{model}'"):
                if int(entry.version) not in known:
                    found.append(
                        VersionSummary(
                            model=model,
                            version=int(entry.version),
                            digest=entry.tags.get(TAG_DIGEST),
                            state="unknown",
                            aliases=tuple(sorted(aliases.get(int(entry.version), ()))),
                            champion=False,
                            run_id=entry.tags.get("mario.run_id"),
                        )
                    )
        return tuple(sorted(found, key=lambda summary: (summary.version is None, summary.version)))

    # -- aliases and promotion --------------------------------------------------------------

    def set_challenger(self, model: str, version: int) -> None:
        """Point the alias ``challenger`` at a completely registered version."""
        resolved = self.resolve(model, version)
        with self.translated(f"set the challenger of {model}"):
            self.client.set_registered_model_alias(model, CHALLENGER, str(resolved.version))

    def promote(
        self,
        model: str,
        version: int,
        *,
        verdict_id: str | None,
        promoted_by: str,
        note: str | None = None,
    ) -> Promotion:
        """Promote a version: the ledger's transaction first, the alias second.

        Called again with a verdict that already made the present champion, it only brings the
        alias in line: a promotion that was killed in between can be repeated.

        Raises:
            PromotionConflict: if another promoter was first; names the champion.
            RegistryError: if the version or the verdict does not allow it, or has no artefact.
        """
        current = self.store.ledger.champion(model)
        if (
            current is not None
            and verdict_id is not None
            and (current.verdict_id, current.version) == (verdict_id, version)
        ):
            self._follow(current)
            return current
        self.require_artefact(self.resolve(model, version))
        promotion = self.store.ledger.promote(
            model, version, verdict_id=verdict_id, promoted_by=promoted_by, note=note
        )
        self._follow(promotion)
        return promotion

    def rollback(
        self,
        model: str,
        version: int | None = None,
        *,
        promoted_by: str,
        note: str | None = None,
    ) -> Promotion:
        """Make a former champion champion again: ledger first, alias second.

        Raises:
            RegistryError: if there is nothing to go back to.
        """
        promotion = self.store.ledger.rollback(model, version, promoted_by=promoted_by, note=note)
        self._follow(promotion)
        return promotion

    def require_artefact(self, version: ResolvedVersion) -> None:
        """Refuse a version whose artefact is gone or damaged.

        Raises:
            RegistryError: with what to do.
        """
        with tempfile.TemporaryDirectory(prefix="mario-verify-") as temporary:
            try:
                self.download(version, Path(temporary) / "policy")
            except ArtefactError as error:
                raise RegistryError(
                    f"{version.model} v{version.version} has no sound artefact: {error}"
                ) from error

    def _follow(self, promotion: Promotion) -> bool:
        """Bring the alias in line with the ledger's newest row; a failure is only a warning."""
        newest = self.store.ledger.champion(promotion.model) or promotion
        try:
            self.point_champion(newest)
        except RegistryError as error:
            _log.warning(
                "the ledger says %s v%s, but the alias could not follow (%s); it will with "
                "`mario registry reconcile`",
                newest.model,
                newest.version,
                error,
            )
            return False
        return True

    def point_champion(self, promotion: Promotion) -> None:
        """Move the alias to a promotion's version, and say there which promotion it was."""
        from mlflow.exceptions import MlflowException

        number = str(promotion.version)
        with self.translated(f"move the champion of {promotion.model}"):
            client = self.client
            client.set_registered_model_alias(promotion.model, CHAMPION, number)
            client.set_model_version_tag(
                promotion.model,
                number,
                "mario.promotion",
                json.dumps(
                    {
                        "sequence": promotion.sequence,
                        "reason": promotion.reason,
                        "verdict_id": promotion.verdict_id,
                        "at": promotion.promoted_at.isoformat(),
                    }
                ),
            )
            try:
                challenger = client.get_registered_model(promotion.model).aliases.get(CHALLENGER)
                if challenger is not None and str(challenger) == number:
                    client.delete_registered_model_alias(promotion.model, CHALLENGER)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    # -- repair -----------------------------------------------------------------------------

    def reconcile(self, model: str) -> tuple[Repair, ...]:
        """Bring MLflow in line with the ledger and finish or bury half registrations.

        Safe at any time, also beside running promotions; a second call finds nothing to do.

        Returns:
            What was done, and what needs a person (``done`` False).
        """
        prepare_tracking(self.tracking_uri, self._artifact_dir)
        return repair(self, model)


def model_name(task: str) -> str:
    """The registered model of a task: ``mario-<task>``."""
    return f"mario-{task}"
