"""Check the store's invariants, and list the state of every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from mario.config.run_states import RunStatus
from mario.errors import MarioError
from mario.journal.format import first_record, pending_journals
from mario.store import migrate, tables
from mario.store.engine import reading
from mario.store.process_identity import attempt_is_alive, is_silent
from mario.store.records import Run
from mario.store.store import ExperimentStore
from mario.store.vocabulary import AlphaKind, EvaluationStatus, VersionState

#: The algorithm in the row of a sweep's own run.
SWEEP_ALGORITHM = "sweep"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result of a check: an ``error`` violates an invariant, a ``notice`` needs an action."""

    severity: Literal["error", "notice"]
    what: str


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """The current state of a run.

    Attributes:
        run_id: the run.
        name: its name.
        status: its status; ``killed`` if it is stored as ``running`` but its process is gone.
        attempts: number of its attempts.
        episodes: number of its stored episodes.
        text: one line for people.
    """

    run_id: str
    name: str
    status: RunStatus
    attempts: int
    episodes: int
    text: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of ``check_store``."""

    findings: tuple[Finding, ...]
    runs: tuple[CheckedRun, ...]

    @property
    def sound(self) -> bool:
        """Whether every invariant holds."""
        return all(finding.severity != "error" for finding in self.findings)

    def text(self) -> str:
        """The report for a terminal."""
        lines = [run.text for run in self.runs] or ["no runs yet"]
        lines += [f"{finding.severity}: {finding.what}" for finding in self.findings]
        errors = sum(finding.severity == "error" for finding in self.findings)
        lines.append(
            f"{len(self.runs)} runs; "
            + ("every invariant holds" if self.sound else f"{errors} invariants are broken")
        )
        return "\n".join(lines)


def check_store(
    store: ExperimentStore, *, runs_dir: Path | str | None = None, mark_killed: bool = False
) -> CheckReport:
    """Check the invariants of a store and read the state of every run.

    Args:
        store: an opened store.
        runs_dir: folder that contains the runs' folders, searched for undelivered journals.
        mark_killed: mark runs as ``killed`` whose process is gone.

    Raises:
        StoreError: if the database is unreachable.
    """
    runs = tuple(_check_run(store, run, mark_killed) for run in store.runs.list(limit=1_000_000))
    findings = [*_schema(store)]
    if runs_dir is not None:
        findings += _journals(store, Path(runs_dir))
    checks: tuple[Callable[[sa.Connection], Iterator[Finding]], ...] = (
        _engine_checks,
        _episodes_without_gaps,
        _evaluations,
        _verdicts,
        _ledger,
        _alpha,
        _registrations,
    )
    with reading(store.engine) as connection:
        for check in checks:
            findings.extend(check(connection))
    findings.extend(_recomputed_scores(store))
    return CheckReport(findings=tuple(findings), runs=runs)


def run_is_alive(run: Run) -> bool:
    """Whether the process of a run's last attempt is alive.

    A sweep's own run has many processes, and each of them sends its heartbeats.
    """
    if not run.attempts or run.attempts[-1].status != RunStatus.RUNNING:
        return False
    last = run.attempts[-1]
    if run.algorithm == SWEEP_ALGORITHM and not is_silent(last.heartbeat_at):
        return True
    return attempt_is_alive(last.host, last.pid, last.started_at, last.heartbeat_at)


def _check_run(store: ExperimentStore, run: Run, mark_killed: bool) -> CheckedRun:
    if mark_killed and run.attempts and run.status == RunStatus.RUNNING and not run_is_alive(run):
        store.runs.mark_killed(run.id, "its process is gone", seen=run.attempts[-1])
        run = store.runs.get(run.id)  # it may have resumed meanwhile
    dead = run.status == RunStatus.RUNNING and not run_is_alive(run)
    status: RunStatus = RunStatus.KILLED if dead else run.status
    episodes = store.runs.count_episodes(run.id)
    before = [attempt.status for attempt in run.attempts[:-1]]
    resumed = f", resumed {len(before)}x after {', '.join(before)}" if before else ""
    imported = ", imported" if run.imported else ""
    reason = f" ({run.status_reason})" if run.status_reason else ""
    return CheckedRun(
        run_id=run.id,
        name=run.name,
        status=status,
        attempts=len(run.attempts),
        episodes=episodes,
        text=f"{run.id}  {run.name}  {status}{reason}{resumed}{imported}, {episodes} episodes",
    )


def _error(what: str) -> Finding:
    return Finding(severity="error", what=what)


def _schema(store: ExperimentStore) -> Iterator[Finding]:
    current, head = migrate.current_revision(store.engine), migrate.head_revision()
    if current != head:
        yield _error(f"the schema is at revision {current}; expected {head}: mario store upgrade")


def _journals(store: ExperimentStore, runs_dir: Path) -> Iterator[Finding]:
    for folder in pending_journals(runs_dir):
        run_id = str((first_record(folder) or {}).get("run_id", folder.parent.name))
        what = f"{folder} holds records that are not delivered yet"
        if store.runs.find(run_id) is None:
            what += (
                f", of run {run_id}, which is not in this database: mario store check --replay "
                "delivers them with MARIO_DATABASE_URL set to the run's database"
            )
        else:
            what += ": the run's next start or mario store check --replay delivers them"
        yield Finding(severity="notice", what=what)
    for path in sorted(runs_dir.glob("*/journal*/refused.jsonl")):
        yield _error(f"{path} holds rows that the database refused, each with the reason")


def _engine_checks(connection: sa.Connection) -> Iterator[Finding]:
    if connection.dialect.name != "sqlite":
        return
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
        if line != "ok":
            yield _error(f"SQLite says: {line}")
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield _error(f"a row of {row[0]} refers to a missing row of {row[2]}")


def _episodes_without_gaps(connection: sa.Connection) -> Iterator[Finding]:
    table = tables.EpisodeRow
    count, last = sa.func.count(), sa.func.max(table.episode_index)
    rows = connection.execute(
        sa.select(table.run_id, table.env_index, count.label("count"), last.label("last"))
        .where(table.imported.is_(False))
        .group_by(table.run_id, table.env_index)
        .having(count != last + 1)
        .order_by(table.run_id, table.env_index)
    )
    for row in rows:
        yield _error(
            f"run {row.run_id}, environment {row.env_index}: {row.count} episodes up to number "
            f"{row.last}; expected {row.last + 1}: {row.last + 1 - row.count} are missing or still "
            "in a journal"
        )


def _evaluations(connection: sa.Connection) -> Iterator[Finding]:
    table, episode = tables.EvaluationRow, tables.EvaluationEpisodeRow
    played = sa.select(sa.func.count()).where(episode.evaluation_id == table.id).scalar_subquery()
    for row in connection.execute(
        sa.select(table.id, table.planned_units, table.status, played.label("played"))
    ):
        if row.played > row.planned_units:
            yield _error(
                f"evaluation {row.id} has {row.played} units; at most {row.planned_units} planned"
            )
        if row.status == EvaluationStatus.FINISHED and row.played == 0:
            yield _error(f"evaluation {row.id} is finished without a single unit")
        if row.status == EvaluationStatus.RUNNING and row.played < row.planned_units:
            yield Finding(
                severity="notice",
                what=f"evaluation {row.id} has {row.played} of {row.planned_units} units; "
                "the same command resumes it",
            )


def _recomputed_scores(store: ExperimentStore) -> Iterator[Finding]:
    for evaluation in store.evaluations.list():
        try:
            store.evaluations.records(evaluation.id)
        except MarioError as error:
            yield _error(f"evaluation {evaluation.id}: {error}")


def _verdicts(connection: sa.Connection) -> Iterator[Finding]:
    table, episode = tables.VerdictRow, tables.EvaluationEpisodeRow

    def units(evaluation: sa.ColumnElement[str]) -> sa.ScalarSelect[int]:
        return (
            sa.select(sa.func.count())
            .where(episode.evaluation_id == evaluation)
            .correlate(tables.VerdictRow)
            .scalar_subquery()
        )

    for row in connection.execute(
        sa.select(
            table.id,
            units(table.__table__.c.challenger_evaluation_id).label("challenger"),
            units(table.__table__.c.champion_evaluation_id).label("champion"),
        )
    ):
        if not row.challenger or not row.champion:
            yield _error(
                f"verdict {row.id} rests on {row.challenger} and {row.champion} units; expected "
                "units of both policies"
            )


def _ledger(connection: sa.Connection) -> Iterator[Finding]:
    table, version = tables.PromotionRow, tables.RegisteredVersionRow
    before: dict[str, tuple[int, int]] = {}
    for row in connection.execute(
        sa.select(table, version.state.label("state"))
        .join(
            version,
            (version.model == table.model) & (version.version == table.version),
            isouter=True,
        )
        .order_by(table.model, table.sequence)
    ):
        expected = before.get(row.model, (0, 0))
        if (row.sequence, row.previous_version or 0) != (expected[0] + 1, expected[1]):
            yield _error(f"the ledger of {row.model} is broken at promotion {row.sequence}")
        if row.state != VersionState.COMPLETE:
            yield _error(
                f"promotion {row.sequence} of {row.model} names v{row.version}, which is "
                f"{row.state or 'not registered'}"
            )
        before[row.model] = (row.sequence, row.version)


def _alpha(connection: sa.Connection) -> Iterator[Finding]:
    table = tables.AlphaEntryRow
    wealth: dict[str, tuple[int, float]] = {}
    for row in connection.execute(sa.select(table).order_by(table.model, table.sequence)):
        sequence, left = wealth.get(row.model, (0, 0.0))
        sign = -1.0 if row.kind == AlphaKind.SPEND else 1.0
        fits = (
            row.sequence == sequence + 1
            and abs(row.wealth_before - left) < 1e-9
            and abs(max(left + sign * row.amount, 0.0) - row.wealth_after) < 1e-9
        )
        if not fits:
            yield _error(
                f"the alpha account of {row.model} does not add up at entry {row.sequence}"
            )
        wealth[row.model] = (row.sequence, row.wealth_after)


def _registrations(connection: sa.Connection) -> Iterator[Finding]:
    table = tables.RegisteredVersionRow
    for row in connection.execute(
        sa.select(table.model, table.id, table.state).where(table.state == VersionState.PENDING)
    ):
        yield Finding(
            severity="notice",
            what=f"registration {row.id} of {row.model} is pending: registering again finishes it, "
            "mario registry reconcile marks it broken",
        )
