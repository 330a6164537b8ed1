"""`mario registry …` and `mario store …`: versions, champions, the ledger, and the SQL store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mario.cli.options import TaskOption

registry_app = typer.Typer(no_args_is_help=True, help="Versions, champions and the ledger.")
store_app = typer.Typer(no_args_is_help=True, help="The SQL store of runs and verdicts.")


@registry_app.command("list")
def registry_list(task: TaskOption = "1-1") -> None:
    """List the versions of a task, the champion marked."""
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
    """Bring MLflow in line with the ledger, and clear what a killed registration left."""
    from mario.jobs.context import JobContext
    from mario.jobs.versions import reconcile

    with JobContext.open() as context:
        typer.echo(reconcile(task, context))


@registry_app.command("rollback")
def registry_rollback(
    version: Annotated[int | None, typer.Option(help="Default: the champion before.")] = None,
    task: TaskOption = "1-1",
    note: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
) -> None:
    """Make an earlier version the champion again."""
    from mario.jobs.context import JobContext
    from mario.jobs.versions import rollback

    with JobContext.open() as context:
        typer.echo(rollback(task, context, version=version, note=note))


@store_app.command("upgrade")
def store_upgrade() -> None:
    """Create the tables, or bring them to this version's shape."""
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import upgrade

    with JobContext.open() as context:
        typer.echo(upgrade(context))


@store_app.command("check")
def store_check(
    replay: Annotated[
        bool, typer.Option(help="First deliver what killed runs left in their journals.")
    ] = False,
) -> None:
    """Verify every invariant of the store; exit code 2 where one is broken."""
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
        typer.Option(help="Part of the runs' ids; default: the database's name."),
    ] = None,
) -> None:
    """Read the runs of the older Mario project (experiments, episodes, …) into the store."""
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import import_legacy

    with JobContext.open() as context:
        typer.echo(import_legacy(source, context, label=label))


@store_app.command("export")
def store_export(
    folder: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
) -> None:
    """Write every table as Parquet."""
    from mario.jobs.context import JobContext
    from mario.jobs.store_maintenance import export

    with JobContext.open(create=False) as context:
        typer.echo(export(folder, context))
