"""The flow `sweep`: search hyperparameters with several worker processes on this machine.

Runs of the flow with the same sweep name share its trials, on any number of machines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from typing import IO, Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import newer_attempt, stages
from flows.artifacts import safely, show_page
from flows.child_process import GRACE_SECONDS
from flows.decisions import RETRY_DELAYS_SECONDS, Ending
from flows.parameters import FlowParameters
from mario.config.sweep import load_sweep
from mario.errors import FlowError
from mario.jobs.context import JobContext
from mario.jobs.stop_signals import stopping_on_signals
from mario.jobs.sweeps.describe import describe_best, describe_sweep
from mario.jobs.sweeps.worker import open_sweep

_POLL_SECONDS = 0.5
#: How much of a failed worker's last output goes into the error.
_LAST_LINES, _LINE_CHARACTERS = 5, 300


class SweepParameters(FlowParameters):
    """A sweep to work on."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$",
        description="What the sweep is called; runs with the same name share its trials.",
    )
    file: str = Field("configs/sweeps/ppo_1-1.yaml", description="Path of the sweep's YAML.")
    workers: int = Field(
        1, ge=1, le=64, description="Workers of this flow run; each is a process that trains."
    )
    overrides: tuple[str, ...] = Field((), description="key=value each, such as trials=80.")


def worker_command(parameters: SweepParameters) -> list[str]:
    """Build the command of one worker: `mario sweep run` as a child process.

    The worker exits, and returns its trial to the queue, when this process dies: else the workers
    of a killed flow run would train beside those of its next attempt.
    """
    overrides = [word for override in parameters.overrides for word in ("--set", override)]
    command = ["sweep", "run", parameters.name, "--config", parameters.file, *overrides]
    return [sys.executable, "-m", "flows.child_process", str(os.getpid()), "mario.cli", *command]


class WorkerOutput:
    """A worker's output, which is forwarded to the flow run's log.

    The worker writes to a file: it may outlive this process to return its trial, and a write to a
    pipe that nobody reads would kill it.

    Attributes:
        last: the last lines.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Read what a process writes to `file`, without moving the file's position.

        Args:
            file: open for reading; the process has it as its output and its position.
        """
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self._file = file
        self._read = 0
        self._incomplete = b""

    def forward(self, *, ended: bool = False) -> None:
        """Forward new lines.

        Args:
            ended: whether the process has exited, so that the last line may lack its end.
        """
        while new := os.pread(self._file.fileno(), 65536, self._read):
            self._read += len(new)
            *lines, self._incomplete = (self._incomplete + new).split(b"\n")
            for line in lines:
                self._line(line)
        if ended:
            self._line(self._incomplete)
            self._incomplete = b""

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self.last.append(text[:_LINE_CHARACTERS])
            stages.say(text)


def run_worker(parameters: SweepParameters, stop: threading.Event) -> int:
    """Run one worker as a child process until it exits or `stop` is set.

    In a process of its own, a worker that is killed stops neither the flow run nor other workers.

    Returns:
        The worker's exit status.

    Raises:
        FlowError: the worker failed; the message has its last output. Another worker takes its
            trial over.
    """
    with tempfile.TemporaryFile() as file:
        # In a session of its own Ctrl-C reaches the flow run only, which stops the workers.
        process = subprocess.Popen(
            worker_command(parameters),
            env=os.environ.copy(),
            start_new_session=True,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        output = WorkerOutput(file)
        try:
            while process.poll() is None:
                output.forward()
                if stop.is_set():
                    process.send_signal(signal.SIGTERM)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE_SECONDS)
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            output.forward(ended=True)
    if process.returncode != 0 and not stop.is_set():
        raise FlowError(
            f"a worker of sweep {parameters.name} exited with {process.returncode}; expected 0; "
            f"its last output: {' | '.join(output.last) or 'none'}; another worker takes its trial "
            "over"
        )
    return int(process.returncode)


def _run_name() -> str:
    return f"sweep {SweepParameters.of_this_run().name}"


@flow(
    name="sweep",
    flow_run_name=_run_name,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
)
def sweep(parameters: SweepParameters) -> State[Any]:
    """Work on a sweep until all of its trials have ended, on any machine.

    Ends as Completed, Failed, or Interrupted if it was stopped; a new run continues the sweep.
    """
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    settings = load_sweep(parameters.file, parameters.overrides)
    stages.check_machine(settings.base, workers=parameters.workers)
    # Before a worker starts, refuse an invalid sweep and one that differs from the stored one.
    with JobContext.open() as context:
        stages.run_stage(
            "prepare", parameters.name, lambda: open_sweep(parameters.name, settings, context)
        )
    stop = threading.Event()

    @task(
        name="worker",
        task_run_name="worker {number} of " + parameters.name,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=list(RETRY_DELAYS_SECONDS),
        persist_result=False,
    )
    def worker(number: int) -> int:
        return run_worker(parameters, stop)

    with stopping_on_signals(stop), newer_attempt.stopping_if_superseded(stop):
        running = [worker.submit(number) for number in range(1, parameters.workers + 1)]
        wait(running)
        states = [future.state for future in running]
    newer_attempt.stop_if_superseded()
    if stop.is_set():
        # Without retries: a flow run that was stopped does not wait for the database.
        with JobContext.open() as context:
            said = safely("the sweep", lambda: describe_sweep(parameters.name, context))
        said = said or f"sweep {parameters.name} was interrupted, and its database is unreachable"
        show_page(f"sweep-{parameters.name}", f"Sweep {parameters.name}", [said])
        return stages.state_after_stop(Ending("CANCELLED", "Interrupted", said.splitlines()[-1]))
    if not any(state.is_completed() for state in states):
        raise FlowError(
            f"every worker of sweep {parameters.name} failed; expected one to succeed; the first: "
            f"{states[0].message}"
        )

    with JobContext.open() as context:
        best, trials = stages.run_stage(
            "describe",
            parameters.name,
            lambda: (
                describe_best(parameters.name, context),
                describe_sweep(parameters.name, context),
            ),
        )
    show_page(f"sweep-{parameters.name}", f"Sweep {parameters.name}", [best, trials])
    return stages.to_state(Ending("COMPLETED", "Completed", best.splitlines()[0]), best)
