"""The summary page of a pipeline run: verdict, distance reached, learning curve, video."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mario.evaluation.records import EpisodeRecord
from mario.evaluation.verdict import Verdict
from mario.pages.layout import (
    decision_line,
    guards_table,
    page,
    section,
    table,
    write_page,
)
from mario.store.records import EpisodeEntry, Run

#: Episodes in the moving mean of the learning curve.
_WINDOW_EPISODES = 100
_COLOURS = ("#c84c0c", "#0058f8", "#7c7c7c")


def write_summary(
    path: Path,
    *,
    run: Run,
    episodes: Sequence[EpisodeEntry],
    verdict_id: str,
    verdict: Verdict,
    sides: Sequence[tuple[str, Sequence[EpisodeRecord]]],
    video: Path | None,
    report: Path,
    outcome: str,
) -> Path:
    """Write the summary page, complete or absent.

    Args:
        path: the HTML file.
        run: the training run.
        episodes: its training episodes.
        verdict_id: the verdict's id in the store.
        verdict: the verdict of the gate.
        sides: label and evaluation records of the challenger, the champion and the random policy.
        video: an MP4 beside the page; linked, not embedded.
        report: the verdict's own page, beside this one; linked.
        outcome: one sentence that names the champion now.

    Returns:
        The path.
    """
    import plotly.graph_objects as go

    curve = _learning_curve(go, episodes)
    distribution = _distribution(go, sides, verdict)
    parts = [
        f"<h1>{html.escape(run.name)} on {html.escape(run.task)}</h1>",
        decision_line(verdict, outcome),
        "<ul>",
        *(f"<li>{html.escape(reason)}</li>" for reason in verdict.reasons),
        "</ul>",
        f"<p><a href='{html.escape(report.name)}'>The verdict in detail: evidence, "
        "effects, guards, videos</a></p>",
        _sides_table(sides),
        section("Distance reached", distribution.to_html(full_html=False, include_plotlyjs=True)),
        section("Learning curve", curve.to_html(full_html=False, include_plotlyjs=False)),
        _video(video, path),
        section("Guards", guards_table(verdict)),
        "<h2>Repeat it</h2>",
        f"<p>Run <code>{html.escape(run.id)}</code>, verdict <code>{html.escape(verdict_id)}</code>"
        f", commit <code>{html.escape(run.git_commit or 'unknown')}</code>, configuration "
        f"<code>{run.config_hash[:12]}</code>: <code>mario pipeline --config "
        f"{html.escape(str(path.parent / 'config.yaml'))}</code></p>",
    ]
    return write_page(path, page(f"{run.name}: {verdict.decision}", "\n".join(parts)))


def moving_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Mean of the last `window` values at each index; of fewer at the beginning.

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


def _learning_curve(go: Any, episodes: Sequence[EpisodeEntry]) -> Any:
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
        xaxis_title="furthest x (px)", yaxis_title="share of episodes that get at least this far",
        yaxis_range=[0, 1.02], template="plotly_white", height=420, margin={"t": 20},
    )  # fmt: skip
    return figure


def _sides_table(sides: Sequence[tuple[str, Sequence[EpisodeRecord]]]) -> str:
    rows = []
    for label, records in sides:
        furthest = np.array([record.furthest_px for record in records])
        score = np.mean([record.episode_score for record in records])
        rows.append(
            (
                html.escape(label),
                str(len(records)),
                f"{furthest.mean():.0f}",
                f"{np.median(furthest):.0f}",
                str(furthest.max()),
                str(sum(record.cleared for record in records)),
                f"{score:.3f}",
            )
        )
    head = ("policy", "units", "mean furthest x (px)", "median", "best", "cleared", "score")
    caption = "The same units (mario-eval-v1, confirmation seeds)"
    return table(head, rows, range(1, 7), caption)


def _video(video: Path | None, page: Path) -> str:
    if video is None:
        return ""
    name = html.escape(str(video.relative_to(page.parent)))
    return (
        "<h2>The challenger's median episode</h2>"
        f"<video controls autoplay muted loop src='{name}'>"
        f"Your browser cannot play MP4: {name}</video>"
    )
