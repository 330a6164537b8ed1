"""`bentoml build` packs a Bento that serves without the working tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from mario.policy.onnx import OnnxPolicy
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.paths import ROOT
from tests.support.processes import free_port, server


def _environment_without_the_tree(folder: Path) -> Path:
    """Make an environment with the packages of this one, without its editable install.

    The editable install puts the working tree before whatever else is named ``mario``. It works
    through a .pth file, and those are not read in a folder that a .pth file itself names.
    """
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OnnxPolicy:
    return OnnxPolicy(write_test_artefact(tmp_path_factory.mktemp("policy") / "v1"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML home with the Bento of this working tree, whose web page is marked."""
    place = tmp_path_factory.mktemp("bento")
    with (place / "build.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
            cwd=ROOT,
            env=_environment(place / "home") | {"PATH": str(Path(sys.executable).parent)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=120,
        )
    page = _bento(place / "home") / "src" / "serving" / "static" / "index.html"
    page.write_text(page.read_text().replace("<title>", "<title>packed "))
    return place / "home"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(_environment_without_the_tree(tmp_path_factory.mktemp("env") / "env"))


def _environment(home: Path) -> dict[str, str]:
    return {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


def _bento(home: Path) -> Path:
    return next((home / "bentos" / "mario").glob("*/bento.yaml")).parent


def _answers(command: list[str], home: Path, policy: OnnxPolicy, cwd: Path, log: Path) -> None:
    """Serve with a command; check that the Bento's code answers with the policy."""
    port = free_port()
    observations = random_observations(2)
    with server(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        log=log,
        ready=f"http://127.0.0.1:{port}/readyz",
        environment=_environment(home) | {"MARIO_SERVING_POLICY": str(policy.artefact.folder)},
        cwd=cwd,
    ):
        # Only the Bento's page is marked, so the packed code answers.
        assert "<title>packed " in httpx.get(f"http://127.0.0.1:{port}/", timeout=30).text
        answer = httpx.post(
            f"http://127.0.0.1:{port}/predict/raw",
            content=observations.tobytes(),
            headers={"content-type": "application/octet-stream"},
            timeout=30,
        )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["digest"] == policy.artefact.digest
    expected = np.argmax(policy.infer(observations)[0], axis=1).tolist()
    assert [p["action"] for p in document["predictions"]] == expected


@pytest.mark.slow
def test_a_built_bento_serves(home: Path, python: str, policy: OnnxPolicy, tmp_path: Path) -> None:
    packed = _bento(home) / "src"
    assert (packed / "serving" / "static").is_dir()
    assert list(packed.glob("mario/game/*.so")), "the native console belongs to the page"
    assert not (packed / "mario" / "training").exists()
    native = subprocess.run(
        [python, "-c", "import mario.game._native as module; print(module.__file__)"],
        cwd=packed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(native.stdout.strip()).parent == packed / "mario" / "game"
    command = [python, "-m", "bentoml", "serve", str(_bento(home))]
    _answers(command, home, policy, tmp_path, tmp_path / "serve.log")


@pytest.mark.slow
@pytest.mark.parametrize("package", ["mario/__init__.py", "mario/notes.txt"])
def test_a_bento_is_served_by_tag_from_a_folder_with_another_mario(
    home: Path, python: str, policy: OnnxPolicy, tmp_path: Path, package: str
) -> None:
    """BentoML first imports the name before the colon: here another package `mario`."""
    other = tmp_path / package
    other.parent.mkdir()
    other.write_text("# not the one\n")
    command = [python, "-m", "bentoml", "serve", "mario:latest"]
    _answers(command, home, policy, tmp_path, tmp_path / "serve.log")


@pytest.mark.slow
def test_a_bento_refuses_code_from_elsewhere(
    home: Path, policy: OnnxPolicy, tmp_path: Path
) -> None:
    """This environment has an editable install of the project, which takes precedence."""
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "mario:latest", "--port", str(free_port())],
        cwd=tmp_path,
        env=os.environ | _environment(home) | {"MARIO_SERVING_POLICY": str(policy.artefact.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "expected the Bento's own code" in said
    assert "mario serve" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_bentoml_serves_the_working_tree(policy: OnnxPolicy, tmp_path: Path) -> None:
    """`bentoml serve .` serves the service of bentofile.yaml without a build."""
    port = free_port()
    with server(
        [sys.executable, "-m", "bentoml", "serve", ".", "--port", str(port)],
        log=tmp_path / "serve.log",
        ready=f"http://127.0.0.1:{port}/readyz",
        environment=_environment(tmp_path / "home")
        | {"MARIO_SERVING_POLICY": str(policy.artefact.folder)},
        cwd=ROOT,
    ):
        answer = httpx.get(f"http://127.0.0.1:{port}/card", timeout=30)
        assert answer.json()["digest"] == policy.artefact.digest
        # Without options BentoML uses the host of the settings: loopback only.
        listening = [c.laddr.ip for c in psutil.net_connections("tcp4") if c.laddr.port == port]
        assert set(listening) == {"127.0.0.1"}
