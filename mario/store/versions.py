"""Registered versions in the store; a row is written before the upload."""

from __future__ import annotations

import sqlalchemy as sa

from mario.errors import RegistryError
from mario.store import tables
from mario.store.batch_insert import insert_into
from mario.store.engine import reading, writing
from mario.store.ledger import lock_model
from mario.store.process_identity import host_name, process_id
from mario.store.records import RegisteredVersion, new_id, utc_now
from mario.store.vocabulary import VersionState


class Versions:
    """The registered versions of one database; see ``ExperimentStore.versions``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def begin(
        self,
        model: str,
        registration_key: str,
        *,
        digest: str,
        run_id: str | None = None,
    ) -> RegisteredVersion:
        """Store a ``pending`` version before its upload, or find the version with this key.

        Args:
            model: ``mario-<task>``.
            registration_key: identity of the registration.
            digest: SHA-256 of ``policy.json`` (ADR 3).
            run_id: the training run that it comes from, if any.

        Raises:
            RegistryError: if the key belongs to another digest.
            StoreConstraintError: if the run is unknown.
        """
        table = tables.RegisteredVersionRow
        with writing(self._engine) as connection:
            lock_model(connection, model)
            statement = insert_into(connection, table).values(
                id=new_id("version"),
                model=model,
                registration_key=registration_key,
                digest=digest,
                run_id=run_id,
                state=VersionState.PENDING,
                host=host_name(),
                pid=process_id(),
                created_at=utc_now(),
            )
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["model", "registration_key"],
                    # A killed or broken registration passes to the process that resumes it.
                    set_={"host": host_name(), "pid": process_id(), "state": VersionState.PENDING},
                    where=(table.state != VersionState.COMPLETE)
                    & (table.version.is_(None))
                    & (table.digest == digest),
                )
            )
        found = self._one(table.model == model, table.registration_key == registration_key)
        if found is None or found.digest != digest:
            raise RegistryError(
                f"registration {registration_key!r} of {model} is already taken by digest "
                f"{found.digest[:12] if found else '?'}; got {digest[:12]}; register under "
                "another run"
            )
        return found

    def complete(
        self, version_id: str, *, version: int, mlflow_run_id: str | None, source: str
    ) -> RegisteredVersion:
        """Mark a version as ``complete`` after its upload; idempotent.

        Raises:
            RegistryError: if it is unknown.
            StoreConstraintError: if the version number is taken.
        """
        table = tables.RegisteredVersionRow
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(table)
                .where(table.id == version_id, table.state != VersionState.COMPLETE)
                .values(
                    version=version,
                    state=VersionState.COMPLETE,
                    mlflow_run_id=mlflow_run_id,
                    source=source,
                    completed_at=utc_now(),
                )
            )
        found = self._one(table.id == version_id)
        if found is None:
            raise RegistryError(f"got the registration {version_id!r}; expected one begun before")
        return found

    def mark_broken(self, version_id: str) -> None:
        """Mark a version as ``broken``: its upload was lost, or its artefact is damaged."""
        table = tables.RegisteredVersionRow
        with writing(self._engine) as connection:
            connection.execute(
                sa.update(table).where(table.id == version_id).values(state=VersionState.BROKEN)
            )

    def get(self, model: str, version: int) -> RegisteredVersion | None:
        """Read a version by its number; None if it is unknown."""
        table = tables.RegisteredVersionRow
        return self._one(table.model == model, table.version == version)

    def list(
        self, model: str | None = None, *, state: VersionState | None = None
    ) -> tuple[RegisteredVersion, ...]:
        """Read versions in the order of their registration."""
        table = tables.RegisteredVersionRow
        conditions: list[sa.ColumnElement[bool]] = []
        if model is not None:
            conditions.append(table.model == model)
        if state is not None:
            conditions.append(table.state == state)
        return self._select(*conditions)

    def _one(self, *conditions: sa.ColumnElement[bool]) -> RegisteredVersion | None:
        found = self._select(*conditions)
        return found[0] if found else None

    def _select(self, *conditions: sa.ColumnElement[bool]) -> tuple[RegisteredVersion, ...]:
        table = tables.RegisteredVersionRow
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table).where(*conditions).order_by(table.created_at, table.id)
            ).all()
        return tuple(RegisteredVersion(**row._mapping) for row in rows)
