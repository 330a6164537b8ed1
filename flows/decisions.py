"""What flows decide, in plain functions that know nothing of Prefect.

Which training run belongs to a flow run, what is tried again, how a run ends, what it needs.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import RunStatus
from mario.errors import MarioError, RegistryUnavailableError, RunIsBusy
from mario.evaluation.verdict import GateDecision
from mario.store.engine import StoreUnavailableError

#: How often a flow run may begin, the first time included; each crash costs one.
MAX_ATTEMPTS = 4
#: Waits before a stage of a deployed flow run is tried again, in s.
RETRY_DELAYS_SECONDS = (10, 30, 90, 180)
#: How often a version is judged anew as another one was promoted meanwhile.
MAX_JUDGEMENTS = 3
#: What libraries and networks are given of memory, and what they need at the very least.
_LIBRARIES_GIB, _LEAST_LIBRARIES_GIB = 4, 0.5

StateType = Literal["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]


@dataclass(frozen=True)
class Ending:
    """How a flow run ends.

    Attributes:
        type: what Prefect makes of it.
        name: what the state is called.
        message: why, in words.
    """

    type: StateType
    name: str
    message: str


def run_id_for(flow_run_id: UUID | str) -> str:
    """The training run that belongs to a flow run: the same in each of its attempts."""
    return f"run-{UUID(str(flow_run_id)).hex}"


def worth_retrying(error: BaseException) -> bool:
    """Whether the same call may succeed later: something was away, nothing was wrong.

    What a person has to mend (a bad configuration, a broken artefact, another promoter's success)
    stays as it is however often it is tried.
    """
    if isinstance(error, StoreUnavailableError | RegistryUnavailableError | RunIsBusy):
        return True
    if isinstance(error, MarioError):
        return False
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    if isinstance(error, OSError | TimeoutError | sqlite3.OperationalError):
        return True
    # Names, so that no client library is imported to recognise its errors.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "TransportError", "ConnectionError"})


def ending_of_training(
    status: str, reason: str, run_id: str, steps: int, *, waited: bool = False
) -> Ending | None:
    """How a flow run ends after training; None where it goes on.

    A collapse is a result, with a name of its own: nothing failed, and trying again would give
    the same.
    """
    if status == RunStatus.FINISHED:
        return None
    if status in (RunStatus.COLLAPSED, RunStatus.DIVERGED):
        return Ending(
            "CANCELLED",
            "Collapsed",
            f"run {run_id} {status} after {steps:,} steps: {reason}; its best checkpoint is kept",
        )
    if waited:
        return Ending("CANCELLED", "Interrupted", reason)
    return Ending(
        "CANCELLED",
        "Interrupted",
        f"run {run_id} was interrupted at {steps:,} steps; go on with: "
        f"mario train --resume {run_id}",
    )


def ending_of_stop(ending: Ending, *, deployed: bool, cancelling: bool) -> Ending:
    """How a flow run ends that was told to stop.

    A person who cancels means it. A machine that shuts down (an evicted pod) stops a deployed run
    in the same way, and that run is to be gone on with.
    """
    if not deployed or cancelling:
        return ending
    return Ending("CRASHED", "Crashed", f"stopped from outside: {ending.message}")


def ending_of_verdict(decision: str, version: int, lines: Sequence[str]) -> Ending:
    """How a pipeline ends once the gate has spoken: both are good ends."""
    name = {GateDecision.PROMOTE: "Promoted", "same": "Unchanged"}.get(decision, "Kept")
    said = lines[0] if lines else decision
    return Ending("COMPLETED", name, f"version {version}: {said}")


def promoted_before(decision: str, is_champion: bool, attempt: int) -> bool:
    """Whether an earlier attempt of this flow run promoted the version, and was killed after it.

    Then there is nothing to judge, but the alias and the event that tells of it may be missing. In
    a first attempt somebody asks for what is champion already: nothing is promoted, nobody is told.

    Args:
        decision: what the gate said.
        is_champion: whether this very version is champion.
        attempt: 1 for the flow run's first.
    """
    return decision == "same" and is_champion and attempt > 1


def gave_up(run_count: int) -> Ending | None:
    """The end of a flow run that crashed too often; None while it may go on."""
    if run_count <= MAX_ATTEMPTS:
        return None
    return Ending(
        "FAILED",
        "Failed",
        f"got attempt {run_count} of this flow run; expected at most {MAX_ATTEMPTS}; look at why "
        "the others crashed, and start it again by hand",
    )


@dataclass(frozen=True)
class Resources:
    """What a flow run asks of a machine.

    Attributes:
        gpus: accelerators.
        memory_gib: main memory.
        shared_memory_gib: `/dev/shm`, where processes of PyTorch meet.
        cpus: cores.
    """

    gpus: int
    memory_gib: int
    shared_memory_gib: int
    cpus: int


def resources_for(config: ExperimentConfig | None) -> Resources:
    """What training an experiment needs; without one, what evaluation and judging need.

    Memory is 4 GiB for libraries and networks, 16 MiB an environment, and the buffer of steps that
    the algorithm learns from.
    """
    if config is None:
        return Resources(gpus=0, memory_gib=4, shared_memory_gib=1, cpus=2)
    memory_gib = _LIBRARIES_GIB + 16 * config.environments / 1024 + _buffer_gib(config)
    return Resources(
        gpus=0 if config.network.device == "cpu" else 1,
        memory_gib=math.ceil(memory_gib),
        shared_memory_gib=1 if config.network.device == "cpu" else 2,
        cpus=max(2, min(16, config.environments // 4)),
    )


def _buffer_gib(config: ExperimentConfig) -> float:
    """GiB that the algorithm's buffer takes at most; a step is four 84 × 84 frames."""
    steps = config.algorithm.buffered_steps(
        environments=config.environments, total_steps=config.total_steps
    )
    return steps * 4 * 84 * 84 / 2**30


@dataclass(frozen=True)
class Machine:
    """What a process may use of the machine it is on; see `flows/container_limits.py`.

    Attributes:
        memory_gib: main memory; None where nothing limits it.
        cpus: cores; None where nothing limits them.
        cuda: whether there is a GPU that training can use.
    """

    memory_gib: float | None = None
    cpus: float | None = None
    cuda: bool = False


def unfit(config: ExperimentConfig, machine: Machine, *, workers: int = 1) -> str | None:
    """Why an experiment cannot be trained here, and what to do; None where it may be tried.

    A deployment sizes its containers by the experiment that it names, and a run may be started
    with another. One that surely needs more memory would be killed in its middle, again and again.

    Args:
        config: the experiment.
        machine: where it is to be trained.
        workers: how many train it, or one like it, at a time.
    """
    if config.network.device == "cuda" and not machine.cuda:
        return (
            f"got network.device cuda for {config.name} and no GPU here; expected one; start the "
            "run with the job variable device_requests (pool docker) or gpus (pool kubernetes), on "
            "a machine with a GPU and its driver, or with the override network.device=auto"
        )
    buffers_gib = workers * _buffer_gib(config)
    if machine.memory_gib is None or (
        machine.memory_gib >= workers * _LEAST_LIBRARIES_GIB + buffers_gib
    ):
        return None
    needs = resources_for(config)
    needs = replace(needs, memory_gib=workers * needs.memory_gib)
    docker = job_variables("docker", needs)["mem_limit"]
    kubernetes = job_variables("kubernetes", needs)["memory_limit"]
    return (
        f"got {machine.memory_gib:.1f} GiB of memory here for {config.name}"
        + (f" in {workers} workers" if workers > 1 else "")
        + f"; expected {needs.memory_gib} GiB, as what it learns from grows to {buffers_gib:.1f}; "
        f"start the run with the job variable mem_limit={docker} (pool docker) or "
        f"memory_limit={kubernetes} (pool kubernetes), from a deployment of this experiment, or "
        "with another algorithm.buffer_size, n_steps, environments or number of workers"
    )


def slow(config: ExperimentConfig, machine: Machine, *, workers: int = 1) -> str | None:
    """What to say of an experiment that gets less than half of the cores it could use: it runs."""
    cpus = workers * resources_for(config).cpus
    if machine.cpus is None or 2 * machine.cpus >= cpus:
        return None
    return (
        f"{config.name} will train slowly on the {machine.cpus:g} cores of this container; it can "
        f"use {cpus}: pool kubernetes gives them by the job variable cpu_limit"
    )


def job_variables(pool_type: str, needs: Resources) -> dict[str, Any]:
    """Say what a flow run needs in the words of a kind of work pool (see `flows/work_pools.py`)."""
    if pool_type == "docker":
        gpus = [{"Driver": "nvidia", "Count": needs.gpus, "Capabilities": [["gpu"]]}]
        return {
            "device_requests": gpus if needs.gpus else [],
            "mem_limit": f"{needs.memory_gib}g",
            "shm_size": f"{needs.shared_memory_gib}g",
        }
    if pool_type == "kubernetes":
        anywhere: dict[str, Any] = {"node_selector": {}, "tolerations": [], "runtime_class": None}
        return {
            **({} if needs.gpus else anywhere),
            "gpus": needs.gpus,
            "cpu_request": str(needs.cpus),
            "cpu_limit": str(2 * needs.cpus),
            "memory_request": f"{needs.memory_gib}Gi",
            "memory_limit": f"{2 * needs.memory_gib}Gi",
            "shared_memory": f"{needs.shared_memory_gib}Gi",
        }
    return {}


def progress_percent(steps: int, target_steps: int) -> float:
    """Share of a run that is done, 0 to 100."""
    return 100.0 * min(1.0, steps / target_steps) if target_steps > 0 else 100.0


#: What a document says in full: something more on the server is a difference, as what was taken
#: out of the document is still in force there.
_IN_FULL = frozenset(
    {
        "actions",
        "base_job_template",
        "job_variables",
        "parameter_openapi_schema",
        "parameters",
        "pull_steps",
        "trigger",
    }
)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what is not as wanted.

    Of most things the server keeps more (ids, dates), which does not count; what `_IN_FULL` names
    is kept as it was sent, and is compared exactly.
    """
    return tuple(
        sorted(
            name
            for name, value in wanted.items()
            if not _holds(value, found.get(name), in_full=name in _IN_FULL)
        )
    )


def _holds(wanted: Any, found: Any, *, in_full: bool) -> bool:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        if in_full and wanted.keys() != found.keys():
            return False
        return all(
            _holds(value, found.get(name), in_full=in_full or name in _IN_FULL)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(
            _holds(mine, theirs, in_full=in_full)
            for mine, theirs in zip(wanted, found, strict=True)
        )
    return bool(wanted == found)
