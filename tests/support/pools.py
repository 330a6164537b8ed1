"""Configure flow runs of the project's work pools as workers do, without a worker."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import Flow, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.base import BaseWorker, apply_values

from flows.work_pools import pool


def configured(kind: str, environment: Mapping[str, str] | None = None, **variables: Any) -> Any:
    """Build the job configuration of a worker for a flow run of the deployment `nights`.

    Args:
        kind: docker or kubernetes.
        environment: the environment in which the pool was set up.
        variables: the deployment's job variables.
    """
    template = pool(kind, environment or {})["base_job_template"]
    properties = template["variables"]["properties"]
    values = {name: each["default"] for name, each in properties.items() if "default" in each}
    values = {name: value for name, value in values.items() if value is not None} | variables
    worker: Any = BaseWorker.get_worker_class_from_type(kind)
    made = worker.job_configuration(**apply_values(template["job_configuration"], values))
    flow = Flow(id=uuid4(), name="pipeline", labels={})
    run = FlowRun(id=uuid4(), flow_id=flow.id, name="pipeline demo")
    deployment = DeploymentResponse(id=uuid4(), name="nights", flow_id=flow.id)
    made.prepare_for_flow_run(run, deployment=deployment, flow=flow)
    return made


def first_command(kind: str, made: Any) -> list[str]:
    """The command of the first process of a pool's container."""
    if kind == "docker":
        return [*made.container_create_kwargs["entrypoint"], *shlex.split(made.command)]
    (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container["args"]]
