"""Plausible entries for tests of the store."""

from __future__ import annotations

from mario.config.experiment import ExperimentConfig
from mario.evaluation.records import EpisodeRecord
from mario.store.records import EpisodeEntry, EvaluationKey, NewRun, NewVerdict
from mario.store.store import ExperimentStore

CONFIG = {"name": "demo", "ppo": {"gamma": 0.95, "n_steps": 128}, "levels": ["1-1"]}
MODEL = "mario-1-1"


def new_run(**changes: object) -> NewRun:
    values: dict[str, object] = {
        "name": "demo",
        "task": "1-1",
        "algorithm": "ppo",
        "config": CONFIG,
        "config_hash": "c" * 64,
    }
    return NewRun(**(values | changes))  # type: ignore[arg-type]


def run_of(experiment: ExperimentConfig, run_id: str) -> NewRun:
    """Create the run of an experiment."""
    return new_run(
        id=run_id,
        name=experiment.name,
        task=experiment.task,
        config=experiment.model_dump(mode="json"),
        config_hash=experiment.content_hash(),
    )


def episode_row(run_id: str, index: int, env_index: int = 0, **changes: object) -> EpisodeEntry:
    values: dict[str, object] = {
        "run_id": run_id,
        "env_index": env_index,
        "episode_index": index,
        "attempt": 1,
        "seed": 2**64 - 1 - index,
        "level": "1-1",
        "total_steps": 100 * (index + 1),
        "length_steps": 90 + index % 7,
        "shaped_return": 1.5 * index,
        "furthest_x_px": 400 + index,
        "end_reason": "death",
        "x_px": 398,
        "y_px": 79,
        "score": 200,
        "coins": 1,
        "time_left": 380,
        "life": 2,
        "status": 0,
        "world": 1,
        "stage": 1,
        "area": 1,
        "flag": False,
        "dying": True,
        "player_state": 11,
    }
    return EpisodeEntry(**(values | changes))  # type: ignore[arg-type]


def evaluation_record(digest: str, seed: int, **changes: object) -> EpisodeRecord:
    values: dict[str, object] = {
        "policy_digest": digest,
        "level": "1-1",
        "seed": seed,
        "cleared": False,
        "furthest_px": 1264,
        "level_length_px": 3160,
        "score_points": 200,
        "coins": 1,
        "time_left": 350,
        "time_start": 400,
        "status": 0,
        "steps": 180,
        "shaped_return": 9.5,
        "action_counts": (100, 80),
        "trajectory_hash": f"{seed:064x}",
        "end_reason": "death",
    }
    return EpisodeRecord(**(values | changes))  # type: ignore[arg-type]


def evaluation_key(digest: str, source: str = "", family: str = "confirmation") -> EvaluationKey:
    return EvaluationKey(
        policy_digest=digest,
        protocol="mario-eval-v1",
        seed_family=family,  # type: ignore[arg-type]
        seed_source=source,
        levels=("1-1",),
    )


def registered(store: ExperimentStore, version: int, digest: str, model: str = MODEL) -> str:
    """Register a version in the store alone, as if its upload had succeeded."""
    row = store.versions.begin(model, f"key-{version}", digest=digest)
    store.versions.complete(row.id, version=version, mlflow_run_id=None, source="file:///none")
    return row.id


def verdict(
    store: ExperimentStore,
    challenger: tuple[int, str],
    champion: tuple[int | None, str],
    decision: str = "promote",
    model: str = MODEL,
) -> str:
    """Store evaluations of two policies (one unit each) and a verdict; return its id."""
    ids = []
    for _, digest in (challenger, champion):
        key = evaluation_key(digest, challenger[1])
        evaluation = store.evaluations.open(key, planned_units=1)
        store.evaluations.add(evaluation.id, [evaluation_record(digest, 2**62 + 5)])
        ids.append(store.evaluations.finish(evaluation.id).id)
    stored = store.evaluations.record_verdict(
        NewVerdict(
            model=model,
            challenger_version=challenger[0],
            challenger_digest=challenger[1],
            challenger_evaluation_id=ids[0],
            champion_version=champion[0],
            champion_digest=champion[1],
            champion_evaluation_id=ids[1],
            gate="mario-gate-v1",
            decision=decision,  # type: ignore[arg-type]
            detail={"p": 0.01, "log_e": float("inf"), "reasons": ["better"]},
        )
    )
    return stored.id
