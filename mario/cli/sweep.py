"""`mario sweep …`: search for better hyperparameters with any number of workers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from mario.cli.options import SetOption

sweep_app = typer.Typer(no_args_is_help=True, help="Search for better hyperparameters.")

NameArgument = Annotated[str, typer.Argument(help="The sweep's name.")]


@sweep_app.command("run")
def sweep_run(
    name: NameArgument,
    config: Annotated[
        Path,
        typer.Option(
            "--config", "-c", help="The sweep's YAML file, such as configs/sweeps/ppo_1-1.yaml."
        ),
    ],
    set_: SetOption = None,
    max_trials: Annotated[
        int | None, typer.Option(min=1, help="Stop this worker after so many trials.")
    ] = None,
) -> None:
    """Run one worker of a sweep until all trials have ended.

    Run the command as often as you like, on as many machines as you like: workers share the trials.
    """
    from mario.config.sweep import load_sweep
    from mario.jobs.context import JobContext
    from mario.jobs.stop_signals import stopping_on_signals
    from mario.jobs.sweeps.describe import describe_best
    from mario.jobs.sweeps.worker import run_sweep

    sweep, stop = load_sweep(config, tuple(set_ or ())), threading.Event()
    with JobContext.open() as context:
        with stopping_on_signals(stop):
            work = run_sweep(
                name, sweep, context, stop=stop, max_trials=max_trials, on_trial=typer.echo
            )
        if work.finished:
            typer.echo(describe_best(name, context))
        else:
            typer.echo(f"{work.trials} trials here; go on with the same command, here or elsewhere")


@sweep_app.command("status")
def sweep_status(name: NameArgument) -> None:
    """Show the trials of a sweep and their states."""
    from mario.jobs.context import JobContext
    from mario.jobs.sweeps.describe import describe_sweep

    with JobContext.open() as context:
        typer.echo(describe_sweep(name, context))


@sweep_app.command("best")
def sweep_best(
    name: NameArgument,
    output: Annotated[
        Path | None,
        typer.Option(help="Also write the experiment of the best trial to this YAML file."),
    ] = None,
) -> None:
    """Show the best trial of a sweep and how to use it."""
    from mario.jobs.context import JobContext
    from mario.jobs.sweeps.describe import best_config, describe_best

    with JobContext.open() as context:
        typer.echo(describe_best(name, context))
        if output is not None:
            output.write_text(best_config(name, context).to_yaml(), encoding="utf-8")
            typer.echo(f"written: {output}")
