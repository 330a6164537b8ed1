"""The database tables; constraints in the database enforce the store's invariants.

Keys are natural, so that writing a row again is harmless and no row exists twice. The tables
``verdicts``, ``promotions`` and ``alpha_entries`` are append-only, by triggers in the migrations. A
change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from mario.config.run_states import CheckpointKind, HealthState, RunStatus
from mario.evaluation.decision import GateDecision
from mario.evaluation.seeds import SeedFamily
from mario.store.types import StrEnumType, UInt64, UtcDateTime, json_type
from mario.store.vocabulary import AlphaKind, EvaluationStatus, PromotionReason, VersionState

STORED_RUN_STATUSES = tuple(status for status in RunStatus if status.stored is status)
#: The 13 values of the game's state at an episode's end.
GAME_VALUES = (
    "x_px",
    "y_px",
    "score",
    "coins",
    "time_left",
    "life",
    "status",
    "world",
    "stage",
    "area",
    "flag",
    "dying",
    "player_state",
)


def _one_of(column: str, members: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(member.value) for member in members)})"


class Base(DeclarativeBase):
    """Base of every table; the naming convention lets migrations refer to constraints."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelRow(Base):
    """A registered model (``mario-<task>``); a promotion locks its row."""

    __tablename__ = "models"
    name: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class RunRow(Base):
    """One training run, with all its attempts."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(_one_of("status", STORED_RUN_STATUSES), name="status"),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("parent_run_id IS NULL OR parent_run_id <> id", name="parent"),
        Index(None, "task", "started_at"),
    )
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(256))
    task: Mapped[str] = mapped_column(sa.String(128))
    algorithm: Mapped[str] = mapped_column(sa.String(64))
    config: Mapped[dict[str, Any]] = mapped_column(json_type())
    config_hash: Mapped[str] = mapped_column(sa.String(64), index=True)
    git_commit: Mapped[str | None] = mapped_column(sa.String(64))
    git_diff: Mapped[str | None] = mapped_column(sa.Text)
    library_versions: Mapped[dict[str, Any]] = mapped_column(json_type())
    hardware: Mapped[dict[str, Any]] = mapped_column(json_type())
    status: Mapped[RunStatus] = mapped_column(StrEnumType(RunStatus, 16))
    status_reason: Mapped[str | None] = mapped_column(sa.Text)
    parent_run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    mlflow_run_id: Mapped[str | None] = mapped_column(sa.String(64))
    imported: Mapped[bool] = mapped_column(sa.Boolean)
    extra: Mapped[dict[str, Any] | None] = mapped_column(json_type())
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RunAttemptRow(Base):
    """One attempt at a run: the first start is attempt 1, each resumption adds one."""

    __tablename__ = "run_attempts"
    __table_args__ = (
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint(_one_of("status", STORED_RUN_STATUSES), name="status"),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended"),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    host: Mapped[str] = mapped_column(sa.String(256))
    pid: Mapped[int] = mapped_column(sa.BigInteger)
    status: Mapped[RunStatus] = mapped_column(StrEnumType(RunStatus, 16))
    start_steps: Mapped[int] = mapped_column(sa.BigInteger)
    end_steps: Mapped[int | None] = mapped_column(sa.BigInteger)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)


class HyperparameterRow(Base):
    """One value of a run's configuration, by its dotted name, for queries across runs."""

    __tablename__ = "hyperparameters"
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(256), primary_key=True)
    value: Mapped[str] = mapped_column(sa.Text)


class SeedReservationRow(Base):
    """A seed reserved for a run before its start, so that two runs never train with the same seed.

    The run need not exist yet. If it is never started, its seed stays unused.
    """

    __tablename__ = "seed_reservations"
    __table_args__ = (UniqueConstraint("task", "seed"),)
    run_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    task: Mapped[str] = mapped_column(sa.String(128))
    seed: Mapped[int] = mapped_column(UInt64)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class EpisodeRow(Base):
    """One finished training episode."""

    __tablename__ = "episodes"
    __table_args__ = (
        CheckConstraint("env_index >= 0 AND episode_index >= 0", name="index"),
        CheckConstraint("length_steps >= 0 AND total_steps >= 0", name="steps"),
        CheckConstraint(
            "imported OR (" + " AND ".join(f"{name} IS NOT NULL" for name in GAME_VALUES) + ")",
            name="game_values",
        ),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    env_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    episode_index: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column()
    imported: Mapped[bool] = mapped_column(sa.Boolean)
    seed: Mapped[int | None] = mapped_column(UInt64)
    level: Mapped[str | None] = mapped_column(sa.String(8))
    total_steps: Mapped[int] = mapped_column(sa.BigInteger)
    length_steps: Mapped[int] = mapped_column(sa.BigInteger)
    shaped_return: Mapped[float] = mapped_column(sa.Double)
    furthest_x_px: Mapped[int | None] = mapped_column()
    end_reason: Mapped[str] = mapped_column(sa.String(32))
    x_px: Mapped[int | None] = mapped_column()
    y_px: Mapped[int | None] = mapped_column()
    score: Mapped[int | None] = mapped_column()
    coins: Mapped[int | None] = mapped_column()
    time_left: Mapped[int | None] = mapped_column()
    life: Mapped[int | None] = mapped_column()
    status: Mapped[int | None] = mapped_column()
    world: Mapped[int | None] = mapped_column()
    stage: Mapped[int | None] = mapped_column()
    area: Mapped[int | None] = mapped_column()
    flag: Mapped[bool | None] = mapped_column(sa.Boolean)
    dying: Mapped[bool | None] = mapped_column(sa.Boolean)
    player_state: Mapped[int | None] = mapped_column()
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    extra: Mapped[dict[str, Any] | None] = mapped_column(json_type())


class HealthSampleRow(Base):
    """The collapse detector's signals at one update."""

    __tablename__ = "health_samples"
    __table_args__ = (CheckConstraint(_one_of("state", HealthState), name="state"),)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    update_index: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column()
    total_steps: Mapped[int] = mapped_column(sa.BigInteger)
    state: Mapped[HealthState] = mapped_column(StrEnumType(HealthState, 16))
    signals: Mapped[dict[str, Any]] = mapped_column(json_type())
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class HealthChangeRow(Base):
    """A change of the collapse detector's state, with its reasons."""

    __tablename__ = "health_changes"
    __table_args__ = (
        CheckConstraint(_one_of("from_state", HealthState), name="from_state"),
        CheckConstraint(_one_of("to_state", HealthState), name="to_state"),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    update_index: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column()
    total_steps: Mapped[int] = mapped_column(sa.BigInteger)
    from_state: Mapped[HealthState] = mapped_column(StrEnumType(HealthState, 16))
    to_state: Mapped[HealthState] = mapped_column(StrEnumType(HealthState, 16))
    reasons: Mapped[list[str]] = mapped_column(json_type())
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class CheckpointRow(Base):
    """A completely written checkpoint."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        CheckConstraint(_one_of("kind", CheckpointKind), name="kind"),
        CheckConstraint("length(sha256) = 64", name="sha256"),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    kind: Mapped[CheckpointKind] = mapped_column(StrEnumType(CheckpointKind, 8), primary_key=True)
    total_steps: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column()
    path: Mapped[str] = mapped_column(sa.Text)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class SelectionRow(Base):
    """An evaluation on selection seeds during training, which selects the best checkpoint."""

    __tablename__ = "selections"
    __table_args__ = (
        # Not "score <= best_score": on a full disk a better policy is not kept as the best.
        CheckConstraint("NOT is_best OR score = best_score", name="is_best"),
    )
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    total_steps: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column()
    score: Mapped[float] = mapped_column(sa.Double)
    best_score: Mapped[float] = mapped_column(sa.Double)
    is_best: Mapped[bool] = mapped_column(sa.Boolean)
    details: Mapped[dict[str, Any]] = mapped_column(json_type())
    seconds: Mapped[float] = mapped_column(sa.Double)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class EvaluationRow(Base):
    """One policy's evaluation on one fixed set of units; the same key resumes it."""

    __tablename__ = "evaluations"
    __table_args__ = (
        CheckConstraint(_one_of("status", EvaluationStatus), name="status"),
        CheckConstraint(_one_of("seed_family", SeedFamily), name="seed_family"),
        CheckConstraint("planned_units >= 1", name="planned_units"),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended"),
        UniqueConstraint("policy_digest", "protocol", "seed_family", "seed_source", "level_set"),
        # Target of the verdicts' foreign keys: a verdict names the evaluated policies.
        UniqueConstraint("id", "policy_digest"),
    )
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    policy_digest: Mapped[str] = mapped_column(sa.String(128))
    policy_label: Mapped[str] = mapped_column(sa.String(256))
    protocol: Mapped[str] = mapped_column(sa.String(128))
    seed_family: Mapped[SeedFamily] = mapped_column(StrEnumType(SeedFamily, 16))
    seed_source: Mapped[str] = mapped_column(sa.String(128))
    level_set: Mapped[str] = mapped_column(sa.String(512))
    planned_units: Mapped[int] = mapped_column()
    status: Mapped[EvaluationStatus] = mapped_column(StrEnumType(EvaluationStatus, 16))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EvaluationEpisodeRow(Base):
    """One finished unit of an evaluation, with the columns of ``EpisodeRecord``.

    ``episode_score`` follows from the other columns; it is stored for plain SQL, and recomputed on
    reading.
    """

    __tablename__ = "evaluation_episodes"
    __table_args__ = (
        CheckConstraint("cleared = (end_reason = 'flag')", name="cleared"),
        CheckConstraint("episode_score >= 0 AND episode_score <= 1", name="episode_score"),
    )
    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    level: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    seed: Mapped[int] = mapped_column(UInt64, primary_key=True, autoincrement=False)
    cleared: Mapped[bool] = mapped_column(sa.Boolean)
    furthest_px: Mapped[int] = mapped_column()
    level_length_px: Mapped[int] = mapped_column()
    score_points: Mapped[int] = mapped_column()
    coins: Mapped[int] = mapped_column()
    time_left: Mapped[int] = mapped_column()
    time_start: Mapped[int] = mapped_column()
    status: Mapped[int] = mapped_column()
    steps: Mapped[int] = mapped_column()
    shaped_return: Mapped[float] = mapped_column(sa.Double)
    action_counts: Mapped[list[int]] = mapped_column(json_type())
    trajectory_hash: Mapped[str] = mapped_column(sa.String(128))
    end_reason: Mapped[str] = mapped_column(sa.String(32))
    protocol: Mapped[str] = mapped_column(sa.String(64))
    record_version: Mapped[int] = mapped_column()
    episode_score: Mapped[float] = mapped_column(sa.Double)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class VerdictRow(Base):
    """The gate's verdict with every number; append-only."""

    __tablename__ = "verdicts"
    __table_args__ = (
        CheckConstraint(_one_of("decision", GateDecision), name="decision"),
        # A verdict needs a stored evaluation of each of its policies.
        ForeignKeyConstraint(
            ["challenger_evaluation_id", "challenger_digest"],
            ["evaluations.id", "evaluations.policy_digest"],
        ),
        ForeignKeyConstraint(
            ["champion_evaluation_id", "champion_digest"],
            ["evaluations.id", "evaluations.policy_digest"],
        ),
        UniqueConstraint("id", "model", "challenger_digest", "decision"),
        Index(None, "model", "created_at"),
    )
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    challenger_version: Mapped[int | None] = mapped_column()
    challenger_digest: Mapped[str] = mapped_column(sa.String(128))
    challenger_evaluation_id: Mapped[str] = mapped_column(sa.String(64))
    champion_version: Mapped[int | None] = mapped_column()
    champion_digest: Mapped[str] = mapped_column(sa.String(128))
    champion_evaluation_id: Mapped[str] = mapped_column(sa.String(64))
    gate: Mapped[str] = mapped_column(sa.String(128))
    decision: Mapped[GateDecision] = mapped_column(StrEnumType(GateDecision, 16))
    detail: Mapped[dict[str, Any]] = mapped_column(json_type())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class RegisteredVersionRow(Base):
    """A registered version: ``pending`` before its upload, ``complete`` afterwards."""

    __tablename__ = "registered_versions"
    __table_args__ = (
        CheckConstraint(_one_of("state", VersionState), name="state"),
        CheckConstraint("state <> 'complete' OR version IS NOT NULL", name="complete"),
        CheckConstraint("state <> 'pending' OR version IS NULL", name="pending"),
        CheckConstraint("length(digest) = 64", name="digest"),
        UniqueConstraint("model", "registration_key"),
        UniqueConstraint("model", "version", "digest"),
        UniqueConstraint("model", "version"),
    )
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    registration_key: Mapped[str] = mapped_column(sa.String(256))
    version: Mapped[int | None] = mapped_column()
    digest: Mapped[str] = mapped_column(sa.String(64))
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    mlflow_run_id: Mapped[str | None] = mapped_column(sa.String(64))
    source: Mapped[str | None] = mapped_column(sa.Text)
    state: Mapped[VersionState] = mapped_column(StrEnumType(VersionState, 16))
    host: Mapped[str | None] = mapped_column(sa.String(256))
    pid: Mapped[int | None] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class PromotionRow(Base):
    """One entry of the promotion ledger; a model's last entry names its champion; append-only.

    Each row refers to the previous one by sequence and version, so that a model has exactly one
    chain: two promoters that read the same champion write the same ``sequence``, and the database
    refuses the second.
    """

    __tablename__ = "promotions"
    __table_args__ = (
        CheckConstraint(_one_of("reason", PromotionReason), name="reason"),
        CheckConstraint("(reason = 'first') = (sequence = 1)", name="first"),
        CheckConstraint("reason <> 'gate' OR verdict_id IS NOT NULL", name="gate_has_verdict"),
        CheckConstraint("reason <> 'rollback' OR verdict_id IS NULL", name="rollback_has_none"),
        CheckConstraint(
            "(verdict_id IS NULL) = (verdict_decision IS NULL)", name="verdict_complete"
        ),
        CheckConstraint(
            "verdict_decision IS NULL OR verdict_decision = 'promote'", name="verdict_promotes"
        ),
        CheckConstraint(
            "(sequence = 1 AND previous_sequence IS NULL AND previous_version IS NULL) OR "
            "(sequence > 1 AND previous_sequence = sequence - 1 AND previous_version IS NOT NULL)",
            name="chain",
        ),
        CheckConstraint(
            "previous_version IS NULL OR previous_version <> version", name="changes_champion"
        ),
        UniqueConstraint("model", "sequence", "version"),
        UniqueConstraint("verdict_id"),
        ForeignKeyConstraint(
            ["model", "previous_sequence", "previous_version"],
            ["promotions.model", "promotions.sequence", "promotions.version"],
        ),
        ForeignKeyConstraint(
            ["model", "version", "digest"],
            [
                "registered_versions.model",
                "registered_versions.version",
                "registered_versions.digest",
            ],
        ),
        # The verdict must say ``promote`` about exactly this policy.
        ForeignKeyConstraint(
            ["verdict_id", "model", "digest", "verdict_decision"],
            ["verdicts.id", "verdicts.model", "verdicts.challenger_digest", "verdicts.decision"],
        ),
    )
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column()
    digest: Mapped[str] = mapped_column(sa.String(64))
    previous_sequence: Mapped[int | None] = mapped_column()
    previous_version: Mapped[int | None] = mapped_column()
    reason: Mapped[PromotionReason] = mapped_column(StrEnumType(PromotionReason, 16))
    verdict_id: Mapped[str | None] = mapped_column(sa.String(64))
    verdict_decision: Mapped[GateDecision | None] = mapped_column(StrEnumType(GateDecision, 16))
    promoted_by: Mapped[str] = mapped_column(sa.String(256))
    note: Mapped[str | None] = mapped_column(sa.Text)
    alpha_wealth_before: Mapped[float | None] = mapped_column(sa.Double)
    alpha_wealth_after: Mapped[float | None] = mapped_column(sa.Double)
    promoted_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AlphaEntryRow(Base):
    """One movement of a model's alpha account; append-only, one chain like the ledger."""

    __tablename__ = "alpha_entries"
    __table_args__ = (
        CheckConstraint(_one_of("kind", AlphaKind), name="kind"),
        CheckConstraint("(kind = 'grant') = (sequence = 1)", name="grant_first"),
        CheckConstraint("wealth_before >= 0 AND wealth_after >= 0", name="wealth"),
        CheckConstraint("amount >= 0", name="amount"),
        CheckConstraint(
            "(kind = 'spend' AND wealth_after <= wealth_before) OR "
            "(kind <> 'spend' AND wealth_after >= wealth_before)",
            name="direction",
        ),
        CheckConstraint("kind <> 'earn' OR verdict_id IS NOT NULL", name="earn_has_verdict"),
        # A test is paid once and refunds once, however often it is resumed.
        UniqueConstraint("model", "kind", "test_key"),
    )
    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[AlphaKind] = mapped_column(StrEnumType(AlphaKind, 8))
    test_key: Mapped[str] = mapped_column(sa.String(256))
    amount: Mapped[float] = mapped_column(sa.Double)
    wealth_before: Mapped[float] = mapped_column(sa.Double)
    wealth_after: Mapped[float] = mapped_column(sa.Double)
    verdict_id: Mapped[str | None] = mapped_column(ForeignKey("verdicts.id"))
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ServingComparisonRow(Base):
    """One comparison of a challenger with the champion in serving, over one period of time."""

    __tablename__ = "serving_comparisons"
    __table_args__ = (
        CheckConstraint("agreed_observations <= shadow_observations", name="agreed"),
        sa.Index("ix_serving_comparisons_challenger", "model", "challenger_digest"),
    )
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(sa.String(128))
    champion_version: Mapped[str] = mapped_column(sa.String(128))
    champion_digest: Mapped[str] = mapped_column(sa.String(64))
    challenger_version: Mapped[str] = mapped_column(sa.String(128))
    challenger_digest: Mapped[str] = mapped_column(sa.String(64))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    shadow_observations: Mapped[int] = mapped_column(sa.BigInteger)
    agreed_observations: Mapped[int] = mapped_column(sa.BigInteger)
    dropped_observations: Mapped[int] = mapped_column(sa.BigInteger)
    champion_decisions: Mapped[int] = mapped_column(sa.BigInteger)
    challenger_decisions: Mapped[int] = mapped_column(sa.BigInteger)
    champion_seconds: Mapped[float] = mapped_column(sa.Double)
    champion_observations: Mapped[int] = mapped_column(sa.BigInteger)
    challenger_seconds: Mapped[float] = mapped_column(sa.Double)
    challenger_observations: Mapped[int] = mapped_column(sa.BigInteger)
