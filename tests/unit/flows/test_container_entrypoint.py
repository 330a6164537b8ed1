"""The first process of a flow run's container: who gets SIGTERM, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flows.container_entrypoint import ENTRY_COMMAND
from tests.support.paths import ROOT

#: As `prefect flow-run execute`: the flow run's process is its child, in a session of its own.
PREFECT = """
    import pathlib, signal, subprocess, sys
    folder = pathlib.Path(sys.argv[1])
    if "listens" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: (folder / "prefect-heard").touch() or sys.exit(9))
    (folder / "prefect").touch()
    if "alone" in sys.argv:
        signal.pause()
    sys.exit(subprocess.call([sys.executable, "-c", sys.argv[2], str(folder)],
                             start_new_session=True))
"""
#: As the flow run's process: it imports for a while, then it takes SIGTERM.
ENGINE = """
    import pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    (folder / "engine").touch()
    time.sleep(1)
    signal.signal(signal.SIGTERM, lambda *_: (folder / "engine-heard").touch() or sys.exit(0))
    (folder / "training").touch()
    signal.pause()
"""


def container(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *ENTRY_COMMAND[1:], *command], cwd=ROOT)


def flow_run(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    prefect, engine = textwrap.dedent(PREFECT), textwrap.dedent(ENGINE)
    return container(sys.executable, "-c", prefect, str(folder), engine, *words)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@pytest.mark.parametrize("words", [(), ("listens",)])
def test_training_hears_it_and_prefect_does_not(tmp_path: Path, words: tuple[str, ...]) -> None:
    process = flow_run(tmp_path, *words)
    wait_for(tmp_path / "training")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, "Prefect ended by itself, after what it ran"
    assert (tmp_path / "engine-heard").exists()
    assert not (tmp_path / "prefect-heard").exists()


def test_it_waits_for_somebody_who_listens(tmp_path: Path) -> None:
    """A signal that nobody handles would end a process that can say nothing of it."""
    process = flow_run(tmp_path)
    wait_for(tmp_path / "engine")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert (tmp_path / "engine-heard").exists()


def test_before_there_is_training_prefect_hears_it(tmp_path: Path) -> None:
    process = flow_run(tmp_path, "listens", "alone")
    wait_for(tmp_path / "prefect")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 9
    assert (tmp_path / "prefect-heard").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)],
)
def test_its_status_is_the_command_s(code: str, status: int) -> None:
    assert container(sys.executable, "-c", code).wait(120) == status


def test_a_command_gets_signals_as_if_it_had_been_started_alone() -> None:
    code = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    assert container(sys.executable, "-c", code).wait(120) == 0


def test_as_process_1_it_hears_what_the_kernel_would_drop(tmp_path: Path) -> None:
    """In a pod it is process 1, which gets no signal that it neither handles nor blocks."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no process namespace can be made here (needs unshare and its right)")
    code = textwrap.dedent(PREFECT)
    command = [sys.executable, *ENTRY_COMMAND[1:], sys.executable, "-c", code, str(tmp_path), "",
               "listens", "alone"]  # fmt: skip
    process = subprocess.Popen([*alone, *command], cwd=ROOT)
    wait_for(tmp_path / "prefect")
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert process.wait(120) == 9
    assert (tmp_path / "prefect-heard").exists()
