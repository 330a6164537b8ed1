"""Both images, built and run by a real Docker engine: steps trained, a request served."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.container_entrypoint import GRACE_SECONDS
from tests.support.docker_engine import (
    Engine,
    build_context,
    container_state,
    engine,
    wait_until_healthy,
)
from tests.support.onnx_networks import write_test_artefact
from tests.support.paths import ROOT
from tests.support.prefect_server import PrefectServer, prefect_server
from tests.support.processes import server

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(3600)]

TRAINER, SERVING = "mario-trainer:test", "mario-serving:test"
#: As compose.yaml and k8s/ run them.
HARDENED = (
    "--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--tmpfs", "/tmp", "--tmpfs", "/home/mario:uid=10001,gid=10001",
)  # fmt: skip
TOKEN = "a-token-of-this-test-only"
POOL_VOLUME = "mario-test-pool"
REVISION = ("--build-arg", "REVISION=0123456789abcdef")
#: Long enough to be stopped while it trains.
PARAMETERS = {
    "config": "configs/smoke.yaml",
    "overrides": ["network.threads=1", "total_steps=20480", "selection.every_steps=20480",
                  "evaluation.screening_units=2", "gate.max_units=4"],
}  # fmt: skip
ENDS_OF_A_PIPELINE = ("Promoted", "Kept", "Unchanged", "Collapsed", "Interrupted", "Failed")


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as running:
        _clear(running)
        yield running
        _clear(running)


def _clear(running: Engine) -> None:
    """Remove what these tests make: the engine may be one that others use."""
    # A docker pool's containers have names of Prefect's choice, and this image.
    for container in running.run(
        "ps", "--all", "--quiet", "--filter", f"ancestor={TRAINER}"
    ).stdout.split():
        running.run("rm", "--force", container)
    for kind, listed in (("container", ("ps", "--all")), ("volume", ("volume", "ls"))):
        form = "{{.Names}}" if kind == "container" else "{{.Name}}"
        found = running.run(*listed, "--filter", "name=mario-test-", "--format", form)
        if names := found.stdout.split():
            running.run(kind, "rm", "--force", *names)


@pytest.fixture(scope="module")
def context(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return build_context(tmp_path_factory.mktemp("context")), docker.base_image()


@pytest.fixture(scope="module")
def trainer(docker: Engine, context: tuple[Path, str]) -> Engine:
    docker.build("trainer.Dockerfile", TRAINER, *context, *REVISION)
    return docker


@pytest.fixture(scope="module")
def images(trainer: Engine, context: tuple[Path, str]) -> Engine:
    trainer.build("serving.Dockerfile", SERVING, *context, *REVISION)
    return trainer


def in_image(docker: Engine, image: str, code: str, *options: str) -> str:
    return docker.run("run", "--rm", *options, "--entrypoint", "python", image, "-c", code).stdout


@pytest.mark.parametrize("image", [TRAINER, SERVING])
def test_images_say_what_they_are_and_do_not_run_as_root(images: Engine, image: str) -> None:
    (inspected,) = json.loads(images.run("image", "inspect", image).stdout)
    config = inspected["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123456789abcdef"
    assert config["Labels"]["org.opencontainers.image.title"] in image
    assert config["Healthcheck"]["Test"][0] == "CMD"
    # Neither a compiler nor what was handed in for the build stays.
    code = "import shutil, pathlib; print(shutil.which('g++'), pathlib.Path('/src').exists())"
    assert in_image(images, image, code).split() == ["None", "False"]
    environment = " ".join(config["Env"]).lower()
    assert not any(word in environment for word in ("password", "token=", "secret"))


def test_the_serving_image_holds_no_trainer_and_no_torch(images: Engine) -> None:
    code = """
import importlib.util
def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
print([each for each in (
    "torch", "stable_baselines3", "prefect", "mario.training.run", "mario.jobs.train",
    "flows.pipeline", "serving.service",
) if there(each)])
"""
    assert in_image(images, SERVING, code).strip() == "['serving.service']"
    sizes = {
        image: int(images.run("image", "inspect", "--format", "{{.Size}}", image).stdout)
        for image in (SERVING, TRAINER)
    }
    print({image: f"{size / 1e6:.0f} MB" for image, size in sizes.items()})
    assert sizes[SERVING] < 0.6 * sizes[TRAINER]


def test_the_trainer_image_trains_a_few_hundred_steps(images: Engine) -> None:
    images.run(
        "run", "--name", "mario-test-training", *HARDENED, "--network", "none",
        "--volume", "mario-test-runs:/runs", TRAINER, "train",
        "--config", "configs/smoke.yaml", "--set", "sinks.mlflow=false",
    )  # fmt: skip
    assert container_state(images, "mario-test-training", "{{.State.ExitCode}}") == "0"
    code = (
        "import sqlite3; c = sqlite3.connect('/runs/mario.db');"
        "print(*c.execute('select status, git_commit from runs').fetchone());"
        "print(c.execute('select count(*) from checkpoints').fetchone()[0])"
    )
    status, checkpoints = in_image(
        images, TRAINER, code, "--volume", "mario-test-runs:/runs"
    ).splitlines()  # fmt: skip
    assert status == "finished 0123456789abcdef"
    assert int(checkpoints) >= 1


def test_the_trainer_ends_cleanly_when_it_is_stopped(images: Engine) -> None:
    images.run(
        "run", "--detach", "--name", "mario-test-stopped", *HARDENED, "--network", "none",
        "--volume", "mario-test-stopped:/runs", "--env", "MARIO_METRICS_PORT=9107",
        TRAINER, "train", "--config", "configs/smoke.yaml", "--set", "total_steps=10000000",
        "--set", "sinks.mlflow=false",
    )  # fmt: skip
    wait_until_healthy(images, "mario-test-stopped", 240)
    images.run("stop", "--time", "60", "mario-test-stopped")
    code = int(container_state(images, "mario-test-stopped", "{{.State.ExitCode}}"))
    assert code not in {137, 143}, images.run("logs", "mario-test-stopped").stdout[-2000:]
    check = (
        "import sqlite3; c = sqlite3.connect('/runs/mario.db');"
        "print(c.execute('select status from runs').fetchone()[0])"
    )
    shown = in_image(images, TRAINER, check, "--volume", "mario-test-stopped:/runs")
    assert shown.strip() == "interrupted"


def test_the_serving_image_answers_a_request(images: Engine, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    write_test_artefact(policy, seed=1)
    for path in (policy, *policy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    images.run(
        "create", "--name", "mario-test-carrier", "--volume", "mario-test-policy:/policy", SERVING
    )
    images.run("cp", f"{policy}/.", "mario-test-carrier:/policy")
    images.run(
        "run", "--detach", "--name", "mario-test-serving", *HARDENED, "--network", "none",
        "--volume", "mario-test-policy:/policy:ro", "--env", "MARIO_SERVING_POLICY=/policy",
        "--env", f"MARIO_SERVING_TOKENS={TOKEN}", SERVING,
    )  # fmt: skip
    wait_until_healthy(images, "mario-test-serving", 120)
    code = f"""
import json, urllib.error, urllib.request as u
url = "http://127.0.0.1:3000"
u.urlopen(url + "/readyz", timeout=10)
def ask(headers):
    headers = {{"Content-Type": "application/octet-stream", **headers}}
    return u.urlopen(u.Request(url + "/predict/raw", bytes(4 * 84 * 84), headers), timeout=30)
try:
    ask({{}})
except urllib.error.HTTPError as error:
    print(error.code)
print(ask({{"Authorization": "Bearer {TOKEN}"}}).read().decode())
page = u.urlopen("http://127.0.0.1:3001/metrics", timeout=10).read().decode()
print([line for line in page.splitlines() if line.startswith("mario_serving_version_info")][0])
"""
    done = images.run("exec", "mario-test-serving", "python", "-c", code).stdout.splitlines()
    assert done[0] == "401"
    answer = json.loads(done[1])
    assert "action" in json.dumps(answer)
    assert done[2].endswith(" 1.0")
    images.run("stop", "--time", "30", "mario-test-serving")
    assert container_state(images, "mario-test-serving", "{{.State.ExitCode}}") in {"0", "143"}


def test_serving_refuses_to_listen_without_tokens(images: Engine) -> None:
    done = images.run("run", "--rm", "--init", SERVING, check=False, timeout=120)
    assert done.returncode == 2
    assert "tokens" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_flow_run_of_the_docker_pool_runs_in_the_training_image(
    trainer: Engine, tmp_path: Path
) -> None:
    """The pool and the deployment are those of `mario flows`; the worker is Prefect's own.

    First as deployed: with the GPU that training asks for, which an engine without NVIDIA's runtime
    creates a container for and refuses to start. Then without one, on the engine's cores, where its
    container is stopped while it trains, and another one goes on to its end.
    """
    environment = {
        **trainer.environment,
        "MARIO_TRAINER_IMAGE": TRAINER,
        "MARIO_RUNS_VOLUME": f"{POOL_VOLUME}:/runs",
        "MARIO_DOCKER_NETWORK": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    prefect = str(Path(sys.executable).with_name("prefect"))
    with prefect_server(tmp_path, **environment) as flows:
        flows.mario("flows", "setup", "--pool", "docker")
        flows.mario("flows", "deploy", "pipeline-docker")
        log = tmp_path / "worker.log"
        with server(
            [prefect, "worker", "start", "--pool", "docker", "--type", "docker"],
            log=log, environment=flows.environment, cwd=ROOT,
        ):  # fmt: skip
            with_gpu = flows.start_run("pipeline/pipeline-docker", PARAMETERS)
            state = flows.wait(with_gpu, 600)
            assert state["type"] == "CRASHED", state
            (container,) = _containers_of(trainer, with_gpu)
            asked = container["HostConfig"]
            (request,) = asked["DeviceRequests"]
            assert (request["Driver"], request["Count"]) == ("nvidia", 1)
            assert request["Capabilities"] == [["gpu"]]
            assert asked["ShmSize"] == 2 << 30
            assert asked["Memory"] >= 4 << 30
            assert asked["ReadonlyRootfs"] is True
            assert "could not select device driver" in log.read_text(errors="replace")
            trainer.run("rm", "--force", container["Id"])

            deployment = flows.call("GET", "/deployments/name/pipeline/pipeline-docker")
            asked_for = {
                "parameters": {"parameters": PARAMETERS},
                "job_variables": {"device_requests": []},
                "state": {"type": "SCHEDULED"},
            }
            create = f"/deployments/{deployment['id']}/create_flow_run"
            without = str(flows.call("POST", create, asked_for)["id"])
            _wait_for_steps(flows, without)
            (first,) = _containers_of(trainer, without)
            trainer.run("stop", "--time", str(GRACE_SECONDS), first["Id"])
            state = flows.wait(without, 900, *ENDS_OF_A_PIPELINE)
            first, second = _containers_of(trainer, without)
            shown = "\n".join(_log_of(trainer, each) for each in (first, second))
            assert state["type"] == "COMPLETED", shown
            (crashed,) = (each for each in flows.states(without) if each["type"] == "CRASHED")
            assert crashed["message"].startswith("stopped from outside: run "), shown
            for each in (first, second):
                assert each["Config"]["Image"] == TRAINER
                assert each["State"]["ExitCode"] == 0, shown
                assert not each["HostConfig"]["DeviceRequests"]
            assert "Failed to create the Prefect home" not in shown
            trainer.run("rm", "--force", first["Id"], second["Id"])
    code = (
        "import sqlite3; c = sqlite3.connect('/runs/mario.db');"
        "print(*c.execute('select status, git_commit from runs').fetchone());"
        "print(*[status for status, in c.execute("
        "'select status from run_attempts order by attempt')]);"
        "print(c.execute('select count(*) from verdicts').fetchone()[0])"
    )
    shown = in_image(trainer, TRAINER, code, "--volume", f"{POOL_VOLUME}:/runs").splitlines()
    assert shown == ["finished 0123456789abcdef", "interrupted finished", "1"]


def _wait_for_steps(flows: PrefectServer, flow_run: str) -> None:
    """Return once a flow run's page shows steps trained."""
    deadline = time.monotonic() + 600
    while not float((flows.artifacts(flow_run).get("training-smoke") or {}).get("data") or 0):
        assert time.monotonic() < deadline, flows.log()
        time.sleep(0.5)


def _containers_of(docker: Engine, flow_run: str) -> list[dict[str, Any]]:
    """What the engine knows of a flow run's containers, oldest first."""
    label = f"label=io.prefect.flow-run-id={flow_run}"
    found = docker.run("ps", "--all", "--quiet", "--no-trunc", "--filter", label).stdout.split()
    assert found, "no container was created"
    inspected = json.loads(docker.run("inspect", *found).stdout)
    return sorted(inspected, key=lambda each: str(each["Created"]))


def _log_of(docker: Engine, container: dict[str, Any]) -> str:
    """The end of what a container said."""
    shown = docker.run("logs", container["Id"], check=False)
    return f"--- {container['Name']}\n{shown.stdout[-4000:]}\n{shown.stderr[-4000:]}"
