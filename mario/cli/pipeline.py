"""`mario pipeline`: the whole loop in this process, and its closing screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mario.cli.options import ConfigOption, SetOption
from mario.errors import ServingError

if TYPE_CHECKING:
    from flows.pipeline import PipelineResult
    from mario.jobs.context import JobContext, JobSettings


def pipeline(
    config: ConfigOption = Path("configs/demo.yaml"),
    set_: SetOption = None,
    try_serving: Annotated[
        bool, typer.Option(help="Start the service afterwards and request one action.")
    ] = True,
    next_seed: Annotated[
        bool, typer.Option(help="Train with a seed that no run of the task had before.")
    ] = False,
    require_promotion: Annotated[
        bool, typer.Option(help="Exit with 4 if the gate keeps the champion.")
    ] = False,
) -> None:
    """Run the whole loop in this process.

    Trains, registers, evaluates, tests and promotes as one Prefect flow; then tries the service.
    """
    from mario.config.experiment import load_config
    from mario.jobs.context import JobContext

    loaded = load_config(config, tuple(set_ or ()))  # a bad file is refused before Prefect starts
    with JobContext.open() as context:
        with _prefect(context.settings) as ready:
            from flows.pipeline import PipelineParameters, run_pipeline
            from mario.cli.terminal import TrainingDisplay

            parameters = PipelineParameters(
                config=str(config), overrides=tuple(set_ or ()), next_seed=next_seed
            )
            ready()
            result = run_pipeline(parameters, TrainingDisplay)
        served, failed = None, None
        if try_serving:
            try:
                served = _ask_service_once(loaded.task, context)
            except ServingError as error:  # show the result of the pipeline first
                failed = error
        typer.echo(_closing_screen(loaded.task, context, result, served))
    if failed is not None:
        raise failed
    raise typer.Exit(0 if result.promoted or not require_promotion else 4)


@contextmanager
def _prefect(settings: JobSettings) -> Iterator[Callable[[], None]]:
    """Use the Prefect server of PREFECT_API_URL, or start one for this process under runs/.

    Yields:
        A function that waits until the server answers; it starts while flows are imported.
    """
    # An error reaches the terminal as one line of ours, not as Prefect's traceback.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: None
        return
    from flows.embedded_server import running

    home = Path(os.environ.get("PREFECT_HOME") or settings.runs_dir / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home)
    with running(home) as server:
        yield server.wait


def _ask_service_once(task: str, context: JobContext) -> str | None:
    """Start the service on a free port, request one action over HTTP, and stop it.

    Returns:
        The answer in one line; None if there is no champion to serve.
    """
    from mario.jobs.versions import champion_version

    if champion_version(task, context) is None:
        return None
    import httpx
    import numpy as np

    from mario.game.console.factory import open_console
    from mario.game.smb.observations.pixels import frame_from_rgb
    from mario.game.smb.stage import start_level
    from serving.launcher import running
    from serving.settings import ServingSettings

    console = open_console()
    start_level(console, task if task != "all" else "1-1")
    observation = np.stack([frame_from_rgb(console.screen_rgb())] * 4)
    settings = ServingSettings(
        task=task,
        port=0,
        database_url=_absolute(context.settings.database_url),
        tracking_uri=_absolute(context.settings.tracking_uri),
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
    """Make a SQLite URL's path absolute: the inference service runs in another folder."""
    prefix = "sqlite:///"
    return prefix + str(Path(url.removeprefix(prefix)).resolve()) if url.startswith(prefix) else url


def _closing_screen(
    task: str, context: JobContext, result: PipelineResult, served: str | None
) -> str:
    """Say what happened, where the results are, and which commands come next."""
    from mario.jobs.versions import champion_version

    champion = champion_version(task, context)
    lines = [
        "",
        *result.verdict,
        f"champion of task {task}: "
        + ("none yet" if champion is None else f"version {champion}")
        + (" (promoted just now)" if result.promoted else ""),
        served or "nothing to serve yet",
        "",
        *(
            f"{name:<9} {path}"
            for name, path in (
                ("summary", result.summary),
                ("verdict", result.report),
                ("video", result.video),
            )
            if path is not None
        ),
        f"store     {context.settings.database_url}",
        f"registry  {context.settings.tracking_uri}",
        "",
        "go on with:",
        "  mario serve                      the champion as an HTTP API, with a page to watch",
        f"  mlflow ui --backend-store-uri {context.settings.tracking_uri}",
        "  prefect server start             schedules and a UI (docs/guides/pipeline.md)",
    ]
    return "\n".join(lines)
