"""The command line: thin; every command is one job.

Exit codes: 0 done, 2 bad input, 3 the policy collapsed, 4 the gate said no.

Heavy imports are inside the commands, so that `mario --help` answers at once and the serving image,
which has no trainer, can still run `mario serve`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mario.cli.flows import flows_app
from mario.cli.options import (
    ConfigOption,
    OptionalTaskOption,
    PolicyArgument,
    SetOption,
    TaskConfigOption,
    TaskOption,
)
from mario.cli.pipeline import pipeline
from mario.cli.sweep import sweep_app
from mario.cli.versions import registry_app, store_app
from mario.errors import ConfigError, MarioError
from mario.evaluation.verdict import GateDecision

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Train, evaluate, judge, promote and serve agents that play Super Mario Bros.\n\n"
        "Start with `mario pipeline --config configs/demo.yaml`. Without servers everything is "
        "kept under runs/ (SQLite); MARIO_DATABASE_URL, MLFLOW_TRACKING_URI and MARIO_RUNS_DIR "
        "point elsewhere. Exit codes: 0 done, 2 bad input, 3 the policy collapsed, 4 the gate "
        "kept the champion."
    ),
)
app.add_typer(flows_app, name="flows")
app.add_typer(registry_app, name="registry")
app.add_typer(store_app, name="store")
app.add_typer(sweep_app, name="sweep")


@app.command()
def train(
    context: typer.Context,
    config: ConfigOption = Path("configs/demo.yaml"),
    set_: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run, by its id, as it is configured.")
    ] = None,
) -> None:
    """Train a policy; Ctrl-C ends cleanly with a checkpoint that --resume goes on from."""
    source = context.get_parameter_source("config")
    if resume is not None and source is not None and source.name == "COMMANDLINE":
        raise ConfigError(
            f"got --config {config} beside --resume {resume}; expected one of them: a run goes on "
            "as it is configured; leave --config out, and --set what changes no weight"
        )
    from mario.jobs.context import JobContext
    from mario.jobs.train import train_from_terminal

    with JobContext.open() as jobs:
        outcome = train_from_terminal(config, tuple(set_ or ()), jobs, resume=resume)
    raise typer.Exit(outcome.exit_code)


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="A finished run's id.")],
) -> None:
    """Register a finished run's best policy as a new version."""
    from mario.jobs.context import JobContext
    from mario.jobs.register import register_run

    with JobContext.open() as context:
        version = register_run(run, context)
    typer.echo(f"{version.model} version {version.version} ({version.digest[:12]})")


@app.command()
def evaluate(
    policy: PolicyArgument = "champion",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    units: Annotated[int, typer.Option(min=1, help="Units (level, seed) to play.")] = 60,
    family: Annotated[
        str, typer.Option(help="Seeds: selection or screening (confirmation is the gate's).")
    ] = "screening",
    environments: Annotated[int, typer.Option(min=1, help="Units played at once.")] = 8,
    console: Annotated[str, typer.Option(help="native or nes-py.")] = "native",
    output: Annotated[Path | None, typer.Option(help="Also write the records as JSONL.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="local or dask (default: as the experiment says, or local).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of a Dask cluster on this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler that runs, such as tcp://10.0.0.5:8786.")
    ] = None,
) -> None:
    """Play a policy under mario-eval-v1 and store every episode (an interrupted one goes on)."""
    from mario.jobs.context import JobContext
    from mario.jobs.evaluate import evaluate_from_terminal

    with JobContext.open() as context:
        evaluate_from_terminal(
            policy,
            task,
            context,
            config=config,
            units=units,
            family=family,
            environments=environments,
            console=console,
            output=output,
            engine=engine,
            workers=workers,
            scheduler=scheduler,
        )


@app.command()
def gate(
    challenger: Annotated[
        str, typer.Argument(help="Which registered version: challenger or its number.")
    ] = "challenger",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    console: Annotated[str, typer.Option(help="native or nes-py.")] = "native",
    again: Annotated[
        str | None,
        typer.Option(help="Play a stored verdict's units anew and compare every number."),
    ] = None,
) -> None:
    """Judge a challenger against the champion under mario-gate-v1; exit code 4 when it says no."""
    from mario.jobs.context import JobContext
    from mario.jobs.gate import gate_from_terminal, repeat_from_terminal

    with JobContext.open() as context:
        if again is not None:
            decision = repeat_from_terminal(again, context, console=console)
        else:
            decision = gate_from_terminal(challenger, task, context, config=config, console=console)
    raise typer.Exit(0 if decision == GateDecision.PROMOTE else 4)


@app.command()
def promote(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict that says promote.")],
) -> None:
    """Make the challenger of a verdict the champion: ledger first, alias second."""
    from mario.jobs.context import JobContext
    from mario.jobs.promote import promote_verdict

    with JobContext.open() as context:
        promotion = promote_verdict(verdict, context)
    typer.echo(f"{promotion.model} champion is now version {promotion.version}")


app.command()(pipeline)


@app.command()
def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(help="NAME=POLICY,POLICY,… each: one policy for each training seed."),
    ],
    task: TaskOption = "1-1",
    units: Annotated[int, typer.Option(min=1, help="Units to play with each policy.")] = 40,
    metric: Annotated[str, typer.Option(help="score, clear or progress.")] = "score",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML page; the JSON is put beside it.")
    ] = Path("comparison.html"),
) -> None:
    """Compare recipes over several training seeds (Agarwal et al. 2021), the baseline first."""
    from mario.jobs.compare import compare_from_terminal
    from mario.jobs.context import JobContext

    with JobContext.open() as context:
        compare_from_terminal(
            recipes,
            task,
            context,
            units=units,
            metric=metric,
            seed=seed,
            output=output,
        )


@app.command()
def report(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page; the JSON is put beside it.")
    ] = None,
) -> None:
    """Write a stored verdict's page again, with two videos, and its JSON beside the page."""
    from mario.jobs.context import JobContext
    from mario.jobs.report import report_verdict

    with JobContext.open() as context:
        typer.echo(str(report_verdict(verdict, context, output)))


@app.command()
def record(
    policy: PolicyArgument = "champion",
    level: Annotated[str, typer.Option(help="The level to play.")] = "1-1",
    task: TaskOption = "1-1",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episode.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The MP4.")] = Path("episode.mp4"),
    console: Annotated[str, typer.Option(help="native or nes-py.")] = "native",
) -> None:
    """Play one episode and write it as a video."""
    from mario.jobs.context import JobContext
    from mario.jobs.record import record_episode

    with JobContext.open() as context:
        pictures = record_episode(policy, task, (level, seed), output, context, console=console)
    typer.echo(f"{output} ({pictures} pictures)")


@app.command()
def monitor(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 9108,
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="How often the store is read.")] = 30,
) -> None:
    """Show champions, verdicts and evaluations to Prometheus, until Ctrl-C or SIGTERM."""
    import signal
    import threading

    from mario.jobs.context import JobContext
    from mario.jobs.monitor import monitor as show

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with JobContext.open(create=False) as context:
        show(context, host=host, port=port, poll_seconds=poll_seconds, stop=stop)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve the champion over HTTP (BentoML); `mario serve --help-service` lists its options."""
    from serving.launcher import main as serve_main

    raise typer.Exit(serve_main(context.args))


def _quiet_gym() -> None:
    """Drop the notice that gym prints on import; nes-py and stable-baselines3 import it."""
    try:
        from gym_notices import notices
    except ModuleNotFoundError:
        return
    notices.notices.clear()


def main() -> None:
    """Run the command line; errors that a person can mend are one line on standard error."""
    # MLflow and Prefect would call home; whoever wants that sets the variables.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    _quiet_gym()
    try:
        app()
    except MarioError as error:
        print(f"mario: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"mario", "flows", "serving"}:
            raise
        print(
            f"mario: package {error.name} is not installed; this command needs another role's "
            "packages: pip install 'mario-mlops[train,serve,flows]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("mario: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
