"""Compare training recipes, each over several training seeds, with reproducible intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mario.config.game import ConsoleName
from mario.config.gate import METRICS
from mario.config.levels import task_levels
from mario.errors import EvaluationError
from mario.evaluation.comparison import Comparison, compare_scores, score_matrix
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.seeds import SeedFamily
from mario.jobs.context import JobContext
from mario.jobs.evaluate import evaluate_family
from mario.jobs.policies import load_policy
from mario.pages.comparison_page import render_comparison
from mario.pages.layout import write_page


@dataclass(frozen=True)
class Recipe:
    """A recipe: its name and its policies, one for each training seed."""

    name: str
    policies: tuple[str, ...]


def parse_recipe(text: str) -> Recipe:
    """Read ``NAME=POLICY,POLICY,…``; a policy is a version number or an artefact folder.

    Raises:
        EvaluationError: the text has another form, or names fewer than two policies.
    """
    name, separator, rest = text.partition("=")
    policies = tuple(part.strip() for part in rest.split(",") if part.strip())
    if not separator or not name or len(policies) < 2:
        raise EvaluationError(
            f"got recipe {text!r}; expected NAME=POLICY,POLICY,… with a policy for each of at "
            "least two training seeds; one run tells nothing about a recipe"
        )
    return Recipe(name, policies)


def compare_recipes(
    recipes: Sequence[Recipe],
    task: str,
    context: JobContext,
    *,
    units: int = 40,
    metric: str = "score",
    seed: int = 0,
    console: ConsoleName = "native",
) -> Comparison:
    """Play every policy of every recipe on the same screening units, and compare the recipes.

    Args:
        recipes: at least two, the baseline first.
        task: the levels, and the registered model of policies that are version numbers.
        context: store and registry; stored episodes are not played again.
        units: units for each policy.
        metric: `score`, `clear` or `progress`.
        seed: seed of the bootstrap; the same seed gives the same intervals.
        console: the console.

    Raises:
        EvaluationError: there are fewer than two recipes, a recipe or policy appears twice, or the
            metric is unknown.
    """
    if metric not in METRICS:
        raise EvaluationError(f"got metric {metric!r}; expected one of {', '.join(METRICS)}")
    if len({recipe.name for recipe in recipes}) != len(recipes):
        raise EvaluationError("got a recipe's name twice; expected each once; rename one of them")
    levels = task_levels(task)
    runs: dict[str, list[Sequence[EpisodeRecord]]] = {}
    for recipe in recipes:
        runs[recipe.name] = []
        for reference in recipe.policies:
            loaded = load_policy(reference, task, context)
            outcome = evaluate_family(
                loaded, levels, SeedFamily.SCREENING, units, context.store, console=console
            )
            runs[recipe.name].append(outcome.records)
    scores = {name: score_matrix(records, levels, metric) for name, records in runs.items()}
    return compare_scores(scores, levels, np.random.default_rng(seed), metric=metric)


def write_comparison(comparison: Comparison, output: Path, *, command: str) -> Path:
    """Write the page of a comparison, and its JSON beside the page.

    Args:
        comparison: what was compared.
        output: the HTML file.
        command: the command that repeats the comparison.

    Returns:
        The page.
    """
    page = write_page(output, render_comparison(comparison, command=command))
    document = json.dumps(comparison.to_dict(), indent=2)
    page.with_suffix(".json").write_text(document, encoding="utf-8")
    return page


def comparison_lines(comparison: Comparison) -> list[str]:
    """Describe a comparison: a line for each recipe, improvement and warning."""
    return [
        *(
            f"{recipe.name}: IQM {recipe.iqm.value:.3f} ({recipe.iqm.lower:.3f} to "
            f"{recipe.iqm.upper:.3f}), {recipe.runs} runs"
            for recipe in comparison.recipes
        ),
        *(
            f"{better.better} beats {better.than} with probability {better.probability.value:.2f} "
            f"({better.probability.lower:.2f} to {better.probability.upper:.2f})"
            for better in comparison.improvements
        ),
        *(f"note: {warning}" for warning in comparison.warnings),
    ]
