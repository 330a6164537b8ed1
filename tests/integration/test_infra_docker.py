"""Both images, built and run by a real Docker engine: steps trained, a request served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_engine import (
    Engine,
    build_context,
    container_state,
    engine,
    wait_until_healthy,
)
from tests.support.onnx_networks import write_test_artefact

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(1800)]

TRAINER, SERVING = "mario-trainer:test", "mario-serving:test"
#: As compose.yaml and k8s/ run them.
HARDENED = (
    "--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--tmpfs", "/tmp", "--tmpfs", "/home/mario:uid=10001,gid=10001",
)  # fmt: skip
TOKEN = "a-token-of-this-test-only"


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as running:
        _clear(running)
        yield running
        _clear(running)


def _clear(running: Engine) -> None:
    """Remove what these tests make: the engine may be one that others use."""
    for kind, listed in (("container", ("ps", "--all")), ("volume", ("volume", "ls"))):
        form = "{{.Names}}" if kind == "container" else "{{.Name}}"
        found = running.run(*listed, "--filter", "name=mario-test-", "--format", form)
        if names := found.stdout.split():
            running.run(kind, "rm", "--force", *names)


@pytest.fixture(scope="module")
def images(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    context = build_context(tmp_path_factory.mktemp("context"))
    base = docker.base_image()
    revision = ("--build-arg", "REVISION=0123456789abcdef")
    docker.build("serving.Dockerfile", SERVING, context, base, *revision)
    docker.build("trainer.Dockerfile", TRAINER, context, base, *revision)
    return docker


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
    "torch", "stable_baselines3", "prefect", "mario.training.trainer", "mario.imitation.clone",
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
