"""The charts of a verdict as SVG, without a plotting library.

A plotting library adds megabytes of script to a page; these charts have a few kilobytes each. Every
mark has a `<title>`, which browsers show as a tooltip. Colour-blind readers can tell the colours
apart (Okabe & Ito); CSS adapts them to light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from mario.evaluation.records import EpisodeRecord, PairedUnit
from mario.evaluation.verdict import EvidencePoint, Verdict

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 14, 40
_BINS = 50
#: Most points of a curve with a tooltip: more would overlap.
_MOST_MARKS = 200


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _path(points: Sequence[tuple[float, float]], style: str) -> str:
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}" class="{style}"/>'


def _svg(height: float, label: str, *parts: str, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{''.join(parts)}</svg>"
    )


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ticks: Sequence[float],
    y_ticks: Sequence[tuple[float, str]],
    height: float,
    x_label: str,
) -> str:
    parts = []
    for value, text in y_ticks:
        parts.append(_line(_LEFT, y(value), WIDTH - _RIGHT, y(value), "grid"))
        parts.append(_text(_LEFT - 8, y(value) + 4, text, "end", "tick"))
    for value in x_ticks:
        parts.append(_text(x(value), height - _BOTTOM + 18, f"{value:g}", "middle", "tick"))
    parts.append(_text((_LEFT + WIDTH) / 2, height - 4, x_label, "middle", "axis"))
    return "".join(parts)


def _marked(path: Sequence[EvidencePoint]) -> Sequence[EvidencePoint]:
    """Select the points with a tooltip: evenly spread, including the last one."""
    step = -(-len(path) // _MOST_MARKS)
    return path[(len(path) - 1) % step :: step] if path else path


def evidence_chart(verdict: Verdict) -> str:
    """Draw both e-values over units, with both boundaries, on a logarithmic scale."""
    height = 300.0
    rule, path = verdict.rule, verdict.path
    bounds = (math.log(1 / rule.alpha), math.log(1 / rule.beta))
    series = (
        [(0, 0.0), *((p.units, p.log_e_better) for p in path)],
        [(0, 0.0), *((p.units, p.log_e_futility) for p in path)],
    )
    values = [v for line in series for _, v in line]
    # Clip evidence far below 1, which says no more than "none", to keep the boundaries legible.
    low, high = max(min(values), -math.log(1000)), max(*values, *bounds) * 1.08
    x = _scale(0, max(verdict.units, 2), _LEFT, WIDTH - _RIGHT)
    y = _scale(low, high, height - _BOTTOM, _TOP)
    decades = range(math.ceil(low / math.log(10)), math.floor(high / math.log(10)) + 1)
    step = max(1, len(decades) // 6)
    y_ticks = [(d * math.log(10), _power(d)) for d in decades if d % step == 0]
    marks = "".join(
        f'<circle cx="{x(p.units):.1f}" cy="{y(max(v, low)):.1f}" r="5" class="hover"><title>'
        f"after {p.units} units: {math.exp(min(v, 700)):.3g}</title></circle>"
        for p in _marked(path)
        for v in (p.log_e_better, p.log_e_futility)
    )
    return _svg(
        height,
        "Evidence over units with both boundaries",
        _axes(x, y, _ticks(0, verdict.units), y_ticks, height, "units played by both"),
        _line(_LEFT, y(bounds[0]), WIDTH - _RIGHT, y(bounds[0]), "bound a"),
        _line(_LEFT, y(bounds[1]), WIDTH - _RIGHT, y(bounds[1]), "bound b"),
        _text(_LEFT + 6, y(bounds[0]) - 5, f"promote at {1 / rule.alpha:.4g}", "start", "fill-a"),
        _text(_LEFT + 6, y(bounds[1]) - 5, f"futile at {1 / rule.beta:.4g}", "start", "fill-b"),
        _path([(x(u), y(max(v, low))) for u, v in series[0]], "curve a"),
        _path([(x(u), y(max(v, low))) for u, v in series[1]], "curve b dash"),
        marks,
    )


def _power(decade: int) -> str:
    return f"{10.0**decade:g}" if -3 <= decade <= 4 else f"1e{decade}"


def effect_chart(verdict: Verdict) -> str:
    """Draw the mean paired difference with its confidence sequence, over units."""
    height, path = 260.0, verdict.path
    delta = verdict.rule.smallest_effect
    late = [p for p in path if p.units >= max(3, verdict.units // 12)] or list(path)
    low = min(*(p.lower for p in late), -0.02, *(p.mean for p in late))
    high = max(*(p.upper for p in late), delta * 1.2, *(p.mean for p in late))
    low, high = max(low * 1.1, -1.0), min(high * 1.1, 1.0)
    x = _scale(0, max(verdict.units, 2), _LEFT, WIDTH - _RIGHT)
    y = _scale(low, high, height - _BOTTOM, _TOP)

    def inside(value: float) -> float:
        return y(min(max(value, low), high))

    band = [(x(p.units), inside(p.upper)) for p in path]
    band += [(x(p.units), inside(p.lower)) for p in reversed(path)]
    marks = "".join(
        f'<circle cx="{x(p.units):.1f}" cy="{inside(p.mean):.1f}" r="5" class="hover"><title>'
        f"after {p.units} units: {p.mean:+.4f}, between {p.lower:+.4f} and {p.upper:+.4f}"
        "</title></circle>"
        for p in _marked(path)
    )
    return _svg(
        height,
        f"Difference in {verdict.rule.primary} with its confidence sequence",
        _axes(
            x, y, _ticks(0, verdict.units), [(t, f"{t:+.3g}") for t in _ticks(low, high)], height,
            "units played by both",
        ),
        _path([*band, band[0]], "band"),
        _line(_LEFT, y(0), WIDTH - _RIGHT, y(0), "zero"),
        _line(_LEFT, y(delta), WIDTH - _RIGHT, y(delta), "bound b"),
        _text(WIDTH - _RIGHT, y(delta) - 5, f"smallest effect {delta:g}", "end", "fill-b"),
        _path([(x(p.units), inside(p.mean)) for p in path], "curve a"),
        marks,
    )  # fmt: skip


def forest_chart(verdict: Verdict) -> str:
    """Draw the difference of each level with its interval, and of the whole task at the bottom."""
    results = verdict.level_results
    rows = [(r.level, r.units, r.mean, r.lower, r.upper, r.p_holm) for r in results]
    effect = verdict.effect
    height = 26.0 * (len(rows) + 1) + _BOTTOM + 34
    reach = max(abs(v) for row in rows for v in row[2:5])
    reach = min(1.0, max(0.05, 1.1 * reach, 1.1 * abs(effect.lower), 1.1 * abs(effect.upper)))
    x = _scale(-reach, reach, _LEFT + 60, WIDTH - 120)
    parts = [
        _line(x(t), 26, x(t), height - _BOTTOM, "zero" if abs(t) < 1e-9 else "grid")
        + _text(x(t), height - _BOTTOM + 18, f"{t:+g}" if abs(t) > 1e-9 else "0", "middle", "tick")
        for t in _ticks(-reach, reach, 6)
    ]
    parts.append(_text(4, 18, "level (units)", "start", "axis"))
    parts.append(_text(WIDTH - 110, 18, "p worse (Holm)", "start", "axis"))
    for i, (level, units, mean, lower, upper, p) in enumerate(rows):
        y = 40.0 + 26 * i
        worse = p <= verdict.rule.level_alpha
        tip = f"{level}: {mean:+.3f}, between {lower:+.3f} and {upper:+.3f}"
        parts.append(
            f"<g><title>{tip}</title>"
            + _text(_LEFT, y + 4, f"{level} ({units})", "end", "tick")
            + _line(x(lower), y, x(upper), y, "curve bad" if worse else "curve a")
            + f'<rect x="{x(mean) - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" '
            f'class="{"fill-bad" if worse else "fill-a"}"/>'
            + _text(WIDTH - 110, y + 4, f"{p:.3g}", "start", "tick")
            + "</g>"
        )
    y = 40.0 + 26 * len(rows)
    diamond = [(x(effect.lower), y), (x(effect.mean), y - 7), (x(effect.upper), y),
               (x(effect.mean), y + 7), (x(effect.lower), y)]  # fmt: skip
    parts.append(_text(_LEFT, y + 4, f"all ({verdict.units})", "end", "tick strong"))
    parts.append(_path(diamond, "fill-b"))
    parts.append(
        _text((_LEFT + WIDTH) / 2, height - 4,
              f"challenger minus champion in {verdict.rule.primary}", "middle", "axis")
    )  # fmt: skip
    return _svg(height, "Difference by level", *parts)


def ends_chart(pairs: Sequence[PairedUnit], level: str, width: float = WIDTH) -> str:
    """Draw where episodes of a level end: challenger upwards, champion downwards.

    Args:
        pairs: counted pairs of any levels, at least one of `level`.
        level: the level.
        width: width of the drawing.
    """
    own = [p for p in pairs if p.level == level]
    length = own[0].challenger.level_length_px
    height, middle = 220.0, 98.0
    sides = [_ends([p.challenger for p in own]), _ends([p.champion for p in own])]
    top = max(1, *(int(s.max()) for s in sides))
    x = _scale(0, _BINS + 1, _LEFT, width - _RIGHT)
    unit = (middle - _TOP) / top
    parts = [_line(_LEFT, middle, width - _RIGHT, middle, "zero")]
    for counts, sign, fill, who in (
        (sides[0], -1, "fill-a", "challenger"),
        (sides[1], 1, "fill-b", "champion"),
    ):
        for i, count in enumerate(counts.tolist()):
            if not count:
                continue
            size = count * unit
            where = (
                "cleared"
                if i == _BINS
                else f"ended at {i * length // _BINS}–{(i + 1) * length // _BINS} px"
            )
            parts.append(
                f'<rect x="{x(i) + 1:.1f}" y="{middle - size if sign < 0 else middle:.1f}" '
                f'width="{x(1) - x(0) - 2:.1f}" height="{size:.1f}" class="{fill}">'
                f"<title>{who}: {count} of {len(own)} {where}</title></rect>"
            )
    ticks = [t for t in _ticks(0, length, 6 if width == WIDTH else 3) if t < 0.88 * length]
    parts += [
        _text(x(t / length * _BINS), height - _BOTTOM + 14, f"{t:g}", "middle", "tick")
        for t in ticks
    ]
    parts.append(_text(x(_BINS + 1), height - _BOTTOM + 14, "cleared", "end", "tick strong"))
    parts.append(_text(_LEFT - 8, _TOP + 10, f"{top}", "end", "tick"))
    parts.append(_text(_LEFT - 8, 2 * middle - _TOP, f"{top}", "end", "tick"))
    parts.append(_text(width - _RIGHT, _TOP + 4, "▲ challenger", "end", "fill-a"))
    parts.append(_text(width - _RIGHT, 2 * middle - _TOP, "▼ champion", "end", "fill-b"))
    parts.append(
        _text((_LEFT + width) / 2, height - 4, f"level {level}: furthest x in px", "middle", "axis")
    )
    return _svg(height, f"Where episodes end on {level}", *parts, width=width)


def _ends(records: Sequence[EpisodeRecord]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Count episodes by bin of the level, int64 `(_BINS + 1,)`; the last bin: cleared."""
    bins = [_BINS if r.cleared else min(int(r.progress * _BINS), _BINS - 1) for r in records]
    return np.bincount(bins, minlength=_BINS + 1)


def clear_chart(verdict: Verdict) -> str:
    """Draw both clear rates, with a fixed-sample interval (thick) and an any-time one (thin)."""
    height = 120.0
    x = _scale(0, 1, _LEFT + 60, WIDTH - 150)
    parts = [
        _line(x(t), _TOP, x(t), 74, "grid") + _text(x(t), 92, f"{t:.0%}", "middle", "tick")
        for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    for i, (who, side, style) in enumerate(
        (("challenger", verdict.challenger, "a"), ("champion", verdict.champion, "b"))
    ):
        y = 30.0 + 30 * i
        parts += [
            _text(_LEFT + 50, y + 4, who, "end", "tick"),
            _line(x(side.clear_low_anytime), y, x(side.clear_high_anytime), y, f"thin {style}"),
            _line(x(side.clear_low), y, x(side.clear_high), y, f"curve {style}"),
            f'<circle cx="{x(side.clear_rate):.1f}" cy="{y}" r="5" class="fill-{style}"/>',
            _text(WIDTH - 140, y + 4, f"{side.clears} of {verdict.units} ({side.clear_rate:.1%})",
                  "start", "tick"),
        ]  # fmt: skip
    parts.append(
        _text(
            (_LEFT + WIDTH) / 2,
            height - 6,
            "clear rate; thick: 95% as if the units had been fixed beforehand, thin: at any time",
            "middle",
            "axis",
        )
    )
    return _svg(height, "Clear rates", *parts)
