"""`bentoml build` packs a Bento that serves by itself, away from the working tree."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import numpy as np
import pytest

from mario.policy.onnx import OnnxPolicy
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.processes import free_port, server

ROOT = Path(__file__).parents[2]


def _environment_without_the_tree(folder: Path) -> Path:
    """Make an environment with this one's packages but not its editable install of the project.

    The editable install puts the working tree before whatever else is named ``mario``. It works
    through a .pth file, and those are not read in a folder that a .pth file itself names.
    """
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_built_bento_serves(tmp_path: Path) -> None:
    policy = OnnxPolicy(write_test_artefact(tmp_path / "v1"))
    environment = {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    with (tmp_path / "build.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
            cwd=ROOT,
            env=environment | {"PATH": str(Path(sys.executable).parent)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=120,
        )
    bento = next((tmp_path / "home" / "bentos" / "mario").glob("*/bento.yaml")).parent
    packed = bento / "src"
    assert (packed / "serving" / "static").is_dir()
    assert list(packed.glob("mario/game/*.so")), "the native console belongs to the page"
    assert not (packed / "mario" / "training").exists()

    page = packed / "serving" / "static" / "index.html"
    page.write_text(page.read_text().replace("<title>", "<title>packed "))

    python = str(_environment_without_the_tree(tmp_path / "env"))
    native = subprocess.run(
        [python, "-c", "import mario.game._native as module; print(module.__file__)"],
        cwd=packed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(native.stdout.strip()).parent == packed / "mario" / "game"

    port = free_port()
    observations = random_observations(2)
    with server(
        [
            *(python, "-m", "bentoml", "serve", str(bento)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        log=tmp_path / "serve.log",
        ready=f"http://127.0.0.1:{port}/readyz",
        environment=environment | {"MARIO_SERVING_POLICY": str(policy.artefact.folder)},
        cwd=tmp_path,
    ):
        # The packed code answers, not the working tree's: only its page was marked.
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
