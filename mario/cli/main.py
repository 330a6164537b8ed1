"""The command `mario`; each of its commands calls one job and prints what that returns.

Exit codes: 0 done, 2 bad input, 3 the policy collapsed, 4 the gate kept the champion.

Heavy imports are inside the commands, so that `mario --help` answers at once and the serving image,
which has no trainer, can run `mario serve`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mario.cli.evaluate import compare, evaluate, record
from mario.cli.flows import flows_app
from mario.cli.gate import gate, promote, report
from mario.cli.pipeline import pipeline
from mario.cli.sweep import sweep_app
from mario.cli.train import register, train
from mario.cli.versions import registry_app, store_app
from mario.errors import MarioError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Train, evaluate, test, promote and serve agents that play Super Mario Bros.\n\n"
        "Start with `mario pipeline --config configs/demo.yaml`. By default everything is kept "
        "under runs/, in SQLite files; MARIO_DATABASE_URL, MLFLOW_TRACKING_URI and MARIO_RUNS_DIR "
        "name other places. Exit codes: 0 done, 2 bad input, 3 the policy collapsed, 4 the gate "
        "kept the champion."
    ),
)
app.add_typer(flows_app, name="flows")
app.add_typer(registry_app, name="registry")
app.add_typer(store_app, name="store")
app.add_typer(sweep_app, name="sweep")


for command in (train, register, evaluate, gate, promote, pipeline, compare, report, record):
    app.command()(command)


@app.command()
def monitor(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 9108,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two readings of the store.")
    ] = 30,
) -> None:
    """Export metrics of the loop to Prometheus.

    Shows champions, verdicts, evaluations and flow runs until Ctrl-C or SIGTERM.
    """
    import signal
    import threading

    from mario.jobs.context import JobContext
    from mario.jobs.monitor import monitor as show

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with JobContext.open(create=False) as context:
        show(
            context,
            host=host,
            port=port,
            poll_seconds=poll_seconds,
            stop=stop,
            prefect_api_url=os.environ.get("PREFECT_API_URL"),
            on_page=lambda url: typer.echo(f"metrics of the loop on {url}"),
        )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve the champion over HTTP.

    `mario serve --help-service` lists the options.
    """
    from serving.launcher import main as serve_main

    raise typer.Exit(serve_main(context.args))


def _quiet_gym() -> None:
    """Suppress the notice that gym prints when nes-py or stable-baselines3 imports it."""
    try:
        from gym_notices import notices
    except ModuleNotFoundError:
        return
    notices.notices.clear()


def main() -> None:
    """Run the command line; an error that the user can fix is one line on standard error."""
    # MLflow and Prefect send usage data by default; set the variables to allow it.
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
