"""`mario registry …` and `mario store …`: versions, champions, the ledger and the SQL store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mario.cli.options import TaskOption

registry_app = typer.Typer(
    no_args_is_help=True, help="Show versions and the ledger, roll back, repair."
)
store_app = typer.Typer(
    no_args_is_help=True, help="Upgrade, check, import and export the SQL store."
)


@registry_app.command("list")
def registry_list(task: TaskOption = "1-1") -> None:
    """List the versions of a task; the champion is marked."""
    from mario.jobs.context import JobContext
    from mario.jobs.versions import list_versions

    with JobContext.open() as context:
        typer.echo(list_versions(task, context))


@registry_app.command("ledger")
def registry_ledger(task: TaskOption = "1-1") -> None:
    """Show every promotion and rollback of a task, oldest first."""
    from mario.jobs.context import JobContext
    from mario.jobs.versions import show_ledger

    with JobContext.open() as context:
        typer.echo(show_ledger(task, context))


@registry_app.command("reconcile")
def registry_reconcile(task: TaskOption = "1-1") -> None:
    """Repair MLflow after a kill.

    Moves the alias to the champion of the ledger and removes what a killed registration left.
    """
    from mario.jobs.context import JobContext
    from mario.jobs.versions import reconcile

    with JobContext.open() as context:
        typer.echo(reconcile(task, context))


@registry_app.command("rollback")
def registry_rollback(
    version: Annotated[
        int | None, typer.Option(help="The version; default: the previous champion.")
    ] = None,
    task: TaskOption = "1-1",
    note: Annotated[str, typer.Option(help="The reason; kept in the ledger.")] = "",
) -> None:
    """Make an earlier version the champion again."""
    from mario.jobs.context import JobContext
    from mario.jobs.versions import rollback

    with JobContext.open() as context:
        typer.echo(rollback(task, context, version=version, note=note))


@store_app.command("upgrade")
def store_upgrade() -> None:
    """Create the tables, or upgrade their schema."""
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import upgrade

    with JobContext.open() as context:
        typer.echo(upgrade(context))


@store_app.command("check")
def store_check(
    replay: Annotated[
        bool, typer.Option(help="First deliver the journals of killed runs.")
    ] = False,
) -> None:
    """Verify every invariant of the store.

    The exit code is 2 if one is broken.
    """
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import check

    with JobContext.open(create=False) as context:
        sound, text = check(context, replay=replay)
    typer.echo(text)
    raise typer.Exit(0 if sound else 2)


@store_app.command("import-legacy")
def store_import_legacy(
    source: Annotated[str, typer.Argument(help="Database URL of the older project.")],
    label: Annotated[
        str | None,
        typer.Option(help="Part of the runs' ids; default: the name of the database."),
    ] = None,
) -> None:
    """Import the runs of the older Mario project.

    Reads its experiments, episodes and metrics into the store.
    """
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import import_legacy

    with JobContext.open() as context:
        typer.echo(import_legacy(source, context, label=label))


@store_app.command("export")
def store_export(
    folder: Annotated[Path, typer.Argument(help="The folder to write to.")],
) -> None:
    """Write every table as a Parquet file."""
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import export

    with JobContext.open(create=False) as context:
        typer.echo(export(folder, context))
