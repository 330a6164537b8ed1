"""The values that the store takes and returns: frozen, independent of the database."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mario.config.run_states import CheckpointKind, HealthState, RunStatus
from mario.evaluation.decision import GateDecision
from mario.evaluation.seeds import SeedFamily
from mario.store.vocabulary import AlphaKind, EvaluationStatus, PromotionReason, VersionState


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """Create an identifier that sorts by time: ``run-20261123T101500-1f2e3d4c``."""
    return f"{prefix}-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A run to be started.

    Attributes:
        name: for people, usually the name of the configuration.
        task: the task, such as ``1-1``.
        algorithm: ``ppo``, ``dqn``, ``bc``, …
        config: the whole configuration as JSON types.
        config_hash: its content hash.
        id: the run's identifier.
        git_commit: commit of the code, if known.
        git_diff: uncommitted changes, if any.
        library_versions: package name to version.
        hardware: processor, cores, memory, accelerator, …
        parent_run_id: the run whose policy this one fine-tunes.
        mlflow_run_id: the run in MLflow.
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
    """One attempt at a run, by one process.

    Attributes:
        attempt: 1 for the first start, one more for each resumption.
        host: its machine.
        pid: its process there.
        status: ``running`` until it ends; ``killed`` once its process was found dead.
        start_steps: environment steps done at its start.
        end_steps: environment steps done at its end, if it reported them.
        started_at: its start.
        ended_at: its end.
        heartbeat_at: its last heartbeat.
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
class Run(NewRun):
    """A stored run, with its attempts in order (none for imported runs)."""

    status: RunStatus
    status_reason: str | None
    imported: bool
    extra: Mapping[str, Any] | None
    started_at: datetime
    ended_at: datetime | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeEntry:
    """One finished training episode; (run_id, env_index, episode_index) is its key.

    Attributes:
        run_id: its run.
        env_index: index of its environment, ≥ 0.
        episode_index: number of episodes that the environment finished before, over all attempts.
        attempt: the attempt that wrote it; a later attempt replaces an earlier one's row.
        seed: the episode's seed, 0 ≤ seed < 2**64.
        level: ``"1-1"`` … ``"8-4"``.
        total_steps: environment steps of the whole run at its end.
        length_steps: its length in steps.
        shaped_return: sum of the training reward, before normalisation.
        furthest_x_px: greatest x reached.
        end_reason: ``flag``, ``death``, ``clock``, ``steps``, …
        x_px, y_px, score, coins, time_left, life, status, world, stage, area, flag, dying,
            player_state: the game's 13 values at its end.
        ended_at: its end.
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
    """The collapse detector's signals at one update; they may hold non-finite floats."""

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
    """A completely written checkpoint; ``path`` is relative to the runs folder, or a URI."""

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
    """The policy's score on selection seeds at a step, and the best score until then."""

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
    """The end of an attempt; it ends the run, too, until the run is resumed."""

    run_id: str
    attempt: int
    status: RunStatus
    end_steps: int | None
    reason: str | None = None
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """A heartbeat of a running attempt."""

    run_id: str
    attempt: int
    total_steps: int
    at: datetime = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStart:
    """The steps of the checkpoint that an attempt resumed from."""

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
    """The identity of an evaluation: the same key resumes an interrupted evaluation.

    Attributes:
        policy_digest: SHA-256 of the artefact's ``policy.json``, or a name like ``random:SIMPLE``.
        protocol: ``mario-eval-v1``.
        seed_family: ``selection``, ``screening`` or ``confirmation``.
        seed_source: the key that seeds are derived from; for confirmation the test's key, the same
            for both policies; may be empty.
        levels: the levels, in the task's order.
    """

    policy_digest: str
    protocol: str
    seed_family: SeedFamily
    seed_source: str
    levels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A stored evaluation; ``finished_units`` counts its episodes."""

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
    """A verdict of the gate, to be stored.

    Attributes:
        model: ``mario-<task>``.
        challenger_digest, challenger_evaluation_id: the challenger and its evaluation.
        champion_digest, champion_evaluation_id: the champion and its evaluation; the random policy
            if there is no champion yet.
        gate: version of the gate, ``mario-gate-v1``.
        decision: ``promote``, ``reject`` or ``inconclusive``.
        detail: the whole verdict as JSON types: rule, numbers, guards, reasons.
        challenger_version, champion_version: registry versions, if registered.
        id: its identifier.
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
    """A stored verdict."""

    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A stored version; its number ``version`` is None while it is ``pending``.

    ``host`` and ``pid`` name the process that registers it, or did so last.
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
    """One entry of the ledger; the entry with the highest ``sequence`` names the champion."""

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
    """One movement of a model's alpha account.

    Attributes:
        kind: ``grant`` opens the account, ``spend`` pays for a test, ``earn`` refills it after a
            promotion.
        test_key: identity of the test that is paid once; the verdict's id for ``earn``.
        amount: ≥ 0.
        wealth_before, wealth_after: the account before and after, both ≥ 0.
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
    """A challenger compared with the champion in serving, over one period of time.

    Attributes:
        model: ``mario-<task>``.
        champion_version, champion_digest: the champion.
        challenger_version, challenger_digest: the shadow or canary version.
        started_at, ended_at: the period.
        shadow_observations: observations that both answered.
        agreed_observations: of these, observations with equal actions.
        dropped_observations: observations that the shadow dropped because it was too slow.
        champion_decisions, challenger_decisions: decisions in the sessions of each version.
        champion_seconds, challenger_seconds: total time of inference calls.
        champion_observations, challenger_observations: observations in those calls.
        id: its identifier.
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
        """Whether it holds no observation or decision of the challenger."""
        return not (
            self.shadow_observations or self.dropped_observations or self.challenger_decisions
        )
