"""`mario evaluate`, `mario compare` and `mario record`: play policies and look at the result."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mario.cli.options import (
    ConsoleOption,
    OptionalTaskOption,
    PolicyArgument,
    TaskConfigOption,
    TaskOption,
)

if TYPE_CHECKING:
    from mario.config.game import ConsoleName


def evaluate(
    policy: PolicyArgument = "champion",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    units: Annotated[int, typer.Option(min=1, help="Number of units (level, seed) to play.")] = 60,
    family: Annotated[
        str,
        typer.Option(help="Seed family: selection or screening (confirmation is the gate's)."),
    ] = "screening",
    environments: Annotated[
        int, typer.Option(min=1, help="Units that a process plays at once.")
    ] = 8,
    console: ConsoleOption = "native",
    output: Annotated[
        Path | None, typer.Option(help="Also write the records to this file, as JSON lines.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="local or dask; default: the experiment's, or local."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes of a Dask cluster on this machine.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of a running Dask scheduler, such as tcp://10.0.0.5:8786."),
    ] = None,
) -> None:
    """Play a policy and store every episode.

    The protocol is mario-eval-v1. An interrupted evaluation continues when the command is repeated.
    """
    from mario.cli.experiment_options import engine_settings, open_family, task_and_levels
    from mario.config.experiment import load_config
    from mario.evaluation.records import write_jsonl
    from mario.jobs.context import JobContext
    from mario.jobs.engines.factory import open_engine
    from mario.jobs.evaluate import evaluate_family, summary_line
    from mario.jobs.policies import load_policy

    seeds = open_family(family)
    experiment = None if config is None else load_config(config)
    task, levels = task_and_levels(task, experiment)
    settings = engine_settings(experiment, engine, workers, scheduler)

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total} units", end="", file=sys.stderr, flush=True)

    with JobContext.open() as context:
        loaded = load_policy(policy, task, context)
        with open_engine(settings) as players:
            outcome = evaluate_family(
                loaded,
                levels,
                seeds,
                units,
                context.store,
                environments=environments,
                console=cast("ConsoleName", console),
                engine=players,
                on_progress=show if sys.stderr.isatty() else None,
            )
        typer.echo(summary_line(loaded, outcome.records))
        typer.echo(f"evaluation {outcome.evaluation_id} in {context.store.redacted_url}")
    if output is not None:
        write_jsonl(output, outcome.records)


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
        Path, typer.Option("--output", "-o", help="The HTML page; a JSON file is put beside it.")
    ] = Path("comparison.html"),
) -> None:
    """Compare recipes over several training seeds.

    The statistics are those of Agarwal et al. (2021). Name the baseline first.
    """
    from mario.jobs.compare import compare_recipes, comparison_lines, parse_recipe, write_comparison
    from mario.jobs.context import JobContext

    with JobContext.open() as context:
        comparison = compare_recipes(
            [parse_recipe(recipe) for recipe in recipes],
            task,
            context,
            units=units,
            metric=metric,
            seed=seed,
        )
    words = ("mario", "compare", *recipes, "--task", task, "--units", str(units))
    command = shlex.join((*words, "--metric", metric, "--seed", str(seed)))
    page = write_comparison(comparison, output, command=command)
    for line in comparison_lines(comparison):
        typer.echo(line)
    typer.echo(page)


def record(
    policy: PolicyArgument = "champion",
    level: Annotated[str, typer.Option(help="The level to play.")] = "1-1",
    task: TaskOption = "1-1",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episode.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The MP4 file.")] = Path(
        "episode.mp4"
    ),
    console: ConsoleOption = "native",
) -> None:
    """Play one episode and write it as a video."""
    from mario.jobs.context import JobContext
    from mario.jobs.record import record_episode

    with JobContext.open() as context:
        pictures = record_episode(policy, task, (level, seed), output, context, console=console)
    typer.echo(f"{output} ({pictures} pictures)")
