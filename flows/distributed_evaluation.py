"""The flow `evaluate-on-dask`: play a registered version on a Dask cluster, local by default."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect_dask.task_runners import DaskTaskRunner
from prefect_dask.utils import get_dask_client
from pydantic import Field

from flows import stages
from flows.evaluate import EvaluateParameters, play, show_result
from mario.errors import ConfigError
from mario.jobs.engines.dask import DaskEngine


class DaskEvaluationParameters(EvaluateParameters):
    """A version to play under mario-eval-v1 on a Dask cluster."""

    workers: int = Field(
        0, ge=0, le=10_000, description="Workers of the cluster; 0 = one per core."
    )
    scheduler: str | None = Field(
        None,
        description="Address of a running scheduler, such as tcp://10.0.0.5:8786; None starts one.",
    )
    cluster_class: str | None = Field(
        None,
        description="Class of the cluster to start, such as dask_kubernetes.operator.KubeCluster; "
        "None = on this machine.",
    )


def task_runner(parameters: DaskEvaluationParameters) -> DaskTaskRunner:
    """Build the task runner for the cluster of the parameters; nothing is started yet.

    Raises:
        ConfigError: the parameters describe a new cluster as well as a running scheduler.
    """
    if parameters.scheduler is not None:
        if parameters.workers or parameters.cluster_class:
            raise ConfigError(
                f"got the scheduler {parameters.scheduler} beside workers={parameters.workers} and "
                f"cluster_class={parameters.cluster_class}; expected one or the other, as a "
                "scheduler has workers of its own"
            )
        return DaskTaskRunner(address=parameters.scheduler)
    options: dict[str, Any] = {"n_workers": parameters.workers} if parameters.workers else {}
    if parameters.cluster_class is not None:
        return DaskTaskRunner(cluster_class=parameters.cluster_class, cluster_kwargs=options)
    return DaskTaskRunner(
        cluster_kwargs={
            **options,
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
        }
    )


def _run_name() -> str:
    given = DaskEvaluationParameters.of_this_run()
    return f"evaluate {given.policy} of {given.task} on Dask"


@flow(name="evaluate-on-dask", flow_run_name=_run_name, persist_result=False)
def evaluate_on_dask(
    parameters: DaskEvaluationParameters = DaskEvaluationParameters(),  # noqa: B008
) -> State[Any]:
    """Play a version under mario-eval-v1 on a Dask cluster, with the same records as locally."""
    if (too_often := stages.out_of_attempts()) is not None:
        return too_often
    runner: Any = task_runner(parameters)  # its generic parameter differs from that of with_options
    played = _played.with_options(task_runner=runner)
    # Only a flow has a task runner, and with it a cluster; a task would not find it.
    line = stages.run_retried(lambda: played(parameters))
    return show_result(parameters, line)


@flow(name="units-on-dask", persist_result=False)
def _played(parameters: DaskEvaluationParameters) -> str:
    """Play the units on the flow's cluster; only this process writes to the store."""
    running = FlowRunContext.get()
    assert running is not None, "only the flow above calls it"
    assert isinstance(running.task_runner, DaskTaskRunner)
    running.task_runner.client  # noqa: B018 - its cluster starts with its first use
    with get_dask_client() as client, DaskEngine(client=client) as engine:
        return play(parameters, engine)
