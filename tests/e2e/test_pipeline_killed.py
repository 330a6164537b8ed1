"""A pipeline that is killed at any stage leaves nothing half-done, and the next one works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mario.jobs.context import JobContext, JobSettings
from tests.support.killed_pipeline import MOMENTS
from tests.support.paths import ROOT

MODEL = "mario-1-1"
pytestmark = pytest.mark.slow


def run(runs_dir: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.killed_pipeline", str(runs_dir), moment],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def check_invariants(context: JobContext) -> None:
    """No alias without a ledger entry, and nothing half-registered can be loaded."""
    registry = context.registry
    champion = registry.store.ledger.champion(MODEL)
    for version in registry.versions(MODEL):
        if "champion" in version.aliases:
            assert champion is not None
            assert champion.version == version.version
        if version.state == "complete":
            assert version.version is not None
            registry.require_artefact(registry.resolve(MODEL, version.version))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(moment: str, tmp_path: Path) -> None:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    killed = run(context.settings.runs_dir, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    check_invariants(context)

    again = run(context.settings.runs_dir, "never")
    assert again.returncode == 0, again.stderr[-2000:]
    check_invariants(context)
    registry = context.registry
    usable = [v for v in registry.versions(MODEL) if v.state == "complete"]
    assert len(usable) == 1, "registered once, however often it was tried"
    assert usable[0].champion
    assert "champion" in usable[0].aliases
    assert len(registry.store.ledger.history(MODEL)) == 1


def test_killed_while_training(tmp_path: Path) -> None:
    """A real training run dies by SIGKILL; store check calls it killed; it can be resumed."""
    environment = {**os.environ, "MARIO_RUNS_DIR": str(tmp_path / "runs")}
    command = [
        *(sys.executable, "-m", "mario.cli", "train", "--config", "configs/smoke.yaml"),
        *("--set", "total_steps=100000000", "--set", "checkpoint.every_steps=1024"),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True
        )
        checkpoints = (tmp_path / "runs").glob
        deadline = time.monotonic() + 300
        while not list(checkpoints("run-*/checkpoints/steps-*")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.kill()
        process.wait()
    run_id = next((tmp_path / "runs").glob("run-*")).name

    def mario(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mario.cli", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    found = mario("store", "check", "--replay")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "killed" in found.stdout
    refused = mario("register", run_id)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert "Traceback" not in refused.stderr

    resumed = subprocess.Popen(
        [sys.executable, "-m", "mario.cli", "train", "--resume", run_id],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert resumed.stdout is not None
        line = resumed.stdout.readline()
        while "%" not in line:
            assert line, "the resumed run ended without training"
            line = resumed.stdout.readline()
        resumed.send_signal(signal.SIGTERM)
        rest = resumed.stdout.read()
        assert resumed.wait(timeout=60) == 130
        assert "interrupted" in rest
    finally:
        resumed.kill()
        resumed.wait()


def children(pid: int) -> dict[int, str]:
    """Processes started by `pid`, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended meanwhile
        if parent == pid:
            found[int(folder.name)] = command
    return found


def test_a_killed_pipeline_leaves_no_server(tmp_path: Path) -> None:
    """The Prefect server of an in-process pipeline ends with it, however that ends."""
    environment = {**os.environ, "MARIO_RUNS_DIR": str(tmp_path / "runs")}
    environment.pop("PREFECT_API_URL", None)
    command = [
        *(sys.executable, "-m", "mario.cli", "pipeline", "--config", "configs/smoke.yaml"),
        *("--set", "total_steps=100000000", "--set", "checkpoint.every_steps=1024"),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 280
            while not list((tmp_path / "runs").glob("run-*/checkpoints/steps-*")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            servers = [
                pid
                for pid, command in children(process.pid).items()
                if "embedded_server" in command
            ]
            assert len(servers) == 1
            assert Path(f"/proc/{servers[0]}").exists()
        finally:
            process.kill()
            process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{servers[0]}").exists():
        assert time.monotonic() < deadline, "the server outlives the pipeline"
        time.sleep(0.1)


#: What can be seen of a pipeline from outside when each of its stages has begun.
STAGES = {
    "preparing": lambda runs, log: (runs / "mario.db").exists(),
    "training": lambda runs, log: list(runs.glob("run-*")),
    "screening": lambda runs, log: "registered" in log.read_text(),
    "judging": lambda runs, log: "screening:" in log.read_text(),
    "summary": lambda runs, log: list(runs.glob("run-*/median-episode.mp4")),
}


@pytest.mark.timeout(1200)
def test_the_command_itself_killed_in_each_stage_and_then_run(tmp_path: Path) -> None:
    """`mario pipeline`, as `make demo` calls it; every kill leaves its remains to the next."""
    runs = tmp_path / "runs"
    environment = {**os.environ, "MARIO_RUNS_DIR": str(runs), "PYTHONUNBUFFERED": "1"}
    environment.pop("PREFECT_API_URL", None)
    command = [
        *(sys.executable, "-m", "mario.cli", "pipeline", "--config", "configs/smoke.yaml"),
        *("--set", "evaluation.screening_units=4", "--set", "gate.primary=progress"),
        *("--set", "gate.max_units=6", "--next-seed"),
    ]
    for stage, begun in STAGES.items():
        log = tmp_path / f"{stage}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            try:
                deadline = time.monotonic() + 300
                while not begun(runs, log):
                    assert process.poll() is None, f"{stage}: {log.read_text()}"
                    assert time.monotonic() < deadline, f"{stage}: {log.read_text()}"
                    time.sleep(0.02)
            finally:
                process.kill()
                process.wait()
        if stage != "preparing":
            check_invariants(JobContext(JobSettings.embedded(runs)))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    check_invariants(JobContext(JobSettings.embedded(runs)))
