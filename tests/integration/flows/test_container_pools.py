"""Test flow runs in containers and pods on a real Prefect server, without Docker and Kubernetes.

A container's first process is started as a local process with the pool's environment. The worker of
the pool `kubernetes` talks to a fake API server that enforces the Role of `k8s/base`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.container_entrypoint import GRACE_SECONDS
from flows.decisions import job_variables, resources_for, run_id_for
from mario.jobs.context import JobContext, JobSettings
from mario.store.store import ExperimentStore
from tests.support.fake_cluster import FakeCluster
from tests.support.paths import ROOT
from tests.support.policies import GOOD, write_odds_policy
from tests.support.pools import configured, first_command
from tests.support.prefect_server import PrefectServer, descendants, kill_all, prefect_server
from tests.support.processes import free_port
from tests.support.processes import server as started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: Without checkpoints but the one that SIGTERM requests.
TRAINING = (
    "network.threads=1", "total_steps=6144", "checkpoint.every_steps=1000000",
    "selection.every_steps=1000000", "sinks.mlflow=false",
)  # fmt: skip
PARAMETERS = {"config": "configs/smoke.yaml", "overrides": list(TRAINING), "next_seed": False}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect"), PATH=PATH) as made:
        for pool in ("process", "kubernetes"):
            made.mario("flows", "setup", "--pool", pool)
        made.mario("flows", "deploy", "train", "evaluate", "pipeline-kubernetes")
        yield made


@contextmanager
def container(
    server: PrefectServer, flow_run: str, runs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the first process of a flow run's container, as the worker of pool docker starts it."""
    server.call("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "PENDING"}})
    made = configured("docker")
    environment = {
        **os.environ, **server.environment, **made.env, "PREFECT__FLOW_RUN_ID": flow_run,
        "PREFECT_API_URL": server.url, "PREFECT_HOME": str(runs.parent / "home"),
        "MARIO_RUNS_DIR": str(runs),
    }  # fmt: skip
    with (server.folder / f"container-{time.monotonic_ns()}.log").open("wb") as log:
        process = subprocess.Popen(
            first_command("docker", made), cwd=ROOT, env=environment, stdout=log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield process
    finally:
        kill_all(descendants(process.pid))
        process.wait()


def wait_for_training(server: PrefectServer, flow_run: str) -> None:
    """Wait until a flow run's progress bar shows trained steps."""
    deadline = time.monotonic() + 300
    while not float((server.artifacts(flow_run).get("training-smoke") or {}).get("data") or 0):
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.2)


def test_training_in_a_stopped_container_resumes_in_the_next(
    server: PrefectServer, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    flow_run = server.start_run("train/train", PARAMETERS)
    checkpoints = runs / run_id_for(flow_run) / "checkpoints"
    with container(server, flow_run, runs) as process:
        wait_for_training(server, flow_run)
        assert not list(checkpoints.glob("steps-*"))
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)  # reaches the first process only
        assert process.wait(GRACE_SECONDS) == 0, server.log()
        print(f"exited {time.monotonic() - asked:.1f} s after SIGTERM")
    assert len(list(checkpoints.glob("steps-*"))) == 1
    server.wait(flow_run, 120, "AwaitingRetry", "Late")
    (crashed,) = (state for state in server.states(flow_run) if state["type"] == "CRASHED")
    assert crashed["message"].startswith("stopped from outside: run ")

    with container(server, flow_run, runs) as process:
        assert process.wait(600) == 0, server.log()
    state = server.wait(flow_run, 60)
    assert (state["type"], state["name"]) == ("COMPLETED", "Registered"), server.log()
    assert server.run(flow_run)["run_count"] == 2
    with ExperimentStore.open(JobSettings.embedded(runs).database_url) as store:
        (run,) = store.runs.list()
    first, second = run.attempts
    assert (first.status, second.status) == ("interrupted", "finished")
    assert first.end_steps
    assert second.start_steps == first.end_steps, "no step was trained twice"


def test_a_container_stopped_before_training_is_rescheduled(
    server: PrefectServer, tmp_path: Path
) -> None:
    flow_run = server.start_run("train/train", PARAMETERS)
    with container(server, flow_run, tmp_path / "runs") as process:
        while len(descendants(process.pid)) == 1:  # an interpreter starts
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_SECONDS) == 0, server.log()
    run = server.run(flow_run)
    assert (run["state"]["type"], run["state"]["name"]) == ("SCHEDULED", "AwaitingRetry")
    assert run["run_count"] == 0
    server.call("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLED"}})


def test_an_evaluation_in_a_stopped_container_continues_in_the_next(
    server: PrefectServer, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with JobContext(JobSettings.embedded(runs)) as context:
        registry = context.registry
        write_odds_policy(runs / "good", GOOD)
        registry.register("mario-1-1", runs / "good", run_id=None)
    parameters = {"task": "1-1", "policy": "1", "units": 5000, "family": "screening"}
    flow_run = server.start_run("evaluate/evaluate", parameters)
    with container(server, flow_run, runs) as process:
        wait_for_task(server, flow_run, "evaluate 1 on 1-1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(GRACE_SECONDS) == 0, server.log()
    server.wait(flow_run, 120, "AwaitingRetry", "Late")
    (crashed,) = (state for state in server.states(flow_run) if state["type"] == "CRASHED")
    assert "terminat" in crashed["message"].lower()
    server.call("POST", f"/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLED"}})


def wait_for_task(server: PrefectServer, flow_run: str, name: str) -> None:
    """Wait until a task of a flow run is running."""
    deadline = time.monotonic() + 300
    body = {"flow_runs": {"id": {"any_": [flow_run]}}}
    while name not in [each["name"] for each in server.call("POST", "/task_runs/filter", body)
                       if each["state"]["type"] == "RUNNING"]:  # fmt: skip
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.2)


# --- Kubernetes -----------------------------------------------------------------------------------


def manifest(file: str, kind: str, name: str) -> dict[str, Any]:
    """Read a manifest of `k8s/base`."""
    found = yaml.safe_load_all((ROOT / "k8s/base" / file).read_text())
    (match,) = (each for each in found if each["kind"] == kind and each["metadata"]["name"] == name)
    return dict(match)


def worker_environment(namespace: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of the worker's container in a namespace."""
    pod = manifest("worker.yaml", "Deployment", "mario-worker")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    fields = {"metadata.namespace": namespace}
    environment = {
        each["name"]: each.get("value")
        or fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in container["env"]
    }  # fmt: skip
    return list(container["command"]), environment


def test_the_kubernetes_worker_reports_waiting_pods_and_failed_jobs(
    server: PrefectServer, tmp_path: Path
) -> None:
    role = manifest("service-accounts.yaml", "Role", "mario-worker")
    cluster = FakeCluster("mario", role["rules"])
    command, environment = worker_environment("mario")
    environment = {
        **server.environment, **environment, "PREFECT_HOME": str(tmp_path / "home"),
        "KUBECONFIG": str(cluster.write_kubeconfig(tmp_path / "kubeconfig")),
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()), "PREFECT_WORKER_QUERY_SECONDS": "2",
    }  # fmt: skip
    log = server.folder / "worker-kubernetes.log"
    prefect = str(Path(sys.executable).with_name(command[0]))
    try:
        with started([prefect, *command[1:]], log=log, environment=environment, cwd=ROOT):
            deployment = server.call("GET", "/deployments/name/pipeline/pipeline-kubernetes")
            asked_for = {
                "parameters": {"parameters": PARAMETERS},
                "job_variables": job_variables("kubernetes", resources_for(None)),
                "state": {"type": "SCHEDULED"},
            }
            create = f"/deployments/{deployment['id']}/create_flow_run"
            flow_run = str(server.call("POST", create, asked_for)["id"])
            job = cluster.wait_for_job()
            pod = job["spec"]["template"]["spec"]
            assert pod["containers"][0]["command"] == ["python", "-m", "flows.container_entrypoint"]
            assert pod["nodeSelector"] == {}
            assert pod["runtimeClassName"] is None
            cluster.add_waiting_pod(job, "ImagePullBackOff", "Back-off pulling image")
            state = server.wait(flow_run, 120, "InfrastructurePending")
            assert state["message"] == "Kubernetes pod is pending."
            wait_for_log(server, flow_run, "(?i)image")
            cluster.fail(job)
            state = server.wait(flow_run, 120, "Crashed")
            assert "No active or succeeded pods" in state["message"]
        assert cluster.refused == [], "the worker needs no more than its Role allows"
    finally:
        cluster.stop()


def wait_for_log(server: PrefectServer, flow_run: str, pattern: str) -> None:
    """Wait for a line in a flow run's log."""
    deadline = time.monotonic() + 60
    body = {"logs": {"flow_run_id": {"any_": [flow_run]}}}
    while True:
        lines = [each["message"] for each in server.call("POST", "/logs/filter", body)]
        if any(re.search(pattern, line) for line in lines):
            return
        assert time.monotonic() < deadline, lines
        time.sleep(0.5)
