"""The MLflow model registry of one address, with errors of this project's tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mario.errors import RegistryError, RegistryUnavailableError
from mario.store.records import Promotion
from mario.store.vocabulary import VersionState
from mario.tracking.mlflow_client import (
    CHALLENGER,
    CHAMPION,
    TAG_REGISTRATION,
    TAG_STATE,
    is_unreachable,
    prepare_tracking,
    tracking_client,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


class MlflowRegistry:
    """Versions, tags and aliases in MLflow; it knows nothing of the store's ledger.

    Args:
        tracking_uri: ``sqlite:///runs/mlflow.db`` or ``http://mlflow:5000``.
        artifact_dir: folder of an embedded registry's artefacts; a server chooses its own.
    """

    def __init__(self, tracking_uri: str, artifact_dir: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.artifact_dir = artifact_dir

    @property
    def client(self) -> MlflowClient:
        """The MLflow client of this address."""
        return tracking_client(self.tracking_uri)

    def prepare(self) -> None:
        """Create the files of an embedded registry where they are missing.

        Raises:
            RegistryError: if they cannot be created.
        """
        prepare_tracking(self.tracking_uri, self.artifact_dir)

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn MLflow's exceptions into one line that names the failed action and the address.

        Args:
            doing: the action, as it follows "cannot".

        Raises:
            RegistryUnavailableError: if MLflow does not answer.
            RegistryError: if MLflow refuses.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            text = str(error).splitlines()[0][:300]
            kind = RegistryUnavailableError if is_unreachable(error) else RegistryError
            raise kind(
                f"cannot {doing} at {self.tracking_uri} ({text}); expected a registry that "
                "answers; start MLflow, or name another with MLFLOW_TRACKING_URI"
            ) from error

    def versions(self, model: str) -> list[ModelVersion]:
        """List the versions of a model that MLflow holds."""
        with self.translated(f"list the versions of {model}"):
            return list(self.client.search_model_versions(f"name='{model}'"))

    def find_registration(self, model: str, registration_id: str) -> ModelVersion | None:
        """Find the version that a registration created; None if it created none yet.

        Raises:
            MlflowException: call it inside ``translated``.
        """
        found = self.client.search_model_versions(
            f"name='{model}' and tags.`{TAG_REGISTRATION}`='{registration_id}'"
        )
        return found[0] if found else None

    def tag_complete(self, model: str, version: int | str) -> None:
        """Tag a version as completely registered.

        Raises:
            MlflowException: call it inside ``translated``.
        """
        self.client.set_model_version_tag(model, str(version), TAG_STATE, VersionState.COMPLETE)

    def aliases(self, model: str) -> dict[str, int]:
        """Read a model's aliases, version by alias; empty if MLflow does not know the model."""
        from mlflow.exceptions import MlflowException

        with self.translated(f"read the aliases of {model}"):
            try:
                found = self.client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {name: int(version) for name, version in found.items()}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with self.translated(f"set the {alias} of {model}"):
            self.client.set_registered_model_alias(model, alias, str(version))

    def remove_alias(self, model: str, alias: str) -> None:
        """Remove an alias."""
        with self.translated(f"remove the {alias} alias of {model}"):
            self.client.delete_registered_model_alias(model, alias)

    def point_champion(self, promotion: Promotion) -> None:
        """Point ``champion`` at a promotion's version and tag the version with the promotion.

        The alias ``challenger`` is removed if it is on the same version.
        """
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
