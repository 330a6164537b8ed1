"""The command line: thin; every command is one job.

Exit codes: 0 done, 2 bad input, 3 the policy collapsed, 4 the gate said no.

Heavy imports are inside the commands, so that `mario --help` answers at once and the serving image,
which has no trainer, can still run `mario serve`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mario.errors import MarioError, ServingError

if TYPE_CHECKING:
    from flows.pipeline import PipelineResult
    from mario.jobs.runtime import Runtime

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
registry_app = typer.Typer(no_args_is_help=True, help="Versions, champions and the ledger.")
store_app = typer.Typer(no_args_is_help=True, help="The SQL store of runs and verdicts.")
app.add_typer(registry_app, name="registry")
app.add_typer(store_app, name="store")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The experiment's YAML, such as configs/demo.yaml.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the config: --set algorithm.gamma=0.9"),
]
TaskOption = Annotated[
    str, typer.Option("--task", "-t", help='The task: a level ("1-1") or "all".')
]
OptionalTaskOption = Annotated[
    str | None,
    typer.Option("--task", "-t", help='The task: a level (default "1-1") or "all".'),
]
TaskConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Take task, levels and gate from this experiment."),
]
PolicyArgument = Annotated[
    str,
    typer.Argument(
        help="Which policy: champion, challenger, a version number, random, or an artefact folder."
    ),
]


@app.command()
def train(
    config: ConfigOption = Path("configs/demo.yaml"),
    set_: SetOption = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run, by its id.")] = None,
) -> None:
    """Train a policy; Ctrl-C ends cleanly with a checkpoint that --resume goes on from."""
    from mario.config import load_config
    from mario.jobs.runtime import Runtime
    from mario.jobs.train import train_from_terminal

    outcome = train_from_terminal(
        load_config(config, tuple(set_ or ())), Runtime.from_environment(), resume=resume
    )
    raise typer.Exit(outcome.exit_code)


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="A finished run's id.")],
) -> None:
    """Register a finished run's best policy as a new version."""
    from mario.jobs.register import register_run
    from mario.jobs.runtime import Runtime

    version = register_run(run, Runtime.from_environment())
    typer.echo(f"{version.model} version {version.version} ({version.digest[:12]})")


@app.command()
def evaluate(
    policy: PolicyArgument = "champion",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    units: Annotated[int, typer.Option(min=1, help="Units (level, seed) to play.")] = 60,
    family: Annotated[
        str, typer.Option(help="Seeds: selection, screening or confirmation.")
    ] = "screening",
    environments: Annotated[int, typer.Option(min=1, help="Units played at once.")] = 8,
    console: Annotated[str, typer.Option(help="native or nes-py.")] = "native",
    output: Annotated[Path | None, typer.Option(help="Also write the records as JSONL.")] = None,
) -> None:
    """Play a policy under mario-eval-v1 and store every episode (an interrupted one goes on)."""
    from mario.jobs.evaluate import evaluate_from_terminal
    from mario.jobs.runtime import Runtime

    evaluate_from_terminal(
        policy,
        task,
        Runtime.from_environment(),
        config=config,
        units=units,
        family=family,
        environments=environments,
        console=console,
        output=output,
    )


@app.command()
def gate(
    challenger: PolicyArgument = "challenger",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    console: Annotated[str, typer.Option(help="native or nes-py.")] = "native",
    again: Annotated[
        str | None,
        typer.Option(help="Play a stored verdict's units anew and compare every number."),
    ] = None,
) -> None:
    """Judge a challenger against the champion under mario-gate-v1; exit code 4 when it says no."""
    from mario.jobs.gate import gate_from_terminal, repeat_from_terminal
    from mario.jobs.runtime import Runtime

    runtime = Runtime.from_environment()
    if again is not None:
        decision = repeat_from_terminal(again, runtime, console=console)
    else:
        decision = gate_from_terminal(challenger, task, runtime, config=config, console=console)
    raise typer.Exit(0 if decision == "promote" else 4)


@app.command()
def promote(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict that says promote.")],
) -> None:
    """Make the challenger of a verdict the champion: ledger first, alias second."""
    from mario.jobs.promote import promote_verdict
    from mario.jobs.runtime import Runtime

    promotion = promote_verdict(verdict, Runtime.from_environment())
    typer.echo(f"{promotion.model} champion is now version {promotion.version}")


@app.command()
def pipeline(
    config: ConfigOption = Path("configs/demo.yaml"),
    set_: SetOption = None,
    try_serving: Annotated[
        bool, typer.Option(help="Also start the service and ask it for one action.")
    ] = True,
    next_seed: Annotated[
        bool, typer.Option(help="Train with a seed that no earlier run had.")
    ] = False,
    require_promotion: Annotated[
        bool, typer.Option(help="Exit with 4 where the gate keeps the champion.")
    ] = False,
) -> None:
    """Train, register, evaluate, judge, promote and serve, as one Prefect flow in this process."""
    from mario.config import load_config
    from mario.jobs.runtime import Runtime

    loaded = load_config(config, tuple(set_ or ()))  # refused before Prefect is started
    runtime = Runtime.from_environment()
    _quiet_prefect(runtime)
    from flows.pipeline import PipelineParameters
    from flows.pipeline import pipeline as flow

    result = flow(
        PipelineParameters(config=str(config), overrides=tuple(set_ or ()), next_seed=next_seed)
    )
    served, failed = None, None
    if try_serving:
        try:
            served = _ask_service_once(loaded.task, runtime)
        except ServingError as error:  # what was trained and judged stands, and is shown first
            failed = error
    typer.echo(_closing_screen(loaded.task, runtime, result, served))
    if failed is not None:
        raise failed
    raise typer.Exit(0 if result.promoted or not require_promotion else 4)


def _quiet_prefect(runtime: Runtime) -> None:
    """Keep an embedded Prefect's files under runs/ and its log out of the way."""
    if "PREFECT_API_URL" not in os.environ:
        home = (runtime.runs_dir / "prefect").resolve()
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home))
    # What goes wrong reaches the terminal as one line of ours, not as Prefect's traceback.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # The default of 20 s is too short for a machine that is busy otherwise.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def _ask_service_once(task: str, runtime: Runtime) -> str | None:
    """Start the service on a free port, ask it for one action over HTTP, stop it.

    Returns:
        The answer in words; None while there is no champion to serve.
    """
    from mario.jobs.versions import champion_version

    if champion_version(task, runtime) is None:
        return None
    import httpx
    import numpy as np

    from mario.game.console import open_console
    from mario.game.observation import frame_from_rgb
    from mario.game.stage import start_level
    from serving.launcher import running
    from serving.settings import ServingSettings

    console = open_console()
    start_level(console, task if task != "all" else "1-1")
    observation = np.stack([frame_from_rgb(console.screen_rgb())] * 4)
    settings = ServingSettings(
        task=task,
        port=0,
        database_url=_absolute(runtime.database_url),
        tracking_uri=_absolute(runtime.tracking_uri),
    )
    with running(settings) as url:
        try:
            answer = httpx.post(
                f"{url}/predict/raw",
                content=observation.tobytes(),
                headers={"Content-Type": "application/octet-stream"},
                timeout=30,
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ServingError(
                f"the service at {url} did not answer one observation ({error}); expected an "
                "action; run `mario serve` and look at its log"
            ) from None
        body = answer.json()
    action = body["predictions"][0]["action_name"]
    return f"asked version {body['version']} over HTTP what to press at the start: {action}"


def _absolute(url: str) -> str:
    """Make the path of an embedded SQLite URL absolute: the service runs in another folder."""
    prefix = "sqlite:///"
    return prefix + str(Path(url.removeprefix(prefix)).resolve()) if url.startswith(prefix) else url


def _closing_screen(task: str, runtime: Runtime, result: PipelineResult, served: str | None) -> str:
    """What happened, where each thing is, and the commands to go on."""
    from mario.jobs.versions import champion_version

    champion = champion_version(task, runtime)
    lines = [
        "",
        *result.verdict,
        f"champion of task {task}: "
        + ("none yet" if champion is None else f"version {champion}")
        + (" (promoted just now)" if result.promoted else ""),
        served or "nothing to serve yet",
        "",
        f"summary   {result.summary}",
        f"verdict   {result.report}",
        f"video     {result.video}",
        f"store     {runtime.database_url}",
        f"registry  {runtime.tracking_uri}",
        "",
        "go on with:",
        "  mario serve                      the champion as an HTTP API, with a page to watch",
        f"  mlflow ui --backend-store-uri {runtime.tracking_uri}",
        "  prefect server start             schedules and a UI (docs/guides/pipeline.md)",
    ]
    return "\n".join(lines)


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
    from mario.jobs.runtime import Runtime

    compare_from_terminal(
        recipes,
        task,
        Runtime.from_environment(),
        units=units,
        metric=metric,
        seed=seed,
        output=output,
    )


@app.command()
def report(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict.")],
    output: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Write a stored verdict's page again, with videos of the median and the worst episode."""
    from mario.jobs.report import report_verdict
    from mario.jobs.runtime import Runtime

    typer.echo(str(report_verdict(verdict, Runtime.from_environment(), output)))


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
    from mario.jobs.record import record_episode
    from mario.jobs.runtime import Runtime

    pictures = record_episode(
        policy, task, (level, seed), output, Runtime.from_environment(), console=console
    )
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

    from mario.jobs.monitor import monitor as show
    from mario.jobs.runtime import Runtime

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    show(Runtime.from_environment(), host=host, port=port, poll_seconds=poll_seconds, stop=stop)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve the champion over HTTP (BentoML); `mario serve --help-service` lists its options."""
    from serving.launcher import main as serve_main

    raise typer.Exit(serve_main(context.args))


@registry_app.command("list")
def registry_list(task: TaskOption = "1-1") -> None:
    """List the versions of a task, the champion marked."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.versions import list_versions

    typer.echo(list_versions(task, Runtime.from_environment()))


@registry_app.command("ledger")
def registry_ledger(task: TaskOption = "1-1") -> None:
    """Show every promotion and rollback of a task, oldest first."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.versions import show_ledger

    typer.echo(show_ledger(task, Runtime.from_environment()))


@registry_app.command("reconcile")
def registry_reconcile(task: TaskOption = "1-1") -> None:
    """Bring MLflow in line with the ledger, and clear what a killed registration left."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.versions import reconcile

    typer.echo(reconcile(task, Runtime.from_environment()))


@registry_app.command("rollback")
def registry_rollback(
    version: Annotated[int | None, typer.Option(help="Default: the champion before.")] = None,
    task: TaskOption = "1-1",
    note: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
) -> None:
    """Make an earlier version the champion again."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.versions import rollback

    typer.echo(rollback(task, Runtime.from_environment(), version=version, note=note))


@store_app.command("upgrade")
def store_upgrade() -> None:
    """Create the tables, or bring them to this version's shape."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.storekeeping import upgrade

    typer.echo(upgrade(Runtime.from_environment()))


@store_app.command("check")
def store_check(
    replay: Annotated[
        bool, typer.Option(help="First deliver what killed runs left in their journals.")
    ] = False,
) -> None:
    """Verify every invariant of the store; exit code 2 where one is broken."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.storekeeping import check

    sound, text = check(Runtime.from_environment(), replay=replay)
    typer.echo(text)
    raise typer.Exit(0 if sound else 2)


@store_app.command("import-legacy")
def store_import_legacy(
    source: Annotated[str, typer.Argument(help="Database URL of the older project.")],
) -> None:
    """Read the runs of the older Mario project (experiments, episodes, …) into the store."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.storekeeping import import_legacy

    typer.echo(import_legacy(source, Runtime.from_environment()))


@store_app.command("export")
def store_export(
    folder: Annotated[Path, typer.Argument(help="Folder for the Parquet files.")],
) -> None:
    """Write every table as Parquet."""
    from mario.jobs.runtime import Runtime
    from mario.jobs.storekeeping import export

    typer.echo(export(folder, Runtime.from_environment()))


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
