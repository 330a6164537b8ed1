"""The page a person opens after a pipeline: how it learned, how far it gets, what the gate said."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mario.evaluation.records import EpisodeRecord
from mario.evaluation.verdict import Verdict
from mario.store.records import EpisodeRow, Run

#: Episodes in the moving mean of the learning curve.
_WINDOW_EPISODES = 100
_COLOURS = ("#c84c0c", "#0058f8", "#7c7c7c")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff; }
h1 { line-height: 1.2; } .verdict { font-size: 1.25rem; font-weight: 600; }
.promote { color: #00702c; } .reject { color: #a81000; } .inconclusive { color: #7a5200; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
video { width: 100%; max-width: 32rem; image-rendering: pixelated; background: #000; }
code { background: #f3f3f3; padding: 0 .25rem; }
"""


def write_summary(
    path: Path,
    *,
    run: Run,
    episodes: Sequence[EpisodeRow],
    verdict_id: str,
    verdict: Verdict,
    sides: Sequence[tuple[str, Sequence[EpisodeRecord]]],
    video: Path | None,
    report: Path,
    outcome: str,
) -> Path:
    """Write the page, complete or absent.

    Args:
        path: the HTML file.
        run: the training run.
        episodes: its training episodes.
        verdict_id: the verdict's id in the store.
        verdict: what the gate said.
        sides: label and evaluation records of the challenger, the champion and the random policy.
        video: an MP4 beside the page; linked, not embedded.
        report: the verdict's own page, beside this one; linked.
        outcome: one sentence: who is champion now.

    Returns:
        The path.
    """
    import plotly.graph_objects as go

    curve = _learning_curve(go, episodes)
    distribution = _distribution(go, sides, verdict)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(run.name)}: {html.escape(verdict.decision)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(run.name)} on {html.escape(run.task)}</h1>",
        f"<p class='verdict {verdict.decision}'>{html.escape(verdict.decision.capitalize())}: "
        f"{html.escape(outcome)}</p>",
        "<ul>",
        *(f"<li>{html.escape(reason)}</li>" for reason in verdict.reasons),
        "</ul>",
        f"<p><a href='{html.escape(report.name)}'>The verdict with every number: evidence, "
        "effects, guards, videos</a></p>",
        _table(sides),
        "<h2>How far episodes get</h2>",
        distribution.to_html(full_html=False, include_plotlyjs=True),
        "<h2>How it learned</h2>",
        curve.to_html(full_html=False, include_plotlyjs=False),
        _video(video, path),
        _guards(verdict),
        "<h2>To repeat it</h2>",
        f"<p>Run <code>{html.escape(run.id)}</code>, verdict <code>{html.escape(verdict_id)}</code>"
        f", commit <code>{html.escape(run.git_commit or 'unknown')}</code>, configuration "
        f"<code>{run.config_hash[:12]}</code>: <code>mario pipeline --config "
        f"{html.escape(str(path.parent / 'config.yaml'))}</code></p>",
        "</body></html>",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text("\n".join(parts), encoding="utf-8")
    aside.replace(path)
    return path


def moving_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Mean of the last `window` values at each place (of all so far, at the beginning).

    Args:
        values: float64 (N,).
        window: at least 1.

    Returns:
        float64 (N,).
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), dtype=np.float64)


def _learning_curve(go: Any, episodes: Sequence[EpisodeRow]) -> Any:
    ordered = sorted(episodes, key=lambda row: (row.total_steps, row.env_index))
    steps = np.array([row.total_steps for row in ordered])
    furthest = np.array([row.furthest_x_px for row in ordered], dtype=np.float64)
    figure = go.Figure()
    keep = slice(None, None, max(1, len(ordered) // 3000))
    figure.add_scatter(
        x=steps[keep], y=furthest[keep], mode="markers", name="episode",
        marker={"size": 3, "color": "#bbbbbb"},
    )  # fmt: skip
    if ordered:
        figure.add_scatter(
            x=steps[keep], y=moving_mean(furthest, _WINDOW_EPISODES)[keep], mode="lines",
            name=f"mean of {_WINDOW_EPISODES} episodes", line={"color": _COLOURS[0], "width": 3},
        )  # fmt: skip
    figure.update_layout(
        xaxis_title="agent steps (all environments)", yaxis_title="furthest x (px)",
        template="plotly_white", height=420, margin={"t": 20},
    )  # fmt: skip
    return figure


def _distribution(
    go: Any, sides: Sequence[tuple[str, Sequence[EpisodeRecord]]], verdict: Verdict
) -> Any:
    figure = go.Figure()
    for (label, records), colour in zip(sides, _COLOURS, strict=False):
        furthest = np.sort([record.furthest_px for record in records])
        share = 1.0 - np.arange(len(furthest)) / len(furthest)
        figure.add_scatter(
            x=furthest, y=share, mode="lines", name=label, line={"color": colour, "shape": "vh"}
        )
    lengths = {r.level_length_px for _, records in sides for r in records}
    if len(verdict.levels) == 1 and len(lengths) == 1:
        figure.add_vline(x=lengths.pop(), line_dash="dot", annotation_text="end of the level")
    figure.update_layout(
        xaxis_title="furthest x (px)", yaxis_title="share of episodes that get so far",
        yaxis_range=[0, 1.02], template="plotly_white", height=420, margin={"t": 20},
    )  # fmt: skip
    return figure


def _table(sides: Sequence[tuple[str, Sequence[EpisodeRecord]]]) -> str:
    rows = []
    for label, records in sides:
        furthest = np.array([record.furthest_px for record in records])
        score = np.mean([record.episode_score for record in records])
        rows.append(
            f"<tr><th scope='row'>{html.escape(label)}</th>"
            f"<td class='number'>{len(records)}</td><td class='number'>{furthest.mean():.0f}</td>"
            f"<td class='number'>{np.median(furthest):.0f}</td>"
            f"<td class='number'>{furthest.max()}</td>"
            f"<td class='number'>{sum(record.cleared for record in records)}</td>"
            f"<td class='number'>{score:.3f}</td></tr>"
        )
    return (
        "<table><caption>The same units (mario-eval-v1, confirmation seeds)</caption><thead><tr>"
        "<th>policy</th><th class='number'>units</th><th class='number'>mean furthest x (px)</th>"
        "<th class='number'>median</th><th class='number'>best</th><th class='number'>cleared</th>"
        "<th class='number'>score</th></tr></thead><tbody>" + "".join(rows) + "</tbody></table>"
    )


def _video(video: Path | None, page: Path) -> str:
    if video is None:
        return ""
    name = html.escape(str(video.relative_to(page.parent)))
    return (
        "<h2>The median episode</h2>"
        f"<video controls autoplay muted loop src='{name}'>"
        f"Your browser plays no MP4: {name}</video>"
    )


def _guards(verdict: Verdict) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(guard.name)}</th>"
        f"<td>{'passed' if guard.passed else 'FAILED'}</td>"
        f"<td class='number'>{guard.value:.4g}</td><td class='number'>{guard.limit:.4g}</td>"
        f"<td>{html.escape(guard.detail)}</td></tr>"
        for guard in verdict.guards
    )
    return (
        "<h2>Guards</h2><table><thead><tr><th>guard</th><th></th><th class='number'>value</th>"
        f"<th class='number'>limit</th><th>what it says</th></tr></thead><tbody>{rows}</tbody>"
        "</table>"
    )
