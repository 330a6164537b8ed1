"""Test the first process of a flow run's container: where SIGTERM goes, and the exit status."""

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

#: Imitates `prefect flow-run execute`, whose child in another session is the flow run's process.
PREFECT = """
    import pathlib, signal, subprocess, sys
    folder = pathlib.Path(sys.argv[1])
    if "handles" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: (folder / "prefect-term").touch() or sys.exit(9))
    (folder / "prefect").touch()
    if "alone" in sys.argv:
        signal.pause()
    sys.exit(subprocess.call([sys.executable, "-c", sys.argv[2], str(folder)],
                             start_new_session=True))
"""
#: Imitates the flow run's process, which imports for a while before it handles SIGTERM.
ENGINE = """
    import pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    (folder / "engine").touch()
    time.sleep(1)
    signal.signal(signal.SIGTERM, lambda *_: (folder / "engine-term").touch() or sys.exit(0))
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


@pytest.mark.parametrize("words", [(), ("handles",)])
def test_sigterm_goes_to_training_and_not_to_prefect(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    process = flow_run(tmp_path, *words)
    wait_for(tmp_path / "training")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, "Prefect exited by itself, after its child"
    assert (tmp_path / "engine-term").exists()
    assert not (tmp_path / "prefect-term").exists()


def test_sigterm_waits_until_a_process_handles_it(tmp_path: Path) -> None:
    """SIGTERM would kill a process without a handler, which could not report why."""
    process = flow_run(tmp_path)
    wait_for(tmp_path / "engine")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert (tmp_path / "engine-term").exists()


def test_sigterm_goes_to_prefect_before_training_exists(tmp_path: Path) -> None:
    process = flow_run(tmp_path, "handles", "alone")
    wait_for(tmp_path / "prefect")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 9
    assert (tmp_path / "prefect-term").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("pass", 0)],
)
def test_the_exit_status_is_that_of_the_command(code: str, status: int) -> None:
    assert container(sys.executable, "-c", code).wait(120) == status


def test_the_command_inherits_no_blocked_signals() -> None:
    code = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    assert container(sys.executable, "-c", code).wait(120) == 0


def test_process_1_receives_sigterm(tmp_path: Path) -> None:
    """The kernel drops signals that process 1 of a pod neither handles nor blocks."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no process namespace can be made here (needs unshare and its right)")
    code = textwrap.dedent(PREFECT)
    command = [sys.executable, *ENTRY_COMMAND[1:], sys.executable, "-c", code, str(tmp_path), "",
               "handles", "alone"]  # fmt: skip
    process = subprocess.Popen([*alone, *command], cwd=ROOT)
    wait_for(tmp_path / "prefect")
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    assert process.wait(120) == 9
    assert (tmp_path / "prefect-term").exists()
