"""What goes into the store and comes out: frozen values, no database objects among them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mario.config.run_states import CheckpointKind, HealthState, RunStatus
from mario.evaluation.seeds import SeedFamily
from mario.evaluation.verdict import GateDecision
from mario.store.vocabulary import AlphaKind, EvaluationStatus, PromotionReason, VersionState


def utc_now() -> datetime:
    """The present moment, in UTC, with its zone."""
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """A new identifier that sorts by time: ``run-20261123T101500-1f2e3d4c``."""
    return f"{prefix}-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run about to start.

    Attributes:
        name: what people call it, usually the config's name.
        task: the task trained for, such as ``1-1``.
        algorithm: ``ppo``, ``dqn``, ``bc``, …
        config: the whole configuration as JSON types.
        config_hash: its content hash.
        id: the run's identifier; made new unless given.
        git_commit: commit of the code, if known.
        git_diff: uncommitted changes, if any.
        library_versions: package name to version.
        hardware: processor, cores, memory, accelerator, …
        parent_run_id: the run this one goes on from (fine-tuning), not the resumed one.
        mlflow_run_id: the tracking run.
    """

    name: str
    task: str
    algorithm: str
    config: Mapping[str, Any]
    config_hash: str
    id: str = field(default_factory=lambda: new_id("run"))
    git_commit: str | None = None
    git_diff: str | None = None
    library_versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    parent_run_id: str | None = None
    mlflow_run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process's share of a run.

    Attributes:
        attempt: 1 for the first start, one more for each resume.
        host: machine it ran on.
        pid: its process there.
        status: ``running`` until it ends; ``killed`` when a later look found it dead.
        start_steps: environment steps done when it began.
        end_steps: environment steps done when it ended, if it could say so.
        started_at: when it began.
        ended_at: when it ended.
        heartbeat_at: when it last gave a sign of life.
    """

    attempt: int
    host: str
    pid: int
    status: RunStatus
    start_steps: int
    end_steps: int | None
    started_at: datetime
    ended_at: datetime | None
    heartbeat_at: datetime


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as stored, with its attempts in order (empty for imported runs)."""

    id: str
    name: str
    task: str
    algorithm: str
    config: Mapping[str, Any]
    config_hash: str
    git_commit: str | None
    git_diff: str | None
    library_versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    status: RunStatus
    status_reason: str | None
    parent_run_id: str | None
    mlflow_run_id: str | None
    imported: bool
    extra: Mapping[str, Any] | None
    started_at: datetime
    ended_at: datetime | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeEntry:
    """One finished training episode; (run_id, env_index, episode_index) is its identity.

    Attributes:
        run_id: its run.
        env_index: which of the N environments, 0 ≤ env_index.
        episode_index: count of episodes finished before in that environment, over all attempts.
        attempt: which attempt of the run wrote it; of two, the later attempt's row stays.
        seed: the episode's seed, 0 ≤ seed < 2**64.
        level: ``"1-1"`` … ``"8-4"``.
        total_steps: environment steps of the whole run when it ended.
        length_steps: its own length in steps.
        shaped_return: sum of the reward trained on, before any normalisation.
        furthest_x_px: greatest x reached.
        end_reason: ``flag``, ``death``, ``clock``, ``steps``, …
        x_px, y_px, score, coins, time_left, life, status, world, stage, area, flag, dying,
            player_state: the game's 13 values at the end.
        ended_at: when it ended.
    """

    run_id: str
    env_index: int
    episode_index: int
    attempt: int
    seed: int
    level: str
    total_steps: int
    length_steps: int
    shaped_return: float
    furthest_x_px: int
    end_reason: str
    x_px: int
    y_px: int
    score: int
    coins: int
    time_left: int
    life: int
    status: int
    world: int
    stage: int
    area: int
    flag: bool
    dying: bool
    player_state: int
    ended_at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthSampleEntry:
    """What the collapse detector saw at one update; ``signals`` may hold non-finite floats."""

    run_id: str
    update_index: int
    attempt: int
    total_steps: int
    state: HealthState
    signals: Mapping[str, Any]
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthChangeEntry:
    """A change of the collapse detector's state, with its reasons."""

    run_id: str
    update_index: int
    attempt: int
    total_steps: int
    from_state: HealthState
    to_state: HealthState
    reasons: tuple[str, ...]
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointEntry:
    """A checkpoint that was completely written; ``path`` relative to the runs folder or a URI."""

    run_id: str
    kind: CheckpointKind
    total_steps: int
    attempt: int
    path: str
    sha256: str
    size_bytes: int
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionEntry:
    """The policy's score on selection seeds after so many steps, and the best one until then."""

    run_id: str
    total_steps: int
    attempt: int
    score: float
    best_score: float
    is_best: bool
    details: Mapping[str, float]
    seconds: float
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptEnd:
    """The end of an attempt, and with it of the run unless it is resumed."""

    run_id: str
    attempt: int
    status: RunStatus
    end_steps: int | None
    reason: str | None = None
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """A sign of life of a running attempt."""

    run_id: str
    attempt: int
    total_steps: int
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStart:
    """Where an attempt really went on from: the steps of the checkpoint that was whole."""

    run_id: str
    attempt: int
    start_steps: int


TrainingEntry = (
    EpisodeEntry
    | HealthSampleEntry
    | HealthChangeEntry
    | CheckpointEntry
    | SelectionEntry
    | AttemptEnd
    | Heartbeat
    | AttemptStart
)


@dataclass(frozen=True, kw_only=True)
class EvaluationKey:
    """What makes two evaluations the same one, so that a broken-off one is gone on with.

    Attributes:
        policy_digest: SHA-256 of the artefact's ``policy.json``, or a name like ``random:SIMPLE``.
        protocol: ``mario-eval-v1``.
        seed_family: ``selection``, ``screening`` or ``confirmation``.
        seed_source: the key the seeds are derived from (for confirmation the test's, on both
            sides), may be empty.
        levels: the levels played, in the task's order.
    """

    policy_digest: str
    protocol: str
    seed_family: SeedFamily
    seed_source: str
    levels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation as stored; ``finished_units`` counts its episodes."""

    id: str
    key: EvaluationKey
    policy_label: str
    planned_units: int
    finished_units: int
    status: EvaluationStatus
    run_id: str | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class NewVerdict:
    """The gate's answer about to be stored.

    Attributes:
        model: ``mario-<task>``.
        challenger_digest, challenger_evaluation_id: what was evaluated, under which id.
        champion_digest, champion_evaluation_id: the same for the champion, or for the random
            policy when there is no champion yet.
        gate: version of the rule, ``mario-gate-v1``.
        decision: ``promote``, ``reject`` or ``inconclusive``.
        detail: the whole verdict as JSON types: rule, every number, every guard, every reason.
        challenger_version, champion_version: registry versions, where there are any.
        id: made new unless given.
    """

    model: str
    challenger_digest: str
    challenger_evaluation_id: str
    champion_digest: str
    champion_evaluation_id: str
    gate: str
    decision: GateDecision
    detail: Mapping[str, Any]
    challenger_version: int | None = None
    champion_version: int | None = None
    id: str = field(default_factory=lambda: new_id("verdict"))


@dataclass(frozen=True, kw_only=True)
class StoredVerdict(NewVerdict):
    """A verdict as stored."""

    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version as the store knows it; ``version`` is None while it is ``pending``.

    ``host`` and ``pid`` name the process that registers it, or that did last.
    """

    id: str
    model: str
    registration_key: str
    version: int | None
    digest: str
    run_id: str | None
    mlflow_run_id: str | None
    source: str | None
    state: VersionState
    host: str | None
    pid: int | None
    created_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One row of the ledger; the row with the greatest ``sequence`` names the champion."""

    model: str
    sequence: int
    version: int
    digest: str
    previous_version: int | None
    reason: PromotionReason
    verdict_id: str | None
    promoted_by: str
    note: str | None
    alpha_wealth_before: float | None
    alpha_wealth_after: float | None
    promoted_at: datetime


@dataclass(frozen=True, kw_only=True)
class AlphaEntry:
    """One movement of a model's alpha wealth.

    Attributes:
        kind: ``grant`` opens the account, ``spend`` pays for a test, ``earn`` fills it again by a
            promotion.
        test_key: what is paid for once, such as the digest of who plays whom under which rule; of
            an ``earn`` the verdict.
        amount: ≥ 0, always.
        wealth_before, wealth_after: the account around it, both ≥ 0.
    """

    model: str
    sequence: int
    kind: AlphaKind
    test_key: str
    amount: float
    wealth_before: float
    wealth_after: float
    verdict_id: str | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ServingComparison:
    """One stretch of serving in which two versions stood beside each other.

    Attributes:
        model: ``mario-<task>``.
        champion_version, champion_digest: the version that answered.
        challenger_version, challenger_digest: the one in the shadow or on the canary sessions.
        started_at, ended_at: the stretch.
        shadow_observations: observations both answered.
        agreed_observations: of these, where both would press the same buttons.
        dropped_observations: observations the shadow was too slow for.
        champion_decisions, challenger_decisions: decisions in sessions that each of them took.
        champion_seconds, challenger_seconds: time of inference calls, in s.
        champion_observations, challenger_observations: observations in those calls.
        id: made new unless given.
    """

    model: str
    champion_version: str
    champion_digest: str
    challenger_version: str
    challenger_digest: str
    started_at: datetime
    ended_at: datetime
    shadow_observations: int = 0
    agreed_observations: int = 0
    dropped_observations: int = 0
    champion_decisions: int = 0
    challenger_decisions: int = 0
    champion_seconds: float = 0.0
    champion_observations: int = 0
    challenger_seconds: float = 0.0
    challenger_observations: int = 0
    id: str = field(default_factory=lambda: new_id("comparison"))

    @property
    def empty(self) -> bool:
        """Whether nothing was compared: the champion alone makes no comparison."""
        return not (
            self.shadow_observations or self.dropped_observations or self.challenger_decisions
        )
