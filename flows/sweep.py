"""A sweep as a Prefect flow: some workers on this machine; the same flow elsewhere adds to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import stages, tenure
from flows.attended import GRACE_SECONDS
from flows.decisions import RETRY_DELAYS_SECONDS, Ending
from flows.parameters import FlowParameters
from flows.reporting import show_page
from mario.errors import FlowError
from mario.jobs.runtime import Runtime
from mario.jobs.sweep import describe_best, describe_sweep, open_sweep
from mario.jobs.sweep_config import load_sweep
from mario.jobs.train import stopping_on_signals

_LOOK_EVERY_SECONDS = 0.5


class SweepParameters(FlowParameters):
    """A sweep to work on.

    Attributes:
        name: what it is called; flow runs with the same name share its trials.
        file: path of the sweep's YAML.
        workers: processes of this flow run.
        overrides: ``key=value`` each; they win over the sweep's file.
    """

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
    """The command of one worker: what a person would type on another machine.

    It ends, and gives its trial back, when this process is gone: a flow run that is killed leaves
    no worker behind that would train beside those of its next attempt.
    """
    overrides = [word for override in parameters.overrides for word in ("--set", override)]
    command = ["sweep", "run", parameters.name, "--config", parameters.file, *overrides]
    return [sys.executable, "-m", "flows.attended", str(os.getpid()), "mario.cli", *command]


def work(parameters: SweepParameters, stop: threading.Event) -> int:
    """Run one worker as a process of its own until it ends, or `stop` asks it to.

    A process of its own, so that a worker that is killed takes neither the flow run nor the other
    workers with it.

    Returns:
        Its exit status, 0.

    Raises:
        FlowError: the worker ended badly; its trial is taken up by the next one.
    """
    # A session of its own: Ctrl-C reaches the flow run, which asks the workers to end.
    process = subprocess.Popen(
        worker_command(parameters), env=os.environ.copy(), start_new_session=True
    )
    try:
        while process.poll() is None:
            if stop.is_set():
                process.send_signal(signal.SIGTERM)
                process.wait(GRACE_SECONDS)
                break
            time.sleep(_LOOK_EVERY_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0 and not stop.is_set():
        raise FlowError(
            f"a worker of sweep {parameters.name} ended with {process.returncode}; expected 0; its "
            "own message is in the log above; its trial goes on with the next worker"
        )
    return int(process.returncode)


def _run_name() -> str:
    return f"sweep {dict(flow_run.parameters.get('parameters') or {}).get('name', '')}"


@flow(
    name="sweep",
    flow_run_name=_run_name,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=64),  # type: ignore[arg-type]
)
def sweep(parameters: SweepParameters) -> State[Any]:
    """Work on a sweep until all of its trials have ended, wherever they run.

    Ends as Completed, or Interrupted where it was told to end: started again, it goes on.
    """
    if (too_often := stages.exhausted()) is not None:
        return too_often
    settings = load_sweep(parameters.file, parameters.overrides)
    runtime = Runtime.from_environment()
    # A sweep that is none, or another than its name stands for, is refused before a worker starts.
    stages.run_stage(
        "prepare", parameters.name, lambda: open_sweep(parameters.name, settings, runtime)
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
        return work(parameters, stop)

    with stopping_on_signals(stop), tenure.watching(stop):
        running = [worker.submit(number) for number in range(1, parameters.workers + 1)]
        wait(running)
        states = [future.state for future in running]
    tenure.give_way()
    lines = [describe_sweep(parameters.name, runtime)]
    if stop.is_set():
        show_page(f"sweep-{parameters.name}", f"Sweep {parameters.name}", lines)
        return stages.stopped(Ending("CANCELLED", "Interrupted", lines[0].splitlines()[-1]))
    if not any(state.is_completed() for state in states):
        raise FlowError(
            f"every worker of sweep {parameters.name} failed; expected one that works; see their "
            "messages in the log"
        )
    best = describe_best(parameters.name, runtime)
    show_page(f"sweep-{parameters.name}", f"Sweep {parameters.name}", [best, *lines])
    return stages.to_state(Ending("COMPLETED", "Completed", best.splitlines()[0]), best)
