"""`mario flows …`: set up a Prefect server, deploy flows to it, and show its state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

flows_app = typer.Typer(no_args_is_help=True, help="Deploy flows to a Prefect server.")


def _quiet_prefect() -> None:
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")


@flows_app.command("setup")
def flows_setup(
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind of work pool (process, docker, kubernetes); repeatable."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            envvar="MARIO_WEBHOOK_URL", help="Where notifications are posted as {text: …}."
        ),
    ] = None,
) -> None:
    """Create or update pools, queues, limits, blocks and automations."""
    _quiet_prefect()
    from flows.prefect_api import Server
    from flows.setup import set_up, summary
    from flows.work_pools import POOL_TYPES
    from mario.errors import FlowError

    unknown = [name for name in pool or () if name not in POOL_TYPES]
    if unknown:
        raise FlowError(f"got pool {unknown[0]!r}; expected one of {', '.join(POOL_TYPES)}")
    with Server.connect() as server:
        typer.echo(summary(set_up(server, pools=pool or POOL_TYPES, webhook_url=webhook)))


@flows_app.command("deploy")
def flows_deploy(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of deployments; default: all.")
    ] = None,
    file: Annotated[Path, typer.Option(help="The file with the deployments.")] = Path(
        "prefect.yaml"
    ),
) -> None:
    """Create or update the deployments of prefect.yaml and their schedules."""
    _quiet_prefect()
    from flows.prefect_api import Server
    from flows.setup import deploy, summary

    with Server.connect() as server:
        typer.echo(summary(deploy(server, file, only=names or ())))


@flows_app.command("resume")
def flows_resume(
    name: Annotated[
        str, typer.Argument(help="The deployment: NAME in prefect.yaml, or FLOW/NAME.")
    ],
) -> None:
    """Resume a paused deployment, such as one that a collapse paused."""
    _quiet_prefect()
    from flows.prefect_api import Server
    from flows.setup import resume, summary

    with Server.connect() as server:
        typer.echo(summary([resume(server, name)]))


@flows_app.command("status")
def flows_status(
    file: Annotated[Path, typer.Option(help="The deployments to compare with.")] = Path(
        "prefect.yaml"
    ),
) -> None:
    """Show pools, workers, queues, deployments, automations and the last flow runs."""
    _quiet_prefect()
    from flows.deployments import deployment_names
    from flows.prefect_api import Server
    from flows.status import status

    known = deployment_names(file) if file.exists() else None
    with Server.connect() as server:
        typer.echo(status(server, known))
