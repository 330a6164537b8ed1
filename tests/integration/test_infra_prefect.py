"""prefect.yaml, deployed to a real Prefect server and run once by a real process worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import free_port, server

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_entrypoints_exist_and_parameters_are_those_of_the_flow() -> None:
    import importlib

    assert deployments()
    for deployment in deployments():
        path, name = deployment["entrypoint"].split(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        flow = getattr(module, name)
        flow.validate_parameters(deployment.get("parameters", {}))
        with pytest.raises(Exception, match=r"(?i)extra|unexpected|invalid"):
            flow.validate_parameters({"parameters": {"no_such_key": 1}})


class Api:
    """The few calls of Prefect's API that are needed here."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_deployment_runs_through_a_server_and_a_process_worker(tmp_path: Path) -> None:
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}/api")
    runs = tmp_path / "runs"
    environment = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api.url,
        "PREFECT_UI_API_URL": api.url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MARIO_HOME": str(ROOT),
        "MARIO_GIT_COMMIT": "test",
        "MARIO_RUNS_DIR": str(runs),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        environment[name] = ""

    def prefect(*arguments: str) -> str:
        done = subprocess.run(
            [PREFECT, *arguments],
            env={**os.environ, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with server(
        [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        log=tmp_path / "server.log",
        ready=f"{api.url}/health",
        seconds=180,
        environment=environment,
    ):
        prefect("work-pool", "create", "process", "--type", "process")
        prefect("--no-prompt", "deploy", "--all")
        found = {each["name"]: each for each in api.call("/deployments/filter", {})}
        assert set(found) == {deployment["name"] for deployment in deployments()}
        deployment = found["pipeline"]
        # What the UI makes its form of.
        assert "config" in json.dumps(deployment["parameter_openapi_schema"])
        flow_run = api.call(
            f"/deployments/{deployment['id']}/create_flow_run",
            {
                "parameters": {
                    "parameters": {
                        "config": "configs/smoke.yaml",
                        "overrides": ["evaluation.screening_units=2", "gate.max_units=4"],
                    }
                },
                "state": {"type": "SCHEDULED"},
            },
        )
        worker_log = tmp_path / "worker.log"
        with server(
            [PREFECT, "worker", "start", "--pool", "process", "--type", "process"],
            log=worker_log,
            environment=environment,
            cwd=ROOT,
        ):
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline:
                state = api.call(f"/flow_runs/{flow_run['id']}")["state"]
                if state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
                    break
                time.sleep(1)
        assert state["type"] == "COMPLETED", worker_log.read_text(errors="replace")[-6000:]
        tasks = api.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run["id"]]}}})
        names = {task["name"].rsplit("-", 1)[0] for task in tasks}
        assert {"train", "register", "screen", "gate"} <= names
        assert all(task["state"]["type"] == "COMPLETED" for task in tasks)
    # The worker's flow run left what the same pipeline leaves by hand.
    assert (runs / "mario.db").exists()
    assert list(runs.glob("run-*"))
