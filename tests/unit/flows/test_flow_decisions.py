"""Test the decisions of flows: identity, retries, endings, resources."""

from __future__ import annotations

from uuid import uuid4

import pytest

from flows.decisions import (
    MAX_ATTEMPTS,
    Machine,
    differences,
    ending_of_attempts,
    ending_of_stop,
    ending_of_training,
    ending_of_verdict,
    job_variables,
    progress_percent,
    promoted_by_earlier_attempt,
    resources_for,
    run_id_for,
    why_slow,
    why_unsuitable,
    worth_retrying,
)
from flows.nightly import ending_of_drift
from mario.config.experiment import load_config
from mario.errors import (
    ArtefactError,
    ConfigError,
    PromotionConflict,
    RegistryError,
    RegistryUnavailableError,
    RunIsBusy,
    StoreError,
)
from mario.jobs.attempts import next_step
from mario.store.engine import StoreUnavailableError
from tests.support.paths import ROOT


def test_an_interrupted_run_names_the_command_that_resumes_it() -> None:
    ended = ending_of_training("interrupted", "stopped on request", "run-1", 0)
    assert ended is not None
    assert (ended.type, ended.name) == ("CANCELLED", "Interrupted")
    assert ended.message.endswith("at 0 steps; go on with: mario train --resume run-1")
    waiting = ending_of_training("interrupted", "process 7 is at it", "run-1", 0, waited=True)
    assert waiting is not None
    assert waiting.message == "process 7 is at it"


def test_each_flow_run_has_one_training_run() -> None:
    one, other = uuid4(), uuid4()
    assert run_id_for(one) == run_id_for(str(one))
    assert run_id_for(one) != run_id_for(other)
    assert len(run_id_for(one)) <= 64, "the store's column"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StoreUnavailableError("away"), True),
        (RegistryUnavailableError("away"), True),
        (RunIsBusy("another was quicker"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError("no route"), True),
        (ConfigError("unknown key"), False),
        (StoreError("no such run"), False),
        (ArtefactError("broken"), False),
        (RegistryError("no such version"), False),
        (PromotionConflict("another was first"), False),
        (FileNotFoundError("no such file"), False),
        (PermissionError("no"), False),
        (ValueError("a bug"), False),
        (AssertionError("a bug"), False),
    ],
)
def test_only_unavailable_servers_and_locks_are_retried(error: Exception, again: bool) -> None:
    assert worth_retrying(error) is again


def test_connection_errors_of_client_libraries_are_retried() -> None:
    import httpx
    import requests
    import sqlalchemy.exc

    assert worth_retrying(httpx.ConnectError("away"))
    assert worth_retrying(requests.exceptions.ConnectionError("away"))
    assert worth_retrying(sqlalchemy.exc.OperationalError("", None, Exception()))
    assert not worth_retrying(sqlalchemy.exc.IntegrityError("", None, Exception()))


def test_a_collapse_has_its_own_state_name_and_is_no_failure() -> None:
    assert ending_of_training("finished", "", "run-1", 100) is None
    for status in ("collapsed", "diverged"):
        ending = ending_of_training(status, "one action only", "run-1", 100)
        assert ending is not None
        assert ending.name == "Collapsed"
        assert ending.type not in ("FAILED", "CRASHED"), "these types are retried"
        assert "one action only" in ending.message


def test_a_deployed_run_is_retried_unless_a_person_cancelled_it() -> None:
    ending = ending_of_training("interrupted", "", "run-1", 100)
    assert ending is not None
    assert "--resume run-1" in ending.message
    assert ending_of_stop(ending, deployed=False, cancelling=False) == ending
    assert ending_of_stop(ending, deployed=True, cancelling=True) == ending
    evicted = ending_of_stop(ending, deployed=True, cancelling=False)
    assert (evicted.type, evicted.name) == ("CRASHED", "Crashed"), (
        "an automation retries crashed runs"
    )


def test_endings_of_verdicts() -> None:
    assert ending_of_verdict("promote", 3, ("PROMOTE: …",)).name == "Promoted"
    for decision in ("reject", "inconclusive"):
        kept = ending_of_verdict(decision, 3, ("it said why",))
        assert (kept.type, kept.name) == ("COMPLETED", "Kept")
        assert "it said why" in kept.message
    assert ending_of_verdict("same", 3, ()).name == "Unchanged"


def test_drift_is_a_failure_with_its_own_state_name() -> None:
    drifted = ending_of_drift(True, ["why", "and how much"])
    assert (drifted.type, drifted.name) == ("FAILED", "Drifted")
    assert drifted.message == "why and how much"
    steady = ending_of_drift(False, ["fine"])
    assert (steady.type, steady.name) == ("COMPLETED", "Steady")


def test_a_promotion_killed_after_the_ledger_is_announced_by_the_next_attempt() -> None:
    assert promoted_by_earlier_attempt("same", True, 2)
    assert not promoted_by_earlier_attempt("same", True, 1), "it was champion before"
    assert not promoted_by_earlier_attempt("same", False, 2), "another version with the same policy"
    assert not promoted_by_earlier_attempt("reject", True, 2)


def test_a_run_fails_after_its_last_attempt() -> None:
    assert ending_of_attempts(1) is None
    assert ending_of_attempts(MAX_ATTEMPTS) is None
    ending = ending_of_attempts(MAX_ATTEMPTS + 1)
    assert ending is not None
    assert ending.type == "FAILED"


@pytest.mark.parametrize(
    ("status", "has_folder", "has_policy", "step"),
    [
        (None, False, False, "start"),
        ("running", False, False, "start"),
        ("running", True, False, "resume"),
        ("killed", True, False, "resume"),
        ("interrupted", True, False, "resume"),
        ("interrupted", True, True, "resume"),
        ("finished", True, False, "resume"),
        ("finished", True, True, "done"),
        ("collapsed", True, True, "done"),
        ("diverged", True, False, "done"),
    ],
)
def test_an_attempt_starts_resumes_or_returns_the_run(
    status: str | None, has_folder: bool, has_policy: bool, step: str
) -> None:
    assert next_step(status, has_folder=has_folder, has_policy=has_policy) == step  # type: ignore[arg-type]


def test_resources_follow_the_experiment() -> None:
    ppo = load_config(ROOT / "configs/ppo_1-1.yaml")
    dqn = load_config(ROOT / "configs/dqn_baseline.yaml")
    on_cpu = load_config(ROOT / "configs/ppo_1-1.yaml", ("network.device=cpu",))
    big = load_config(ROOT / "configs/dqn_baseline.yaml", ("algorithm.buffer_size=1000000",))
    assert resources_for(ppo).gpus == 1
    assert resources_for(on_cpu).gpus == 0
    assert resources_for(None).gpus == 0
    assert resources_for(big).memory_gib > resources_for(dqn).memory_gib >= 4
    docker = job_variables("docker", resources_for(ppo))
    assert docker["device_requests"][0]["Count"] == 1
    assert docker["mem_limit"].endswith("g")
    assert job_variables("docker", resources_for(on_cpu))["device_requests"] == []
    assert job_variables("kubernetes", resources_for(ppo))["gpus"] == 1
    free = job_variables("kubernetes", resources_for(on_cpu))
    assert free["node_selector"] == {}, "work without a GPU needs no GPU node"
    assert job_variables("process", resources_for(ppo)) == {}


def test_memory_covers_the_buffer_of_stable_baselines() -> None:
    import numpy as np
    from gymnasium.spaces import Box, Discrete
    from stable_baselines3.common.buffers import ReplayBuffer

    seen = Box(0, 255, (4, 84, 84), np.uint8)
    made = ReplayBuffer(
        800, seen, Discrete(7), n_envs=8, optimize_memory_usage=True,
        handle_timeout_termination=False,
    )  # fmt: skip
    each = made.observations.nbytes / 800
    big = load_config(ROOT / "configs/dqn_baseline.yaml", ("algorithm.buffer_size=1000000",))
    assert resources_for(big).memory_gib > 4 + 1_000_000 * each / 2**30
    # A buffer that is never filled takes less memory.
    short = load_config(
        ROOT / "configs/dqn_baseline.yaml", ("algorithm.buffer_size=1000000", "total_steps=20000")
    )
    assert resources_for(short).memory_gib <= 5


def test_an_experiment_that_exceeds_the_memory_is_refused() -> None:
    demo = load_config(ROOT / "configs/demo.yaml")
    dqn = load_config(ROOT / "configs/dqn_baseline.yaml")
    big = load_config(ROOT / "configs/dqn_baseline.yaml", ("algorithm.buffer_size=500000",))
    container = Machine(memory_gib=float(resources_for(demo).memory_gib))
    assert why_unsuitable(demo, container) is None
    assert why_unsuitable(dqn, container) is None, "tight, but possible"
    reason = why_unsuitable(big, container)
    assert reason is not None
    needed = resources_for(big).memory_gib
    assert reason.startswith("got 5.0 GiB of memory here for dqn_baseline; expected ")
    assert f"mem_limit={needed}g (pool docker)" in reason
    assert f"memory_limit={2 * needed}Gi (pool kubernetes)" in reason
    assert why_unsuitable(big, Machine(memory_gib=float(needed))) is None
    # Workers of a sweep share one container.
    assert why_unsuitable(dqn, Machine(memory_gib=8.0)) is None
    crowded = why_unsuitable(dqn, Machine(memory_gib=8.0), workers=3)
    assert crowded is not None
    assert "in 3 workers; expected 24 GiB" in crowded


def test_a_machine_without_limits_refuses_nothing() -> None:
    big = load_config(ROOT / "configs/dqn_baseline.yaml", ("algorithm.buffer_size=100000000",))
    assert why_unsuitable(big, Machine()) is None
    assert why_slow(big, Machine()) is None


def test_an_experiment_with_cuda_is_refused_without_a_gpu() -> None:
    by_name = load_config(ROOT / "configs/ppo_1-1.yaml", ("network.device=cuda",))
    reason = why_unsuitable(by_name, Machine())
    assert reason is not None
    assert "device_requests (pool docker) or gpus (pool kubernetes)" in reason
    assert why_unsuitable(by_name, Machine(cuda=True)) is None
    assert why_unsuitable(load_config(ROOT / "configs/ppo_1-1.yaml"), Machine()) is None, (
        "auto takes either"
    )


def test_few_cores_give_a_warning_only() -> None:
    many = load_config(ROOT / "configs/ppo_1-1.yaml", ("environments=32",))
    assert resources_for(many).cpus == 8
    assert why_slow(many, Machine(cpus=4)) is None
    said = why_slow(many, Machine(cpus=1.5))
    assert said is not None
    assert "1.5 cores" in said
    assert why_unsuitable(many, Machine(cpus=0.5)) is None


def test_progress_is_a_percentage() -> None:
    assert progress_percent(0, 100) == 0
    assert progress_percent(50, 200) == 25
    assert progress_percent(500, 200) == 100


def test_differences_ignore_fields_that_only_the_server_has() -> None:
    found = {"a": 1, "b": {"c": [1, {"d": 2, "id": 9}], "more": 0}, "id": 7}
    assert differences({"a": 1, "b": {"c": [1, {"d": 2}]}}, found) == ()
    assert differences({"a": 2, "b": {"c": [1, {"d": 2}]}}, found) == ("a",)
    assert differences({"b": {"c": [1]}}, found) == ("b",)
    assert differences({"new": None}, found) == ()
    assert differences({"new": 0}, found) == ("new",)


@pytest.mark.parametrize(
    "part",
    ["job_variables", "parameters", "base_job_template", "parameter_openapi_schema", "pull_steps",
     "trigger", "actions"],
)  # fmt: skip
def test_a_removed_field_of_a_complete_part_is_a_difference(part: str) -> None:
    assert differences({part: {}}, {part: {"image": "old"}}) == (part,)
    assert differences({part: {"a": {}}}, {part: {"a": {"image": "old"}}}) == (part,)
    assert differences({part: [{}]}, {part: [{"image": "old"}]}) == (part,)
    assert differences({part: {"a": [1]}}, {part: {"a": [1]}, "id": 7}) == ()
    assert differences({part: {"a": None}}, {part: {}}) == (part,)
