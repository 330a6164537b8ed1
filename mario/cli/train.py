"""`mario train` and `mario register`: train a policy and register it."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mario.cli.options import ConfigOption, SetOption
from mario.errors import ConfigError

if TYPE_CHECKING:
    from mario.jobs.train import TrainOutcome


def train(
    invocation: typer.Context,
    config: ConfigOption = Path("configs/demo.yaml"),
    set_: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Id of a run to resume with its own configuration.")
    ] = None,
) -> None:
    """Train a policy.

    Ctrl-C stops it with a checkpoint; --resume continues from there.
    """
    source = invocation.get_parameter_source("config")
    if resume is not None and source is not None and source.name == "COMMANDLINE":
        raise ConfigError(
            f"got --config {config} beside --resume {resume}; expected one of them: a run is "
            "resumed with its own configuration; leave --config out, and --set only what does not "
            "change weights"
        )
    from mario.cli.terminal import TrainingDisplay
    from mario.config.experiment import load_config
    from mario.jobs.begin_run import config_of_run
    from mario.jobs.context import JobContext
    from mario.jobs.stop_signals import stopping_on_signals
    from mario.jobs.train import train_run

    overrides, stop = tuple(set_ or ()), threading.Event()
    with JobContext.open() as context:
        if resume is None:
            experiment = load_config(config, overrides)
        else:
            experiment = config_of_run(resume, context, overrides)
        with stopping_on_signals(stop), TrainingDisplay(experiment) as display:
            outcome = train_run(
                experiment,
                context,
                resume=resume,
                stop=stop,
                on_progress=display.progress,
                on_selection=display.selection,
            )
    _show(outcome)
    # The process ends now. Without this the interpreter searches all objects of torch and MLflow
    # for garbage once more: over 4 s on a busy machine, of the 10 s that a stop may take.
    gc.freeze()
    raise typer.Exit(outcome.exit_code)


def _show(outcome: TrainOutcome) -> None:
    """Say how a run ended and which command comes next."""
    from mario.cli.terminal import say
    from mario.config.run_states import RunStatus

    result = outcome.result
    say(
        f"{outcome.run_id}: {result.status}"
        + (f" ({result.reason})" if result.reason else "")
        + f", {result.total_steps:,} steps at {result.steps_per_second:,.0f} steps/s"
    )
    if result.status == RunStatus.INTERRUPTED:
        say(f"go on with: mario train --resume {outcome.run_id}")
    elif outcome.artefact is not None:
        say(f"policy in {outcome.artefact}; register with: mario register {outcome.run_id}")


def register(
    run: Annotated[str, typer.Argument(help="Id of a finished run.")],
) -> None:
    """Register a run's best policy as a new version."""
    from mario.jobs.context import JobContext
    from mario.jobs.register import register_run

    with JobContext.open() as context:
        version = register_run(run, context)
    typer.echo(f"{version.model} version {version.version} ({version.digest[:12]})")
