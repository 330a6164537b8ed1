"""Several workers follow the ledger: they refuse damaged versions and roll back in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from mario.registry.registry import ModelRegistry
from mario.store.store import ExperimentStore
from serving.launcher import running
from tests.support.onnx_networks import write_test_artefact
from tests.support.serving_load import wait_until
from tests.support.serving_registry import following
from tests.support.store_rows import verdict

ROLLBACK_SECONDS = 5.0
"""From the end of `mario registry rollback` to the last worker; workers poll every 0.2 s."""


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """Versions 1 and 2: 1 is the former champion, 2 the champion."""
    runs = tmp_path / "runs"
    store = ExperimentStore.open(f"sqlite:///{runs / 'mario.db'}")
    registry = ModelRegistry(f"sqlite:///{runs / 'mlflow.db'}", store, runs / "artifacts")
    refs = []
    for number in (1, 2):
        folder = write_test_artefact(tmp_path / f"v{number}", number, constant_action=number).folder
        version = registry.register("mario-1-1", folder).version
        assert version == number
        refs.append((version, registry.resolve("mario-1-1", version).digest))
    registry.promote("mario-1-1", 1, verdict_id=None, promoted_by="test")
    won = verdict(store, refs[1], refs[0])
    registry.promote("mario-1-1", 2, verdict_id=won, promoted_by="test")
    return registry


def _total(url: str, name: str, label: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [x for x in lines if x.startswith(f"mario_serving_{name}{{") and label in x]
    return sum(float(line.split()[-1]) for line in found)


def _all_answer(url: str, version: str) -> bool:
    """Whether both workers answer with a version: twenty new connections in a row."""
    return all(httpx.get(f"{url}/readyz").json()["version"] == version for _ in range(20))


def test_two_workers_follow_the_ledger_and_refuse_a_damaged_version(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    settings = following(
        registry,
        tmp_path / "cache",
        workers=2,
    )
    environment = {**os.environ, "MARIO_RUNS_DIR": str(tmp_path / "runs")}
    for name in ("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)

    def rollback(version: int) -> None:
        program = Path(sys.executable).parent / "mario"
        command = [program, "registry", "rollback", "--version", str(version), "--note", "test"]
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)

    with running(settings, ready_seconds=120) as url:
        assert wait_until(lambda: _total(url, "version_info", 'version="2"') == 2, 60)
        assert _all_answer(url, "2")

        # Only half of the next champion was uploaded.
        first = (tmp_path / "v1" / "policy.onnx").read_bytes()
        artefacts = (tmp_path / "runs" / "artifacts").rglob("policy.onnx")
        [upload] = [path for path in artefacts if path.read_bytes() == first]
        upload.write_bytes(first[: len(first) // 2])
        rollback(1)
        assert wait_until(lambda: _total(url, "swaps_total", 'result="refused"') >= 2)
        assert _all_answer(url, "2")
        assert wait_until(
            lambda: "policy.onnx" in str(httpx.get(f"{url}/card").json()["last_error"])
        )

        # When the upload is complete, the workers swap by themselves.
        upload.write_bytes(first)
        assert wait_until(lambda: _total(url, "version_info", 'version="1"') == 2, 60)
        assert _all_answer(url, "1")
        assert _total(url, "version_info", 'version="2"') == 0

        # Roll back: the version is in the cache, so only the ledger is read.
        for version in (2, 1, 2):  # the machine may stall, but not always
            rollback(version)
            started = time.monotonic()
            served = f'version="{version}"'
            assert wait_until(lambda label=served: _total(url, "version_info", label) == 2, 60)
            took = time.monotonic() - started
            print(f"\nrolled back {took:.2f} s after the command ended")
            assert _all_answer(url, str(version))
            if took < ROLLBACK_SECONDS:
                break
        assert took < ROLLBACK_SECONDS
    registry.store.close()
