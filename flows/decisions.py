"""Make the decisions of flows, in plain functions that know nothing of Prefect.

They decide which training run belongs to a flow run, which errors are retried, how a flow run ends,
and which resources it needs.
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
from mario.evaluation.decision import GateDecision
from mario.store.engine import StoreUnavailableError

#: Attempts of a flow run, the first included; each crash costs one.
MAX_ATTEMPTS = 4
#: Delays before each retry of a stage of a deployed flow run, in s.
RETRY_DELAYS_SECONDS = (10, 30, 90, 180)
#: How often a version is judged if another version is promoted meanwhile.
MAX_JUDGEMENTS = 3
#: Memory for libraries and networks: what they are given, and what they need at least.
_LIBRARIES_GIB, _LEAST_LIBRARIES_GIB = 4, 0.5

StateType = Literal["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]


@dataclass(frozen=True)
class Ending:
    """The final state of a flow run.

    Attributes:
        type: the type of Prefect's state.
        name: the name of the state, such as Collapsed.
        message: the reason.
    """

    type: StateType
    name: str
    message: str


def run_id_for(flow_run_id: UUID | str) -> str:
    """Derive the id of a flow run's training run, which is the same in each attempt."""
    return f"run-{UUID(str(flow_run_id)).hex}"


def worth_retrying(error: BaseException) -> bool:
    """Whether the same call may succeed later, because a server or a lock was unavailable.

    A bad configuration, a broken artefact or another promoter's success stays as it is until a
    person acts.
    """
    if isinstance(error, StoreUnavailableError | RegistryUnavailableError | RunIsBusy):
        return True
    if isinstance(error, MarioError):
        return False
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    if isinstance(error, OSError | TimeoutError | sqlite3.OperationalError):
        return True
    # By name, so that no client library is imported to recognise its errors.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "TransportError", "ConnectionError"})


def ending_of_training(
    status: str, reason: str, run_id: str, steps: int, *, waited: bool = False
) -> Ending | None:
    """The end of a flow run after training; None if the flow run continues.

    A collapse is a result with a name of its own: nothing failed, and a retry would give the same.

    Args:
        status: the status of the training run.
        reason: why training ended.
        run_id: the training run.
        steps: how far it trained.
        waited: whether training never began, as another process still trained the run.
    """
    if status == RunStatus.FINISHED:
        return None
    if status in (RunStatus.COLLAPSED, RunStatus.DIVERGED):
        return Ending(
            "CANCELLED",
            "Collapsed",
            f"run {run_id} {status} after {steps:,} steps: {reason}; its best checkpoint is kept",
        )
    if not waited:
        command = f"mario train --resume {run_id}"
        reason = f"run {run_id} was interrupted at {steps:,} steps; go on with: {command}"
    return Ending("CANCELLED", "Interrupted", reason)


def ending_of_stop(ending: Ending, *, deployed: bool, cancelling: bool) -> Ending:
    """The end of a flow run that was stopped from outside.

    A flow run that a person cancelled ends as given. A deployed one may have been stopped by its
    machine's shutdown, such as a pod's eviction: it ends as Crashed, so that it is retried.

    Args:
        ending: as training reported it.
        deployed: whether the flow run comes from a deployment.
        cancelling: whether a person cancelled it.
    """
    if not deployed or cancelling:
        return ending
    return Ending("CRASHED", "Crashed", f"stopped from outside: {ending.message}")


def ending_of_verdict(decision: str, version: int, lines: Sequence[str]) -> Ending:
    """The end of a pipeline after the gate's decision; each is a success."""
    name = {GateDecision.PROMOTE: "Promoted", "same": "Unchanged"}.get(decision, "Kept")
    said = lines[0] if lines else decision
    return Ending("COMPLETED", name, f"version {version}: {said}")


def promoted_by_earlier_attempt(decision: str, is_champion: bool, attempt: int) -> bool:
    """Whether an earlier attempt of this flow run promoted the version and was killed afterwards.

    Then nothing is left to judge, but the alias and the promotion's event may be missing. In a
    first attempt the version was champion before: nothing is promoted, and no event is emitted.

    Args:
        decision: the gate's.
        is_champion: whether this very version is champion.
        attempt: counts from 1.
    """
    return decision == "same" and is_champion and attempt > 1


def ending_of_attempts(run_count: int) -> Ending | None:
    """The end of a flow run that has crashed too often; None while it may continue."""
    if run_count <= MAX_ATTEMPTS:
        return None
    return Ending(
        "FAILED",
        "Failed",
        f"got attempt {run_count} of this flow run; expected at most {MAX_ATTEMPTS}; find out "
        "why the others crashed, and start it again by hand",
    )


@dataclass(frozen=True)
class Resources:
    """Resources that a flow run requests.

    Attributes:
        gpus: number of GPUs.
        memory_gib: main memory.
        shared_memory_gib: size of `/dev/shm`, through which PyTorch processes share tensors.
        cpus: number of cores.
    """

    gpus: int
    memory_gib: int
    shared_memory_gib: int
    cpus: int


def resources_for(config: ExperimentConfig | None) -> Resources:
    """The resources to train an experiment; without one, those of evaluation and judging.

    Memory is 4 GiB for libraries and networks, 16 MiB per environment, and the algorithm's buffer.
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
    """The memory of the algorithm's full buffer, in which a step is four 84 × 84 frames."""
    steps = config.algorithm.buffered_steps(
        environments=config.environments, total_steps=config.total_steps
    )
    return steps * 4 * 84 * 84 / 2**30


@dataclass(frozen=True)
class Machine:
    """The limits of a process on its machine; see `flows/container_limits.py`.

    Attributes:
        memory_gib: main memory; None: unlimited.
        cpus: cores; None: unlimited.
        cuda: whether there is a GPU that training can use.
    """

    memory_gib: float | None = None
    cpus: float | None = None
    cuda: bool = False


def why_unsuitable(config: ExperimentConfig, machine: Machine, *, workers: int = 1) -> str | None:
    """Say why a machine cannot train an experiment, and what to do; None if it may be able to.

    A deployment sizes its containers by the experiment that it names, but a flow run may name
    another. One that needs more memory would be killed in the middle of training, in each attempt.

    Args:
        config: the experiment.
        machine: the limits of this process.
        workers: how many processes train such an experiment at a time.
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
        + f"; expected {needs.memory_gib} GiB, as its buffer grows to {buffers_gib:.1f} GiB; "
        f"start the run with the job variable mem_limit={docker} (pool docker) or "
        f"memory_limit={kubernetes} (pool kubernetes), from a deployment of this experiment, or "
        "with another algorithm.buffer_size, n_steps, environments or number of workers"
    )


def why_slow(config: ExperimentConfig, machine: Machine, *, workers: int = 1) -> str | None:
    """Warn of a machine with less than half of the cores that an experiment can use, else None."""
    cpus = workers * resources_for(config).cpus
    if machine.cpus is None or 2 * machine.cpus >= cpus:
        return None
    return (
        f"{config.name} will train slowly on the {machine.cpus:g} cores of this container; it can "
        f"use {cpus}; in pool kubernetes, set the job variable cpu_limit"
    )


def job_variables(pool_type: str, needs: Resources) -> dict[str, Any]:
    """Write resources as job variables of a kind of work pool (`flows/work_pools.py`)."""
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
    """The share of a training run that is done, 0 to 100."""
    return 100.0 * min(1.0, steps / target_steps) if target_steps > 0 else 100.0


#: Parts that a document gives completely. Anything more on the server was removed from the document
#: and is still in force there, so it counts as a difference.
_COMPLETE_PARTS = frozenset(
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
    """List the parts of a document that differ on the server.

    The server adds ids and dates to most parts, which do not count. It keeps `_COMPLETE_PARTS` as
    they were sent; those are compared exactly.
    """
    return tuple(
        sorted(
            name
            for name, value in wanted.items()
            if not _matches(value, found.get(name), complete=name in _COMPLETE_PARTS)
        )
    )


def _matches(wanted: Any, found: Any, *, complete: bool) -> bool:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        if complete and wanted.keys() != found.keys():
            return False
        return all(
            _matches(value, found.get(name), complete=complete or name in _COMPLETE_PARTS)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(
            _matches(mine, theirs, complete=complete)
            for mine, theirs in zip(wanted, found, strict=True)
        )
    return bool(wanted == found)
