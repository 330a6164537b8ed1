"""`mario gate`, `mario promote` and `mario report`: test a challenger and act on the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mario.cli.options import ConsoleOption, OptionalTaskOption, TaskConfigOption
from mario.errors import EvaluationError

if TYPE_CHECKING:
    from mario.config.game import ConsoleName
    from mario.evaluation.decision import GateDecision
    from mario.jobs.context import JobContext


def gate(
    challenger: Annotated[
        str, typer.Argument(help="The registered version to test: challenger, or its number.")
    ] = "challenger",
    task: OptionalTaskOption = None,
    config: TaskConfigOption = None,
    console: ConsoleOption = "native",
    again: Annotated[
        str | None,
        typer.Option(help="Replay the units of this stored verdict and compare every number."),
    ] = None,
) -> None:
    """Test a challenger against the champion.

    The rule is mario-gate-v1. The exit code is 4 unless the verdict says promote.
    """
    from mario.evaluation.decision import GateDecision
    from mario.jobs.context import JobContext

    with JobContext.open() as context:
        if again is not None:
            decision = _repeat(again, context, cast("ConsoleName", console))
        else:
            decision = _judge(challenger, task, context, config, cast("ConsoleName", console))
    raise typer.Exit(0 if decision == GateDecision.PROMOTE else 4)


def _judge(
    reference: str,
    task: str | None,
    context: JobContext,
    config: Path | None,
    console: ConsoleName,
) -> GateDecision:
    """Test a challenger and show the verdict."""
    from mario.cli.experiment_options import task_and_levels
    from mario.config.evaluation import ENVIRONMENTS
    from mario.config.experiment import load_config
    from mario.config.gate import GateRule
    from mario.jobs.engines.factory import open_engine
    from mario.jobs.gate import champion_for, judge, load_challenger, verdict_lines

    settings = load_config(config) if config is not None else None
    task, levels = task_and_levels(task, settings)

    def show(units: int, cap: int, p_value: float) -> None:
        typer.echo(f"{units} of at most {cap} units, p = {p_value:.3g}", err=True)

    with open_engine(settings.evaluation if settings else None) as engine:
        challenger = load_challenger(reference, task, context)
        champion = champion_for(challenger, task, context)
        rule = settings.gate if settings else GateRule()
        source = f"rule of {config}" if config else "default rule (no --config)"
        typer.echo(f"{source}: {rule.in_words} (alpha of the task's whole stream)", err=True)
        outcome = judge(
            challenger,
            champion,
            rule,
            task,
            levels,
            context.store,
            environments=settings.evaluation.environments if settings else ENVIRONMENTS,
            console=console,
            engine=engine,
            on_units=show,
        )
    for line in verdict_lines(outcome):
        typer.echo(line)
    typer.echo(f"verdict {outcome.verdict_id}; its page: mario report {outcome.verdict_id}")
    if outcome.verdict.promoted:
        typer.echo(f"promote with: mario promote {outcome.verdict_id}")
    return outcome.verdict.decision


def _repeat(verdict_id: str, context: JobContext, console: ConsoleName) -> GateDecision:
    """Replay a verdict's units and show whether every number is the same."""
    from mario.jobs.gate import repeat_verdict

    same, verdict = repeat_verdict(verdict_id, context, console=console)
    typer.echo(f"{verdict.decision.upper()} over {verdict.units} units, p = {verdict.p_value:.3g}")
    if not same:
        raise EvaluationError(
            f"verdict {verdict_id} came out with other numbers; expected the very same; the code, "
            "the console or the libraries changed since (see the run's commit and versions)"
        )
    typer.echo(f"every number is that of {verdict_id}")
    return verdict.decision


def promote(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict that says promote.")],
) -> None:
    """Make the challenger of a verdict the champion.

    The promotion is written to the ledger first; MLflow's alias follows.
    """
    from mario.jobs.context import JobContext
    from mario.jobs.promote import promote_verdict

    with JobContext.open() as context:
        promotion = promote_verdict(verdict, context)
    typer.echo(f"{promotion.model} champion is now version {promotion.version}")


def report(
    verdict: Annotated[str, typer.Argument(help="Id of a stored verdict.")],
    output: Annotated[
        Path | None, typer.Option(help="The HTML page; a JSON file is put beside it.")
    ] = None,
) -> None:
    """Write the page of a stored verdict.

    The page shows two videos; the verdict as JSON is put beside it.
    """
    from mario.jobs.context import JobContext
    from mario.jobs.report import report_verdict

    with JobContext.open() as context:
        typer.echo(str(report_verdict(verdict, context, output)))
