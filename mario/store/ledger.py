"""The promotion ledger and the alpha accounts: one chain per model, appended under a lock.

The ledger decides which version is champion (docs/adr/0006); the registry's alias follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from mario.errors import PromotionConflict, RegistryError
from mario.evaluation.decision import GateDecision
from mario.store import tables
from mario.store.batch_insert import insert_into
from mario.store.engine import StoreConstraintError, reading, writing
from mario.store.records import AlphaEntry, Promotion, utc_now
from mario.store.vocabulary import AlphaKind, PromotionReason, VersionState

# Tolerance when sums of alpha (probabilities) are compared.
_ALPHA_TOLERANCE = 1e-12


def lock_model(connection: sa.Connection, model: str) -> None:
    """Lock a model's row until the transaction ends; create a missing row.

    On PostgreSQL other writers of the model wait here; on SQLite the write transaction already
    excludes every other writer.
    """
    connection.execute(
        insert_into(connection, tables.ModelRow)
        .values(name=model, created_at=utc_now())
        .on_conflict_do_nothing()
    )
    connection.execute(
        sa.select(tables.ModelRow.name).where(tables.ModelRow.name == model).with_for_update()
    )


class Ledger:
    """Promotions and alpha accounts of one database; see ``ExperimentStore.ledger``."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def champion(self, model: str) -> Promotion | None:
        """Read the entry of the current champion; None before the first promotion."""
        with reading(self._engine) as connection:
            return _last(connection, model)

    def history(self, model: str) -> tuple[Promotion, ...]:
        """Read every promotion of a model, oldest first."""
        with reading(self._engine) as connection:
            return _history(connection, model)

    def models(self) -> tuple[str, ...]:
        """Name the models that have versions, verdicts or promotions."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(tables.ModelRow.name).order_by(tables.ModelRow.name)
            )
            return tuple(row.name for row in rows)

    def promote(
        self,
        model: str,
        version: int,
        *,
        verdict_id: str | None,
        promoted_by: str,
        note: str | None = None,
    ) -> Promotion:
        """Append a promotion in one transaction, if the champion is still the judged one.

        Args:
            model: ``mario-<task>``.
            version: the version to promote; its registration must be complete.
            verdict_id: a stored verdict with the decision ``promote`` about this version's digest.
                None is accepted only for a model's first champion.
            promoted_by: person or job.
            note: the reason, for people.

        Returns:
            The new entry.

        Raises:
            PromotionConflict: if another version was promoted since the verdict's evaluation.
            RegistryError: if the version is not completely registered; if the verdict does not say
                promote, is about another version, or was used before.
            StoreUnavailableError: if the database is unreachable.
        """
        try:
            with writing(self._engine) as connection:
                lock_model(connection, model)
                current = _last(connection, model)
                row = _complete_version(connection, model, version)
                if verdict_id is not None:
                    self._check_verdict(connection, verdict_id, row, current)
                elif current is not None:
                    raise RegistryError(
                        f"got no verdict for {model} v{version}; expected one, since "
                        f"v{current.version} is champion; run `mario gate` first, or "
                        "`mario registry rollback` to go back to a former champion"
                    )
                reason = PromotionReason.FIRST if current is None else PromotionReason.GATE
                before = _wealth(connection, model)
                if verdict_id is not None:
                    _earn_alpha(connection, model, verdict_id)
                after = _wealth(connection, model)
                return _append(
                    connection,
                    row,
                    current,
                    reason=reason,
                    verdict_id=verdict_id,
                    promoted_by=promoted_by,
                    note=note,
                    wealth=(before, after),
                )
        except StoreConstraintError as error:
            raise self._lost_race(model, version, error) from error

    def rollback(
        self,
        model: str,
        version: int | None = None,
        *,
        promoted_by: str,
        note: str | None = None,
        expected_champion: int | None = None,
    ) -> Promotion:
        """Append a promotion of a former champion.

        Args:
            model: ``mario-<task>``.
            version: the former champion; None chooses the previous one, without those that were
                rolled back.
            promoted_by: person or job.
            note: the reason, for people.
            expected_champion: raise if the champion is another version.

        Raises:
            RegistryError: if there is no former champion, or the version never was champion.
            PromotionConflict: if the champion is not the expected one.
        """
        try:
            with writing(self._engine) as connection:
                lock_model(connection, model)
                rows = _history(connection, model)
                if not rows:
                    raise RegistryError(
                        f"{model} has no champion; expected one to roll back from; promote first"
                    )
                current = rows[-1]
                if expected_champion not in (None, current.version):
                    raise _conflict(model, version, current)
                if version is None:
                    version = _former_champion(model, rows)
                elif version == current.version or all(row.version != version for row in rows):
                    former = sorted({row.version for row in rows} - {current.version})
                    raise RegistryError(
                        f"got v{version} to roll {model} back to; expected a former champion "
                        f"other than v{current.version}: {former or 'there is none'}"
                    )
                wealth = _wealth(connection, model)
                return _append(
                    connection,
                    _complete_version(connection, model, version),
                    current,
                    reason=PromotionReason.ROLLBACK,
                    verdict_id=None,
                    promoted_by=promoted_by,
                    note=note,
                    wealth=(wealth, wealth),
                )
        except StoreConstraintError as error:
            raise self._lost_race(model, version, error) from error

    @staticmethod
    def _check_verdict(
        connection: sa.Connection,
        verdict_id: str,
        version: sa.Row[Any],
        current: Promotion | None,
    ) -> None:
        table = tables.VerdictRow
        verdict = connection.execute(sa.select(table).where(table.id == verdict_id)).one_or_none()
        if verdict is None:
            raise RegistryError(
                f"got the verdict {verdict_id!r}; expected a stored one; make it with `mario gate`"
            )
        if verdict.model != version.model or verdict.challenger_digest != version.digest:
            raise RegistryError(
                f"verdict {verdict_id} is about {verdict.model} {verdict.challenger_digest[:12]}; "
                f"expected one about {version.model} v{version.version} ({version.digest[:12]}); "
                "gate this version"
            )
        if verdict.decision != GateDecision.PROMOTE:
            raise RegistryError(
                f"verdict {verdict_id} says {verdict.decision}; expected promote; "
                "the champion stays"
            )
        if current is None:
            judged_now = verdict.champion_version is None
        else:
            judged_now = verdict.champion_version in (current.version, None) and (
                verdict.champion_digest == current.digest
            )
        if not judged_now:
            raise _conflict(version.model, version.version, current)
        used = connection.execute(
            sa.select(tables.PromotionRow.sequence).where(
                tables.PromotionRow.verdict_id == verdict_id
            )
        ).scalar_one_or_none()
        if used is not None:
            raise PromotionConflict(
                f"verdict {verdict_id} was already used for promotion {used} of {version.model}; "
                "expected a verdict for each promotion; gate again"
            )

    def _lost_race(
        self, model: str, version: int | None, error: StoreConstraintError
    ) -> RegistryError:
        """Translate a refused row: to a conflict if another promoter was first."""
        current = self.champion(model)
        if current is not None and "promotions" in str(error):
            return _conflict(model, version, current)
        return RegistryError(f"promotion of {model} v{version} was refused: {error}")

    def grant_alpha(self, model: str, amount: float) -> AlphaEntry:
        """Open a model's alpha account with an amount > 0, or return its existing first entry."""
        with writing(self._engine) as connection:
            lock_model(connection, model)
            first = _alpha_entries(connection, model)[:1]
            if first:
                return first[0]
            return _append_alpha(
                connection,
                model,
                kind=AlphaKind.GRANT,
                test_key="grant",
                amount=amount,
                wealth_after=amount,
                verdict_id=None,
            )

    def spend_alpha(
        self,
        model: str,
        test_key: str,
        amount: float | Callable[[Sequence[AlphaEntry]], float],
    ) -> AlphaEntry:
        """Pay for a test before it starts; the same test is paid once.

        Args:
            model: ``mario-<task>``.
            test_key: identity of the test: the policies and the rule.
            amount: its price, 0 < amount ≤ wealth; or a function that computes the price from the
                account's entries while the account is locked, so that two tests never pay the same
                share.

        Returns:
            The entry; the earlier one, with its ``amount``, if the test was already paid.

        Raises:
            RegistryError: if there is no account, or its wealth is too low.
        """
        with writing(self._engine) as connection:
            lock_model(connection, model)
            entries = _alpha_entries(connection, model)
            paid = [e for e in entries if e.kind == AlphaKind.SPEND and e.test_key == test_key]
            if paid:
                return paid[0]
            wealth = entries[-1].wealth_after if entries else 0.0
            if callable(amount):
                amount = amount(entries)
            if not 0 < amount <= wealth + _ALPHA_TOLERANCE:
                raise RegistryError(
                    f"got {amount:g} alpha to spend on {model}; expected more than 0 and at most "
                    f"its wealth {wealth:g}; no further test fits the declared level: wait for "
                    "a promotion, or open a new task"
                )
            return _append_alpha(
                connection,
                model,
                kind=AlphaKind.SPEND,
                test_key=test_key,
                amount=amount,
                wealth_after=max(wealth - amount, 0.0),
                verdict_id=None,
            )

    def alpha_entries(self, model: str) -> tuple[AlphaEntry, ...]:
        """Read every movement of a model's alpha account, oldest first."""
        with reading(self._engine) as connection:
            return _alpha_entries(connection, model)


def _earn_alpha(connection: sa.Connection, model: str, verdict_id: str) -> None:
    """Refill a model's alpha account after a promotion, which starts a new stream of tests.

    A verdict `promote` without a promotion leaves the champion in place, so the next challenger
    belongs to the same stream. The caller holds the model's lock.
    """
    entries = _alpha_entries(connection, model)
    if not entries:
        return
    granted, wealth = entries[0].amount, entries[-1].wealth_after
    _append_alpha(
        connection,
        model,
        kind=AlphaKind.EARN,
        test_key=verdict_id,
        amount=max(granted - wealth, 0.0),
        wealth_after=max(granted, wealth),
        verdict_id=verdict_id,
    )


def _append_alpha(
    connection: sa.Connection,
    model: str,
    *,
    kind: AlphaKind,
    test_key: str,
    amount: float,
    wealth_after: float,
    verdict_id: str | None,
) -> AlphaEntry:
    entries = _alpha_entries(connection, model)
    entry = AlphaEntry(
        model=model,
        sequence=entries[-1].sequence + 1 if entries else 1,
        kind=kind,
        test_key=test_key,
        amount=amount,
        wealth_before=entries[-1].wealth_after if entries else 0.0,
        wealth_after=wealth_after,
        verdict_id=verdict_id,
        at=utc_now(),
    )
    connection.execute(sa.insert(tables.AlphaEntryRow).values(**vars(entry)))
    return entry


def _alpha_entries(connection: sa.Connection, model: str) -> tuple[AlphaEntry, ...]:
    table = tables.AlphaEntryRow
    rows = connection.execute(sa.select(table).where(table.model == model).order_by(table.sequence))
    return tuple(AlphaEntry(**row._mapping) for row in rows)


def _wealth(connection: sa.Connection, model: str) -> float | None:
    entries = _alpha_entries(connection, model)
    return entries[-1].wealth_after if entries else None


def _history(connection: sa.Connection, model: str) -> tuple[Promotion, ...]:
    table = tables.PromotionRow
    rows = connection.execute(sa.select(table).where(table.model == model).order_by(table.sequence))
    return tuple(_promotion(row) for row in rows)


def _last(connection: sa.Connection, model: str) -> Promotion | None:
    table = tables.PromotionRow
    row = connection.execute(
        sa.select(table).where(table.model == model).order_by(table.sequence.desc()).limit(1)
    ).one_or_none()
    return _promotion(row) if row is not None else None


def _promotion(row: sa.Row[Any]) -> Promotion:
    names = Promotion.__dataclass_fields__
    return Promotion(**{name: row._mapping[name] for name in names})


def _complete_version(connection: sa.Connection, model: str, version: int) -> sa.Row[Any]:
    table = tables.RegisteredVersionRow
    row = connection.execute(
        sa.select(table).where(table.model == model, table.version == version)
    ).one_or_none()
    if row is None or row.state != VersionState.COMPLETE:
        state = "not registered" if row is None else row.state
        raise RegistryError(
            f"{model} v{version} is {state}; expected a completely registered version; "
            "list them with `mario registry list`, repair with `mario registry reconcile`"
        )
    return row


def _append(
    connection: sa.Connection,
    version: sa.Row[Any],
    current: Promotion | None,
    *,
    reason: PromotionReason,
    verdict_id: str | None,
    promoted_by: str,
    note: str | None,
    wealth: tuple[float | None, float | None],
) -> Promotion:
    sequence = 1 if current is None else current.sequence + 1
    connection.execute(
        sa.insert(tables.PromotionRow).values(
            model=version.model,
            sequence=sequence,
            version=version.version,
            digest=version.digest,
            previous_sequence=None if current is None else current.sequence,
            previous_version=None if current is None else current.version,
            reason=reason,
            verdict_id=verdict_id,
            verdict_decision=None if verdict_id is None else GateDecision.PROMOTE,
            promoted_by=promoted_by,
            note=note,
            alpha_wealth_before=wealth[0],
            alpha_wealth_after=wealth[1],
            promoted_at=utc_now(),
        )
    )
    appended = _last(connection, version.model)
    assert appended is not None
    return appended


def _former_champion(model: str, rows: tuple[Promotion, ...]) -> int:
    """Return the version of the previous champion, ignoring those that were rolled back."""
    stack: list[int] = []
    for row in rows:
        if row.reason == PromotionReason.ROLLBACK:
            while stack and stack[-1] != row.version:
                stack.pop()
            if not stack:
                stack.append(row.version)
        else:
            stack.append(row.version)
    if len(stack) < 2:
        raise RegistryError(
            f"{model} v{rows[-1].version} has no champion before it; expected one to roll back to; "
            "name a former champion with --version"
        )
    return stack[-2]


def _conflict(model: str, version: int | None, current: Promotion | None) -> PromotionConflict:
    if current is None:
        return PromotionConflict(
            f"{model} v{version} was judged against a champion, but {model} has none; "
            "expected the judged champion; gate it again"
        )
    return PromotionConflict(
        f"{model} v{version} was judged against another champion: v{current.version} is champion "
        f"now (promotion {current.sequence}, by {current.promoted_by}); gate it again against "
        f"v{current.version}"
    )
