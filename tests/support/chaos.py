"""The trainer as a process that a test starts, watches, kills and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from mario.jobs.context import JobSettings
from mario.training.checkpoint import TENSORS_FILE, list_checkpoints, read_checkpoint
from mario.training.run_folder import BEST_FOLDER, CHECKPOINTS_FOLDER
from tests.support.paths import ROOT

#: Bounds against hanging, not measurements: a busy machine takes minutes to import torch.
PATIENCE_SECONDS = 300.0


class Trainer:
    """One training run of `mario train`, over any number of processes.

    Attributes:
        kills: how often it was killed.
        starts: how often it was started.
        run_id: the run, once its first process has entered it into the store.
    """

    def __init__(
        self,
        config: Path,
        settings: JobSettings,
        log: Path,
        *changes: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self._more = dict(environment or {})
        self.log = log
        self.kills = self.starts = 0
        self.run_id = ""
        self._config = config
        self._changes = [word for change in changes for word in ("--set", change)]
        self._process: subprocess.Popen[bytes] | None = None
        self._others = self._runs()

    def _runs(self) -> set[str]:
        return {path.parent.name for path in self.settings.runs_dir.glob("run-*/config.yaml")}

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.settings.run_dir(self.run_id)

    @property
    def alive(self) -> bool:
        """Whether a process of it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell `mario` the addresses and the folder."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MARIO_DATABASE_URL": self.settings.database_url,
            "MLFLOW_TRACKING_URI": self.settings.tracking_uri,
            "MARIO_RUNS_DIR": str(self.settings.runs_dir),
            **self._more,
        }

    def mario(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `mario` command with the same addresses, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "mario.cli", *arguments], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS, check=False,
        )  # fmt: skip

    def ensure_running(self) -> None:
        """Start the trainer, or resume its run; do nothing if it runs."""
        if self.alive:
            return
        what = ("--resume", self.run_id) if self.run_id else (
            "--config", str(self._config), *self._changes,
        )  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mario.cli", "train", *what], cwd=ROOT,
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    def wait_for_run(self) -> None:
        """Wait until the first process has made the run's folder."""
        self._wait(lambda: bool(self._runs() - self._others), "the run")
        (self.run_id,) = self._runs() - self._others

    def wait_for_checkpoints(self, count: int) -> None:
        """Wait for so many new checkpoints."""
        for _ in range(count):
            before = self.newest_steps()
            self._wait(lambda before=before: self.newest_steps() > before, "a checkpoint")

    def wait_for_words(self, *words: str) -> None:
        """Wait until the trainer has logged one of these once more."""
        before = self.said(*words)
        self._wait(lambda: self.said(*words) > before, " or ".join(map(repr, words)))

    def said(self, *words: str) -> int:
        """How often the trainer has logged these."""
        log = self.log.read_text(errors="replace")
        return sum(log.count(one) for one in words)

    def newest_steps(self) -> int:
        """Steps of the newest checkpoint; -1 before the first."""
        names = [path.name for path in list_checkpoints(self.folder / CHECKPOINTS_FOLDER)]
        return int(names[0].split("-")[1]) if names else -1

    def kill(self) -> None:
        """Send SIGKILL, and check that every checkpoint is complete."""
        assert self._process is not None
        assert self._process.poll() is None, f"ended by itself\n{self.tail()}"
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.kills += 1
        for folder in (CHECKPOINTS_FOLDER, BEST_FOLDER):
            for path in list_checkpoints(self.folder / folder):
                read_checkpoint(path)  # raises if it is not

    def damage_newest_checkpoint(self) -> None:
        """Cut the newest checkpoint in half."""
        newest = list_checkpoints(self.folder / CHECKPOINTS_FOLDER)[0] / TENSORS_FILE
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])

    def finish(self) -> int:
        """Wait until the trainer ends; returns its exit code."""
        assert self._process is not None
        return self._process.wait(4 * PATIENCE_SECONDS)

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Kill the trainer if it runs."""
        if self._process is not None and self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self, done: object, what: str) -> None:
        assert callable(done)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            assert self._process is not None
            ended = self._process.poll()
            assert ended is None or done(), f"ended with {ended} before {what}\n{self.tail()}"
            assert time.monotonic() < deadline, f"no {what} for minutes\n{self.tail()}"
            time.sleep(0.01)

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-3000:]
