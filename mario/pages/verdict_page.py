"""The page of a verdict of the gate.

The page is self-contained, so that it opens from a mail attachment and without a network: charts
are SVG, videos base64 MP4, the verdict JSON. `pick_episodes` selects the episodes to record; the
caller passes their videos in.

    html = render_verdict(verdict, pairs, command="mario gate --again VERDICT",
                          videos=[Video("median", "…", mp4_bytes)])
    write_page(path, html)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mario.config.gate import GATE
from mario.errors import EvaluationError
from mario.evaluation.records import EpisodeRecord, PairedUnit, metric_value
from mario.evaluation.verdict import Verdict
from mario.pages.layout import (
    DECISIONS,
    decision_line,
    guards_table,
    page,
    section,
    table,
)
from mario.pages.verdict_charts import (
    clear_chart,
    effect_chart,
    ends_chart,
    evidence_chart,
    forest_chart,
)

#: With more levels than this, the charts of where episodes end have two columns.
_MANY_LEVELS = 3


@dataclass(frozen=True, slots=True)
class Video:
    """A video of one episode.

    Attributes:
        name: `median`, `worst`, …
        caption: text below the video.
        mp4: bytes of the file (H.264 in MP4).
    """

    name: str
    caption: str
    mp4: bytes


def pick_episodes(pairs: Sequence[PairedUnit], metric: str = "score") -> dict[str, EpisodeRecord]:
    """Select the challenger's median and worst episode among counted pairs.

    Args:
        pairs: at least one.
        metric: `score`, `clear` or `progress`; progress, score, level and seed break ties, so that
            the same records always give the same episodes.

    Returns:
        `{"median": …, "worst": …}`.

    Raises:
        EvaluationError: no pairs.
    """
    if not pairs:
        raise EvaluationError("got no units; expected at least one; evaluate first")
    ranked = sorted(
        (p.challenger for p in pairs),
        key=lambda r: (metric_value(r, metric), r.progress, r.episode_score, r.level, r.seed),
    )
    return {"median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def render_verdict(
    verdict: Verdict,
    pairs: Sequence[PairedUnit],
    *,
    command: str,
    challenger_label: str = "challenger",
    champion_label: str = "champion",
    title: str = "Verdict of the gate",
    videos: Iterable[Video] = (),
) -> str:
    """Render the page of a verdict.

    Args:
        verdict: the verdict.
        pairs: the played units in order; the first `verdict.units` count.
        command: the command that repeats the verdict.
        challenger_label: name of the challenger, e.g. `mario-1-1 version 7`.
        champion_label: name of the champion.
        title: title of the page.
        videos: videos to embed.

    Returns:
        HTML5 without external references.

    Raises:
        EvaluationError: fewer pairs than the verdict counted.
    """
    if len(pairs) < verdict.units:
        raise EvaluationError(
            f"got {len(pairs)} pairs for a verdict on {verdict.units} units; expected all of them; "
            "read them from the store"
        )
    counted = pairs[: verdict.units]
    body = [
        _head(verdict, challenger_label, champion_label, title),
        section("Evidence", evidence_chart(verdict), _evidence_note(verdict)),
        section("Effect", effect_chart(verdict) + _effects_table(verdict), _effect_note(verdict)),
        section("Level by level", forest_chart(verdict), _levels_note(verdict)),
        section(
            "Where episodes end",
            _ends(counted, verdict.levels),
            "Each bar counts the episodes whose furthest point lies there; the last bar counts the "
            "cleared ones.",
        ),
        section("Clear rate", clear_chart(verdict), _clear_note(verdict)),
        _videos(list(videos)),
        section(
            "Guards",
            guards_table(verdict),
            "A single guard that refuses keeps the champion. “levels” refuses if a loss is proven; "
            "passing it does not prove that there is none.",
        ),
        section("The rule", _rule_table(verdict), f"{escape(verdict.rule.in_words)}."),
        section(
            "Repeat it",
            f"<pre>{escape(command)}</pre>",
            "The test (both policies, levels, rule) determines the confirmation seeds, so the same "
            "test plays the same units and ends with the same verdict.",
        ),
        _json_section(verdict),
    ]
    return page(title, "".join(body))


def _card(label: str, value: str, detail: str = "") -> str:
    return (
        f'<div class="card">{escape(label)}<b>{value}</b><span class="small">{detail}</span></div>'
    )


def _head(verdict: Verdict, challenger: str, champion: str, title: str) -> str:
    effect, rule = verdict.effect, verdict.rule
    reasons = "".join(f"<li>{escape(r)}</li>" for r in verdict.reasons)
    ratio = (
        f"{verdict.challenger.mean_furthest_px / verdict.champion.mean_furthest_px:.2f} times"
        if verdict.champion.mean_furthest_px > 0
        else "far beyond"
    )
    return (
        f"<header><p class=small>{escape(title)} · {escape(GATE)} · "
        f"{escape(verdict.protocol)} · {', '.join(verdict.levels)}</p>"
        f"<h1>{escape(challenger)} against {escape(champion)}</h1>"
        f"{decision_line(verdict, DECISIONS[verdict.decision])}<ul>{reasons}</ul></header>"
        '<div class="cards">'
        + _card("units", str(verdict.units), f"of at most {rule.max_units}, played by both")
        + _card(
            f"difference in {rule.primary}",
            f"{effect.mean:+.3f}",
            f"between {effect.lower:+.3f} and {effect.upper:+.3f}",
        )
        + _card(
            "p-value, at any time", f"{verdict.p_value:.3g}", f"evidence {verdict.e_better:.3g}"
        )
        + _card(
            "furthest x, mean",
            f"{verdict.challenger.mean_furthest_px:.0f} px",
            f"{ratio} the champion's {verdict.champion.mean_furthest_px:.0f} px",
        )
        + "</div>"
        f'<p class="small">challenger <code>{escape(verdict.challenger.digest)}</code><br>'
        f"champion <code>{escape(verdict.champion.digest)}</code></p>"
    )


def _evidence_note(verdict: Verdict) -> str:
    rule = verdict.rule
    return (
        "Solid: evidence against “no better”, a product over units. If the challenger is no "
        f"better, it ever exceeds {1 / rule.alpha:.4g} with probability at most {rule.alpha:.3g}, "
        "however often one looks. Dashed: evidence against “better by "
        f"{rule.smallest_effect:g} or more”; at {1 / rule.beta:.4g} the test stops for futility. "
        f"For comparison: p = {verdict.p_permutation:.3g} in a paired permutation test with a "
        "fixed sample, which ignores when the test stopped."
    )


def _effect_note(verdict: Verdict) -> str:
    return (
        "Line: mean difference per unit. Band: all values that the evidence so far does not rule "
        f"out; each edge ever excludes the true value with probability at most "
        f"{verdict.rule.alpha:.3g}."
    )


def _levels_note(verdict: Verdict) -> str:
    return (
        "The interval of a level holds at any time, for that level alone; the last column is "
        f"corrected for {len(verdict.levels)} level(s). A level is significantly worse at p ≤ "
        f"{verdict.rule.level_alpha:g}. This is a test of inferiority: a level that is not "
        "significantly worse is not proven to be as good."
    )


def _clear_note(verdict: Verdict) -> str:
    sides = "; ".join(
        f"{who} {side.clear_low:.1%} to {side.clear_high:.1%}, at any time "
        f"{side.clear_low_anytime:.1%} to {side.clear_high_anytime:.1%}"
        for who, side in (("challenger", verdict.challenger), ("champion", verdict.champion))
    )
    return (
        "Thick: Clopper–Pearson 95% interval, as if the number of units had been fixed "
        "beforehand; as the data decided when to stop, it covers the true rate less often, above "
        f"all after a lucky promotion. Thin: 95% confidence sequence, valid at any time. {sides}."
    )


def _ends(counted: Sequence[PairedUnit], levels: Sequence[str]) -> str:
    if len(levels) <= _MANY_LEVELS:
        return "".join(ends_chart(counted, level) for level in levels)
    charts = "".join(ends_chart(counted, level, 400.0) for level in levels)
    return f'<div class="many">{charts}</div>'


def _effects_table(verdict: Verdict) -> str:
    mine, theirs = verdict.challenger, verdict.champion
    values = {
        "score": (mine.mean_score, theirs.mean_score),
        "clear": (mine.clear_rate, theirs.clear_rate),
        "progress": (mine.mean_progress, theirs.mean_progress),
    }
    rows = [
        (
            f"<b>{name}</b> (decides)" if name == verdict.rule.primary else name,
            f"{values[name][0]:.4f}",
            f"{values[name][1]:.4f}",
            f"{effect.mean:+.4f}",
            f"{effect.lower:+.4f} … {effect.upper:+.4f}",
        )
        for name, effect in verdict.effects.items()
    ]
    head = ("metric, 0 to 1", "challenger", "champion", "difference", "confidence sequence")
    return table(head, rows, (1, 2, 3, 4))


def _rule_table(verdict: Verdict) -> str:
    values = verdict.rule.to_dict()
    values["delta"] = verdict.rule.smallest_effect
    rows = [(f"<code>{k}</code>", escape("—" if v is None else str(v))) for k, v in values.items()]
    return table(("setting", "value"), rows)


def _videos(videos: Sequence[Video]) -> str:
    if not videos:
        return ""
    films = "".join(
        f'<figure><video controls muted loop playsinline preload="metadata" '
        f'src="data:video/mp4;base64,{base64.b64encode(v.mp4).decode()}"></video>'
        f"<figcaption><b>{escape(v.name)}</b>: {escape(v.caption)}</figcaption></figure>"
        for v in videos
    )
    return (
        f'<section><h2>Episodes of the challenger</h2><div class="videos">{films}</div></section>'
    )


def _json_section(verdict: Verdict) -> str:
    # "</" would end the script element early; JSON may write "/" as "\\/".
    text = json.dumps(verdict.to_dict(), sort_keys=True).replace("</", "<\\/")
    return (
        '<section><h2>Data</h2><p class="note">The element with the id <code>verdict</code> of '
        f"this page holds the verdict as JSON ({escape(verdict.version)}).</p>"
        f'<script type="application/json" id="verdict">{text}</script></section>'
    )
