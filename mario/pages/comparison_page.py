"""The page of a comparison of recipes: aggregates, probability of improvement, profiles."""

from __future__ import annotations

from html import escape

from mario.evaluation.aggregates import Interval
from mario.evaluation.comparison import Comparison
from mario.pages.layout import page, table

_COLOURS = ("#0072b2", "#c65d00", "#117a4c", "#9b4f96", "#6b5b00", "#b3261e")


def render_comparison(comparison: Comparison, *, command: str, title: str = "Recipes") -> str:
    """Render the page of a comparison; `command` repeats it."""
    warnings = "".join(f'<p class="no">{escape(w)}</p>' for w in comparison.warnings)
    recipes = [
        (
            f'<span style="color:{_colour(i)}">■</span> {escape(recipe.name)}',
            str(recipe.runs),
            *map(_interval, (recipe.iqm, recipe.mean, recipe.median)),
        )
        for i, recipe in enumerate(comparison.recipes)
    ]
    improvements = [
        (
            f"{escape(i.better)} beats {escape(i.than)}",
            _interval(i.probability),
            _interval(i.iqm_difference),
            "conclusive" if i.clear_cut else "inconclusive",
        )
        for i in comparison.improvements
    ]
    share = f"{comparison.confidence:.0%}"
    return page(
        title,
        f"<header><h1>{escape(title)}</h1><p>{escape(comparison.metric)} on "
        f"{', '.join(comparison.levels)}; {share} intervals from {comparison.resamples} stratified "
        f"bootstrap resamples.</p>{warnings}</header><h2>Aggregates</h2>"
        + table(("recipe", "runs", "interquartile mean", "mean", "median"), recipes, range(1, 5))
        + "<h2>Probability of improvement</h2>"
        + table(
            ("", "probability", "difference of interquartile means", ""), improvements, range(1, 3)
        )
        + f"<h2>Performance profiles</h2><figure>{_profiles(comparison)}<figcaption>Share of runs "
        f"that score more than a threshold; bands are pointwise {share} intervals.</figcaption>"
        f"</figure><h2>Repeat it</h2><pre>{escape(command)}</pre>",
    )


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.lower:.3f} … {interval.upper:.3f})"


def _profiles(comparison: Comparison) -> str:
    left, top, width, height = 60, 14, 680, 220
    xs = [left + width * t for t in comparison.thresholds]

    def y(share: float) -> float:
        return top + height * (1 - share)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y(share):.1f}" y2="{y(share):.1f}" '
            f'class="grid"/><text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end" '
            f'class="tick">{share:.0%}</text><text x="{left + width * share:.1f}" '
            f'y="{top + height + 20}" text-anchor="middle" class="tick">{share:g}</text>'
        )
    for i, recipe in enumerate(comparison.recipes):
        upper = [f"{x:.1f},{y(v):.1f}" for x, v in zip(xs, recipe.profile_upper, strict=True)]
        lower = [f"{x:.1f},{y(v):.1f}" for x, v in zip(xs, recipe.profile_lower, strict=True)]
        line = [f"{x:.1f},{y(v):.1f}" for x, v in zip(xs, recipe.profile, strict=True)]
        band = " ".join([*upper, *reversed(lower)])
        parts.append(
            f'<polygon points="{band}" fill="{_colour(i)}" fill-opacity=".15"/>'
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{_colour(i)}" '
            f'stroke-width="2.4"><title>{escape(recipe.name)}</title></polyline>'
        )
    return (
        f'<svg viewBox="0 0 760 280" role="img" aria-label="Performance profiles">{"".join(parts)}'
        f'<text x="400" y="276" text-anchor="middle" class="axis">{escape(comparison.metric)}'
        "</text></svg>"
    )
