"""One self-contained HTML page per verdict, and one per comparison of recipes.

The page holds everything: charts as SVG, videos as base64 MP4, the verdict as JSON. It opens from
a mail attachment, without a network, in ten years. The caller passes the videos in; which episodes
to film is said by `pick_episodes`.

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

from mario.errors import EvaluationError
from mario.evaluation.comparison import Comparison
from mario.evaluation.records import EpisodeRecord, PairedUnit, metric_value
from mario.evaluation.verdict import Verdict
from mario.pages.charts import (
    clear_chart,
    effect_chart,
    ends_chart,
    evidence_chart,
    forest_chart,
)
from mario.pages.comparison import comparison_body
from mario.pages.parts import (
    SAYS,
    decision_line,
    guards_table,
    page,
    section,
    table,
    write_page,
)

__all__ = ["Video", "pick_episodes", "render_comparison", "render_verdict", "write_page"]

#: From this many levels on, the charts of where episodes end stand in two columns.
_MANY_LEVELS = 3


@dataclass(frozen=True, slots=True)
class Video:
    """A film of one episode.

    Attributes:
        name: `median`, `worst`, …
        caption: what is seen.
        mp4: the file's bytes (H.264 in MP4, which every browser plays).
    """

    name: str
    caption: str
    mp4: bytes


def pick_episodes(pairs: Sequence[PairedUnit], metric: str = "score") -> dict[str, EpisodeRecord]:
    """The challenger's median and worst episode among counted pairs.

    Args:
        pairs: at least one.
        metric: `score`, `clear` or `progress`; ties are broken by progress, time left and seed,
            so that the same records always give the same two episodes.

    Returns:
        `{"median": …, "worst": …}`.

    Raises:
        EvaluationError: no pairs.
    """
    if not pairs:
        raise EvaluationError("got no units; expected at least one to choose from; evaluate first")
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
    """The page of one verdict.

    Args:
        verdict: what was decided.
        pairs: the units that were played, in order; the counted ones are the first `units`.
        command: the one command that repeats the verdict.
        challenger_label: what people call the challenger, e.g. `mario-1-1 version 7`.
        champion_label: the same for the champion.
        title: of the page.
        videos: films to embed.

    Returns:
        HTML5; refers to nothing outside itself.

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
            "Each bar counts episodes whose furthest point lies there; the last column is cleared.",
        ),
        section("Clear rate", clear_chart(verdict), _clear_note(verdict)),
        _videos(list(videos)),
        section(
            "Guards",
            guards_table(verdict),
            "One guard that refuses keeps the champion. “levels” refuses a loss that is proven; "
            "that it passes does not prove that there is none.",
        ),
        section("The rule", _rule_table(verdict), f"{escape(verdict.rule.in_words)}."),
        section(
            "Repeat it",
            f"<pre>{escape(command)}</pre>",
            "Confirmation seeds come from the test (who against whom, where, under which rule), so "
            "the same test meets the same units and gets the same verdict.",
        ),
        _json_section(verdict),
    ]
    return page(title, "".join(body))


def render_comparison(comparison: Comparison, *, command: str, title: str = "Recipes") -> str:
    """The page of one comparison of recipes (`compare.py`), self-contained like a verdict's."""
    return page(title, comparison_body(comparison, command, title))


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
        else "beyond"
    )
    return (
        f"<header><p class=small>{escape(title)} · {escape(rule.version)} · "
        f"{escape(verdict.protocol)} · {', '.join(verdict.levels)}</p>"
        f"<h1>{escape(challenger)} against {escape(champion)}</h1>"
        f"{decision_line(verdict, SAYS[verdict.decision])}<ul>{reasons}</ul></header>"
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
        f"Solid: evidence against “no better”. It multiplies with every unit and passes "
        f"{1 / rule.alpha:.4g} with a chance of at most {rule.alpha:.3g} when the challenger is no "
        f"better, however often one looks. Dashed: evidence against “better by "
        f"{rule.smallest_effect:g} or more”; at {1 / rule.beta:.4g} going on is futile. Secondary: "
        f"fixed-sample paired permutation test p = {verdict.p_permutation:.3g} (ignores when the "
        "test stopped)."
    )


def _effect_note(verdict: Verdict) -> str:
    return (
        "Line: average difference per unit. Band: every value that the evidence so far does not "
        "rule out; each edge is ever on the wrong side with a chance of at most "
        f"{verdict.rule.alpha:.3g}."
    )


def _levels_note(verdict: Verdict) -> str:
    return (
        "Intervals of single levels hold at any time, each for itself; the last column corrects "
        f"for {len(verdict.levels)} level(s). A level is significantly worse at p ≤ "
        f"{verdict.rule.level_alpha:g}. It is a test of inferiority: a level that is not "
        "significantly worse has not been shown to be as good."
    )


def _clear_note(verdict: Verdict) -> str:
    sides = "; ".join(
        f"{who} {side.clear_low:.1%} to {side.clear_high:.1%}, at any time "
        f"{side.clear_low_anytime:.1%} to {side.clear_high_anytime:.1%}"
        for who, side in (("challenger", verdict.challenger), ("champion", verdict.champion))
    )
    return (
        "Thick: Clopper and Pearson’s 95% interval, as if the number of units had been fixed "
        "beforehand; the test stopped because of what it saw, so it covers the truth less often, "
        f"least of all after a lucky promotion. Thin: 95% confidence sequence at any time. {sides}."
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
        '<section><h2>As data</h2><p class="note">The verdict as JSON '
        f"({escape(verdict.version)}) is in this page, in the element with the id "
        "<code>verdict</code>.</p>"
        f'<script type="application/json" id="verdict">{text}</script></section>'
    )
