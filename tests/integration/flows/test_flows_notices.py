"""Test versions, secrets, crashes and notifications on a real Prefect server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prefect.client.orchestration import PrefectClient
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.templating import resolve_block_document_references

from flows.decisions import MAX_ATTEMPTS, run_id_for
from flows.work_pools import DATABASE_BLOCK
from mario.config.gate import GateRule
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.gate import champion_for, judge
from mario.jobs.policies import load_policy
from mario.jobs.promote import promote_verdict
from mario.store.store import ExperimentStore
from tests.support.mlflow_server import MlflowServer
from tests.support.policies import GOOD, write_odds_policy
from tests.support.prefect_server import (
    ROOT,
    PrefectServer,
    Receiver,
    descendants,
    prefect_server,
    wait_for_checkpoints,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PASSWORD = "correct-horse-battery"
#: Heartbeats come every 30 s; a run without one for so long counts as crashed.
SILENCE_SECONDS = 75
RULE = GateRule(primary="progress", alpha=0.4, max_units=100, min_units=8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[PrefectServer]:
    with prefect_server(
        tmp_path_factory.mktemp("prefect"),
        MARIO_SILENCE_SECONDS=str(SILENCE_SECONDS),
        MARIO_WEBHOOK_URL=receiver.url,
    ) as made:
        made.mario("flows", "setup")
        made.mario("flows", "deploy")
        yield made


def test_deployments_carry_version_and_branch_of_the_checkout(server: PrefectServer) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    found = server.call("GET", "/deployments/name/train/train")
    assert found["version"] == "test", "an image sets MARIO_GIT_COMMIT"
    try:
        assert "version" in server.mario("flows", "deploy", "train", MARIO_GIT_COMMIT="")
        found = server.call("GET", "/deployments/name/train/train")
        assert found["version"] == git("describe", "--always", "--tags", "--dirty")
        assert f"git:{git('rev-parse', '--abbrev-ref', 'HEAD')}" in found["tags"]
    finally:
        server.mario("flows", "deploy", "train")


def test_the_database_url_is_a_secret_block(server: PrefectServer) -> None:
    url = f"postgresql+psycopg2://mario:{PASSWORD}@db.example/mario"
    said = server.mario("flows", "setup", MARIO_DATABASE_URL=url)
    assert f"secret/{DATABASE_BLOCK}" in said
    assert PASSWORD not in said
    assert server.mario("flows", "setup", MARIO_DATABASE_URL=url).startswith("nothing to change")
    template = server.call("GET", "/work_pools/docker")["base_job_template"]
    assert PASSWORD not in json.dumps(template)
    shown = server.call("GET", f"/block_types/slug/secret/block_documents/name/{DATABASE_BLOCK}")
    assert PASSWORD not in json.dumps(shown)

    # As a docker worker does before it starts a container.
    async def resolve() -> Any:
        async with PrefectClient(server.url) as client:
            variables = template["variables"]["properties"]["env"]["default"]
            return await resolve_block_document_references(variables, client=client)

    assert run_coro_as_sync(resolve())["MARIO_DATABASE_URL"] == url


def test_artifacts_link_to_the_run_on_an_mlflow_server(
    server: PrefectServer, tmp_path: Path
) -> None:
    mlflow = MlflowServer(tmp_path / "mlflow")
    mlflow.start()
    try:
        with server.worker(tmp_path / "runs", MLFLOW_TRACKING_URI=mlflow.uri):
            flow_run = server.start_run(
                "train/train", {"config": "configs/smoke.yaml", "next_seed": False}
            )
            state = server.wait(flow_run)
        assert state["name"] == "Registered", f"{state}\n{server.log()}"
        page = server.artifacts(flow_run)["learning-curve-smoke"]["data"]
        link = re.search(r"^MLflow: \[run (\w+)\]\((http://[^)]+)\)$", page, re.MULTILINE)
        assert link, page
        assert link[2].startswith(mlflow.uri)
        with urllib.request.urlopen(link[2], timeout=30) as answer:
            assert answer.status == 200
        asked = f"{mlflow.uri}/api/2.0/mlflow/runs/get?run_id={link[1]}"
        with urllib.request.urlopen(asked, timeout=30) as answer:
            run = json.load(answer)["run"]
        experiment = run["info"]["experiment_id"]
        assert link[2].endswith(f"/#/experiments/{experiment}/runs/{link[1]}")
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert tags["mario.run_id"] == run_id_for(flow_run)
    finally:
        mlflow.kill()


def test_drift_fails_the_run_and_notifies(
    server: PrefectServer, tmp_path: Path, postgres_database: str, receiver: Receiver
) -> None:
    """The stored trajectories are changed here, which looks like a changed champion."""
    runs = tmp_path / "runs"
    context = JobContext(JobSettings(runs, postgres_database, f"sqlite:///{runs / 'mlflow.db'}"))
    runs.mkdir()
    write_odds_policy(runs / "good", GOOD)
    registry = context.registry
    version = registry.register("mario-1-1", runs / "good", run_id=None).version
    store = context.store
    challenger = load_policy(str(version), "1-1", context)
    champion = champion_for(challenger, "1-1", context)
    outcome = judge(challenger, champion, RULE, "1-1", ("1-1",), store)
    promote_verdict(outcome.verdict_id, context)
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE evaluation_episodes SET trajectory_hash = 'another'"))
    with server.worker(runs, MARIO_DATABASE_URL=postgres_database):
        flow_run = server.start_run("nightly/nightly", {"task": "1-1", "units": 16})
        state = server.wait(flow_run)
    assert (state["type"], state["name"]) == ("FAILED", "Drifted"), f"{state}\n{server.log()}"
    told = receiver.wait_for("Drifted: ")
    assert "mario-1-1" in told
    assert "replayed units" in told


def begin(server: PrefectServer, flow_run: str, name: str = "RUNNING") -> None:
    """Report a state as the process of a flow run does."""
    server.call(
        "POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": name}, "force": True}
    )


def crash(server: PrefectServer, flow_run: str) -> None:
    """Report a crash as a worker does when the process of a flow run was killed."""
    server.call(
        "POST",
        f"/flow_runs/{flow_run}/set_state",
        {"state": {"type": "CRASHED", "name": "Crashed", "message": "its process ended with 9"}},
    )


def test_a_run_that_keeps_crashing_is_not_retried_for_ever(
    server: PrefectServer, receiver: Receiver
) -> None:
    """Without a worker; the test reports the states of process and worker."""
    flow_run = server.start_run("train/train", {"config": "configs/smoke.yaml"})
    for attempt in range(1, MAX_ATTEMPTS + 1):
        begin(server, flow_run)
        assert server.run(flow_run)["run_count"] == attempt
        crash(server, flow_run)
        if attempt < MAX_ATTEMPTS:
            server.wait(flow_run, 120, "AwaitingRetry", "Late")
    assert "its process ended with 9" in receiver.wait_for("Crashed for good: ")
    time.sleep(5)
    assert server.run(flow_run)["state"]["name"] == "Crashed", "it is not retried"


def test_a_run_whose_attempts_crash_before_they_begin_fails(
    server: PrefectServer, receiver: Receiver
) -> None:
    """Prefect does not count such attempts, as their process never reported that it runs."""
    flow_run = server.start_run("train/train", {"config": "configs/smoke.yaml"})
    begin(server, flow_run)
    for _ in range(MAX_ATTEMPTS):
        crash(server, flow_run)
        server.wait(flow_run, 120, "AwaitingRetry", "Late", "Failed")
        if server.run(flow_run)["state"]["name"] == "Failed":
            break
        begin(server, flow_run, "PENDING")
    state = server.wait(flow_run, 120, "Failed")
    assert server.run(flow_run)["run_count"] == 1
    assert "at least once before it began" in state["message"]
    assert "crashed" in receiver.wait_for(f"crashed {MAX_ATTEMPTS} times")
    time.sleep(5)
    assert server.run(flow_run)["state"]["name"] == "Failed"


def test_a_silent_process_stops_for_the_next_attempt(server: PrefectServer, tmp_path: Path) -> None:
    """A machine that sleeps or has lost its network sends no heartbeats, but its process lives.

    A server that is unreachable for longer than the limit may cause the same for all its runs.
    """
    runs = tmp_path / "runs"
    endless = {
        "config": "configs/smoke.yaml",
        "overrides": [
            "network.threads=1",
            "total_steps=10000000",
            "checkpoint.every_steps=8192",
            "selection.every_steps=10000000",
        ],
    }
    with server.worker(runs) as worker:
        flow_run = server.start_run("train/train", endless)
        wait_for_checkpoints(server, runs, flow_run, 1)
        first = descendants(worker.pid)[1:]
        for pid in first:
            os.kill(pid, signal.SIGSTOP)
        server.wait(flow_run, 300, "Crashed", "AwaitingRetry", "Late", "Pending")
        deadline = time.monotonic() + 300
        while server.run(flow_run)["run_count"] < 2:
            assert time.monotonic() < deadline, server.log()
            time.sleep(1)
        for pid in first:
            os.kill(pid, signal.SIGCONT)
        while True:
            with ExperimentStore.open(JobSettings.embedded(runs).database_url) as store:
                attempts = store.runs.get(run_id_for(flow_run)).attempts
            if len(attempts) == 2 and attempts[1].start_steps > 0:
                break
            assert time.monotonic() < deadline, f"{attempts}\n{server.log()}"
            time.sleep(1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in first), (
            "the older process has exited"
        )
        assert [attempt.status for attempt in attempts] == ["interrupted", "running"]
        # The newer attempt waited for the checkpoint of the older one and resumed from it.
        assert attempts[1].start_steps == attempts[0].end_steps
        assert attempts[1].started_at >= (attempts[0].ended_at or attempts[1].started_at)
        names = [each["name"] for each in server.states(flow_run)]
        assert names[names.index("Crashed") :][:2] == ["Crashed", "AwaitingRetry"]
        assert names[-1] == "Running", "the older process left the flow run's state alone"
        server.call("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        assert server.wait(flow_run)["type"] == "CANCELLED"
