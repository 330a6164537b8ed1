"""The body of a comparison's page: intervals, chances of improvement, performance profiles."""

from __future__ import annotations

from html import escape

from mario.evaluation.aggregates import Interval
from mario.evaluation.comparison import Comparison

_COLOURS = ("#0072b2", "#c65d00", "#117a4c", "#9b4f96", "#6b5b00", "#b3261e")


def comparison_body(comparison: Comparison, command: str, title: str) -> str:
    """HTML of a comparison, without the page around it."""
    few = "".join(f'<p class="no">{escape(w)}</p>' for w in comparison.warnings)
    recipes = "".join(
        f'<tr><td><span style="color:{_colour(i)}">■</span> {escape(r.name)}</td>'
        f"<td class=n>{r.runs}</td><td class=n>{_interval(r.iqm)}</td>"
        f"<td class=n>{_interval(r.mean)}</td><td class=n>{_interval(r.median)}</td></tr>"
        for i, r in enumerate(comparison.recipes)
    )
    better = "".join(
        f"<tr><td>{escape(i.better)} beats {escape(i.than)}</td>"
        f"<td class=n>{_interval(i.probability)}</td><td class=n>{_interval(i.iqm_difference)}</td>"
        f"<td>{'clear cut' if i.clear_cut else 'not decided'}</td></tr>"
        for i in comparison.improvements
    )
    share = f"{comparison.confidence:.0%}"
    return (
        f"<header><h1>{escape(title)}</h1><p>{escape(comparison.metric)} on "
        f"{', '.join(comparison.levels)}; {share} intervals from {comparison.resamples} stratified "
        f"bootstrap resamples.</p>{few}</header>"
        "<h2>Aggregates</h2><table><thead><tr><th>recipe</th><th class=n>runs</th>"
        "<th class=n>interquartile mean</th><th class=n>mean</th><th class=n>median</th></tr>"
        f"</thead><tbody>{recipes}</tbody></table>"
        "<h2>Probability of improvement</h2><table><thead><tr><th></th><th class=n>probability</th>"
        "<th class=n>difference of interquartile means</th><th></th></tr></thead>"
        f"<tbody>{better}</tbody></table>"
        f"<h2>Performance profiles</h2><figure>{_profiles(comparison)}<figcaption>Share of runs "
        f"that score more than a threshold; bands are pointwise {share} intervals.</figcaption>"
        f"</figure><h2>Repeat it</h2><pre>{escape(command)}</pre>"
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
