"""The first schema: runs, episodes, health, checkpoints, evaluations, verdicts, the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import UInt64, UtcDateTime, json_type

revision = "0001"
down_revision = None

_APPEND_ONLY = ("verdicts", "promotions", "alpha_entries")
_TABLES = (
    "models",
    "runs",
    "checkpoints",
    "episodes",
    "evaluations",
    "health_changes",
    "health_samples",
    "hyperparameters",
    "registered_versions",
    "run_attempts",
    "evaluation_episodes",
    "verdicts",
    "alpha_entries",
    "promotions",
)


def upgrade() -> None:
    """Create every table, then forbid changing what is append-only."""
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("task", sa.String(length=128), nullable=False),
        sa.Column("algorithm", sa.String(length=64), nullable=False),
        sa.Column("config", json_type(), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("git_commit", sa.String(length=64), nullable=True),
        sa.Column("git_diff", sa.Text(), nullable=True),
        sa.Column("library_versions", json_type(), nullable=False),
        sa.Column("hardware", json_type(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("parent_run_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("imported", sa.Boolean(), nullable=False),
        sa.Column("extra", json_type(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("(status = 'running') = (ended_at IS NULL)", name=op.f("ck_runs_ended")),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'interrupted', 'collapsed', 'failed', 'killed')",
            name=op.f("ck_runs_status"),
        ),
        sa.CheckConstraint(
            "parent_run_id IS NULL OR parent_run_id <> id", name=op.f("ck_runs_parent")
        ),
        sa.ForeignKeyConstraint(["parent_run_id"], ["runs.id"], name=op.f("fk_runs_parent_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_config_hash"), "runs", ["config_hash"], unique=False)
    op.create_index(op.f("ix_runs_task_started_at"), "runs", ["task", "started_at"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("kind IN ('last', 'best')", name=op.f("ck_checkpoints_kind")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_checkpoints_sha256")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id")),
        sa.PrimaryKeyConstraint("run_id", "kind", "total_steps", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "episodes",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("env_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("episode_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("imported", sa.Boolean(), nullable=False),
        sa.Column("seed", UInt64(), nullable=True),
        sa.Column("level", sa.String(length=8), nullable=True),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("length_steps", sa.BigInteger(), nullable=False),
        sa.Column("shaped_return", sa.Double(), nullable=False),
        sa.Column("furthest_x_px", sa.Integer(), nullable=True),
        sa.Column("end_reason", sa.String(length=32), nullable=False),
        sa.Column("x_px", sa.Integer(), nullable=True),
        sa.Column("y_px", sa.Integer(), nullable=True),
        sa.Column("score", sa.Integer(), nullable=True),
        sa.Column("coins", sa.Integer(), nullable=True),
        sa.Column("time_left", sa.Integer(), nullable=True),
        sa.Column("life", sa.Integer(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("world", sa.Integer(), nullable=True),
        sa.Column("stage", sa.Integer(), nullable=True),
        sa.Column("area", sa.Integer(), nullable=True),
        sa.Column("flag", sa.Boolean(), nullable=True),
        sa.Column("dying", sa.Boolean(), nullable=True),
        sa.Column("player_state", sa.Integer(), nullable=True),
        sa.Column("ended_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("env_index >= 0 AND episode_index >= 0", name=op.f("ck_episodes_index")),
        sa.CheckConstraint(
            "imported OR (x_px IS NOT NULL AND y_px IS NOT NULL AND score IS "
            "NOT NULL AND coins IS NOT NULL AND time_left IS NOT NULL AND life "
            "IS NOT NULL AND status IS NOT NULL AND world IS NOT NULL AND "
            "stage IS NOT NULL AND area IS NOT NULL AND flag IS NOT NULL AND "
            "dying IS NOT NULL AND player_state IS NOT NULL)",
            name=op.f("ck_episodes_game_values"),
        ),
        sa.CheckConstraint(
            "length_steps >= 0 AND total_steps >= 0", name=op.f("ck_episodes_steps")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_episodes_run_id")),
        sa.PrimaryKeyConstraint("run_id", "env_index", "episode_index", name=op.f("pk_episodes")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("policy_digest", sa.String(length=128), nullable=False),
        sa.Column("policy_label", sa.String(length=256), nullable=False),
        sa.Column("protocol", sa.String(length=128), nullable=False),
        sa.Column("seed_family", sa.String(length=16), nullable=False),
        sa.Column("seed_source", sa.String(length=128), nullable=False),
        sa.Column("level_set", sa.String(length=512), nullable=False),
        sa.Column("planned_units", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "(status = 'running') = (ended_at IS NULL)", name=op.f("ck_evaluations_ended")
        ),
        sa.CheckConstraint(
            "seed_family IN ('selection', 'screening', 'confirmation')",
            name=op.f("ck_evaluations_seed_family"),
        ),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'interrupted', 'failed')",
            name=op.f("ck_evaluations_status"),
        ),
        sa.CheckConstraint("planned_units >= 1", name=op.f("ck_evaluations_planned_units")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_evaluations_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("id", "policy_digest", name=op.f("uq_evaluations_id_policy_digest")),
        sa.UniqueConstraint(
            "policy_digest",
            "protocol",
            "seed_family",
            "seed_source",
            "level_set",
            name=op.f("uq_evaluations_policy_digest_protocol_seed_family_seed_source_level_set"),
        ),
    )
    op.create_table(
        "health_changes",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("update_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("from_state", sa.String(length=16), nullable=False),
        sa.Column("to_state", sa.String(length=16), nullable=False),
        sa.Column("reasons", json_type(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "from_state IN ('warming', 'healthy', 'warning', 'collapsed', 'diverged')",
            name=op.f("ck_health_changes_from_state"),
        ),
        sa.CheckConstraint(
            "to_state IN ('warming', 'healthy', 'warning', 'collapsed', 'diverged')",
            name=op.f("ck_health_changes_to_state"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_health_changes_run_id")),
        sa.PrimaryKeyConstraint("run_id", "update_index", name=op.f("pk_health_changes")),
    )
    op.create_table(
        "health_samples",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("update_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("signals", json_type(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "state IN ('warming', 'healthy', 'warning', 'collapsed', 'diverged')",
            name=op.f("ck_health_samples_state"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_health_samples_run_id")),
        sa.PrimaryKeyConstraint("run_id", "update_index", name=op.f("pk_health_samples")),
    )
    op.create_table(
        "hyperparameters",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_hyperparameters_run_id")),
        sa.PrimaryKeyConstraint("run_id", "name", name=op.f("pk_hyperparameters")),
    )
    op.create_table(
        "registered_versions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("registration_key", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("completed_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "state <> 'complete' OR version IS NOT NULL",
            name=op.f("ck_registered_versions_complete"),
        ),
        sa.CheckConstraint(
            "state <> 'pending' OR version IS NULL", name=op.f("ck_registered_versions_pending")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'complete', 'broken')", name=op.f("ck_registered_versions_state")
        ),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_registered_versions_digest")),
        sa.ForeignKeyConstraint(
            ["model"], ["models.name"], name=op.f("fk_registered_versions_model")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_registered_versions_run_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registered_versions")),
        sa.UniqueConstraint(
            "model", "registration_key", name=op.f("uq_registered_versions_model_registration_key")
        ),
        sa.UniqueConstraint(
            "model", "version", "digest", name=op.f("uq_registered_versions_model_version_digest")
        ),
        sa.UniqueConstraint("model", "version", name=op.f("uq_registered_versions_model_version")),
    )
    op.create_table(
        "run_attempts",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("host", sa.String(length=256), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("start_steps", sa.BigInteger(), nullable=False),
        sa.Column("end_steps", sa.BigInteger(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=True),
        sa.Column("heartbeat_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "(status = 'running') = (ended_at IS NULL)", name=op.f("ck_run_attempts_ended")
        ),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'interrupted', 'collapsed', 'failed', 'killed')",
            name=op.f("ck_run_attempts_status"),
        ),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_run_attempts_attempt")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_attempts_run_id")),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_run_attempts")),
    )
    op.create_table(
        "evaluation_episodes",
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=8), nullable=False),
        sa.Column("seed", UInt64(), autoincrement=False, nullable=False),
        sa.Column("cleared", sa.Boolean(), nullable=False),
        sa.Column("furthest_px", sa.Integer(), nullable=False),
        sa.Column("level_length_px", sa.Integer(), nullable=False),
        sa.Column("score_points", sa.Integer(), nullable=False),
        sa.Column("coins", sa.Integer(), nullable=False),
        sa.Column("time_left", sa.Integer(), nullable=False),
        sa.Column("time_start", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("shaped_return", sa.Double(), nullable=False),
        sa.Column("action_counts", json_type(), nullable=False),
        sa.Column("trajectory_hash", sa.String(length=128), nullable=False),
        sa.Column("end_reason", sa.String(length=32), nullable=False),
        sa.Column("protocol", sa.String(length=64), nullable=False),
        sa.Column("record_version", sa.Integer(), nullable=False),
        sa.Column("episode_score", sa.Double(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "cleared = (end_reason = 'flag')", name=op.f("ck_evaluation_episodes_cleared")
        ),
        sa.CheckConstraint(
            "episode_score >= 0 AND episode_score <= 1",
            name=op.f("ck_evaluation_episodes_episode_score"),
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_evaluation_episodes_evaluation_id")
        ),
        sa.PrimaryKeyConstraint(
            "evaluation_id", "level", "seed", name=op.f("pk_evaluation_episodes")
        ),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("challenger_version", sa.Integer(), nullable=True),
        sa.Column("challenger_digest", sa.String(length=128), nullable=False),
        sa.Column("challenger_evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("champion_version", sa.Integer(), nullable=True),
        sa.Column("champion_digest", sa.String(length=128), nullable=False),
        sa.Column("champion_evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("gate", sa.String(length=128), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("detail", json_type(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "decision IN ('promote', 'reject', 'inconclusive')", name=op.f("ck_verdicts_decision")
        ),
        sa.ForeignKeyConstraint(
            ["challenger_evaluation_id", "challenger_digest"],
            ["evaluations.id", "evaluations.policy_digest"],
            name=op.f("fk_verdicts_challenger_evaluation_id_challenger_digest"),
        ),
        sa.ForeignKeyConstraint(
            ["champion_evaluation_id", "champion_digest"],
            ["evaluations.id", "evaluations.policy_digest"],
            name=op.f("fk_verdicts_champion_evaluation_id_champion_digest"),
        ),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_verdicts_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verdicts")),
        sa.UniqueConstraint(
            "id",
            "model",
            "challenger_digest",
            "decision",
            name=op.f("uq_verdicts_id_model_challenger_digest_decision"),
        ),
    )
    op.create_index(
        op.f("ix_verdicts_model_created_at"), "verdicts", ["model", "created_at"], unique=False
    )
    op.create_table(
        "alpha_entries",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("test_key", sa.String(length=256), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("wealth_before", sa.Double(), nullable=False),
        sa.Column("wealth_after", sa.Double(), nullable=False),
        sa.Column("verdict_id", sa.String(length=64), nullable=True),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "(kind = 'grant') = (sequence = 1)", name=op.f("ck_alpha_entries_grant_first")
        ),
        sa.CheckConstraint(
            "(kind = 'spend' AND wealth_after <= wealth_before) OR (kind <> "
            "'spend' AND wealth_after >= wealth_before)",
            name=op.f("ck_alpha_entries_direction"),
        ),
        sa.CheckConstraint(
            "kind <> 'earn' OR verdict_id IS NOT NULL",
            name=op.f("ck_alpha_entries_earn_has_verdict"),
        ),
        sa.CheckConstraint(
            "kind IN ('grant', 'spend', 'earn')", name=op.f("ck_alpha_entries_kind")
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_alpha_entries_amount")),
        sa.CheckConstraint(
            "wealth_before >= 0 AND wealth_after >= 0", name=op.f("ck_alpha_entries_wealth")
        ),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_alpha_entries_model")),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["verdicts.id"], name=op.f("fk_alpha_entries_verdict_id")
        ),
        sa.PrimaryKeyConstraint("model", "sequence", name=op.f("pk_alpha_entries")),
        sa.UniqueConstraint(
            "model", "kind", "test_key", name=op.f("uq_alpha_entries_model_kind_test_key")
        ),
    )
    op.create_table(
        "promotions",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("previous_sequence", sa.Integer(), nullable=True),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("verdict_id", sa.String(length=64), nullable=True),
        sa.Column("verdict_decision", sa.String(length=16), nullable=True),
        sa.Column("promoted_by", sa.String(length=256), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("alpha_wealth_before", sa.Double(), nullable=True),
        sa.Column("alpha_wealth_after", sa.Double(), nullable=True),
        sa.Column("promoted_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("(reason = 'first') = (sequence = 1)", name=op.f("ck_promotions_first")),
        sa.CheckConstraint(
            "reason <> 'gate' OR verdict_id IS NOT NULL",
            name=op.f("ck_promotions_gate_has_verdict"),
        ),
        sa.CheckConstraint(
            "reason <> 'rollback' OR verdict_id IS NULL",
            name=op.f("ck_promotions_rollback_has_none"),
        ),
        sa.CheckConstraint(
            "reason IN ('gate', 'first', 'rollback')", name=op.f("ck_promotions_reason")
        ),
        sa.CheckConstraint(
            "verdict_decision IS NULL OR verdict_decision = 'promote'",
            name=op.f("ck_promotions_verdict_promotes"),
        ),
        sa.CheckConstraint(
            "(sequence = 1 AND previous_sequence IS NULL AND previous_version "
            "IS NULL) OR (sequence > 1 AND previous_sequence = sequence - 1 "
            "AND previous_version IS NOT NULL)",
            name=op.f("ck_promotions_chain"),
        ),
        sa.CheckConstraint(
            "(verdict_id IS NULL) = (verdict_decision IS NULL)",
            name=op.f("ck_promotions_verdict_complete"),
        ),
        sa.CheckConstraint(
            "previous_version IS NULL OR previous_version <> version",
            name=op.f("ck_promotions_changes_champion"),
        ),
        sa.ForeignKeyConstraint(
            ["model", "previous_sequence", "previous_version"],
            ["promotions.model", "promotions.sequence", "promotions.version"],
            name=op.f("fk_promotions_model_previous_sequence_previous_version"),
        ),
        sa.ForeignKeyConstraint(
            ["model", "version", "digest"],
            [
                "registered_versions.model",
                "registered_versions.version",
                "registered_versions.digest",
            ],
            name=op.f("fk_promotions_model_version_digest"),
        ),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_promotions_model")),
        sa.ForeignKeyConstraint(
            ["verdict_id", "model", "digest", "verdict_decision"],
            ["verdicts.id", "verdicts.model", "verdicts.challenger_digest", "verdicts.decision"],
            name=op.f("fk_promotions_verdict_id_model_digest_verdict_decision"),
        ),
        sa.PrimaryKeyConstraint("model", "sequence", name=op.f("pk_promotions")),
        sa.UniqueConstraint(
            "model", "sequence", "version", name=op.f("uq_promotions_model_sequence_version")
        ),
        sa.UniqueConstraint("verdict_id", name=op.f("uq_promotions_verdict_id")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _forbid_changes_postgresql()
    else:
        _forbid_changes_sqlite()


def downgrade() -> None:
    """Remove every table, and all data with them."""
    for table in reversed(_TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION mario_append_only()")


def _forbid_changes_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION mario_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME "
        "USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION mario_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION mario_append_only()"
        )


def _forbid_changes_sqlite() -> None:
    for table in _APPEND_ONLY:
        for event in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event} BEFORE {event.upper()} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
