"""The layout that all pages share: style, skeleton, tables, the badge and guards of a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mario.evaluation.decision import GateDecision
from mario.evaluation.verdict import Verdict
from mario.files import write_whole

DECISIONS = {
    GateDecision.PROMOTE: "The challenger is promoted.",
    GateDecision.REJECT: "The champion stays: the challenger is rejected.",
    GateDecision.INCONCLUSIVE: "The champion stays: the evidence is insufficient.",
}

#: CSS of every page: light and dark, narrow and wide.
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#5b6673;--line:#d8dee4;--card:#f6f8fa;
--a:#0072b2;--b:#c65d00;--good:#117a4c;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e8ebee;--soft:#9aa6b2;--line:#343b43;
--card:#1d2228;--a:#56b4e9;--b:#e69f00;--good:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.55 system-ui,sans-serif}main{max-width:860px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.2rem;margin:2.2em 0 .5em}
p.note,figcaption,.small{color:var(--soft);font-size:.9rem}
.badge{display:inline-block;padding:.25em .8em;border-radius:1em;color:#fff;font-weight:600}
.promote{background:#117a4c}.reject{background:#b3261e}.inconclusive{background:#6b5b00}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.card b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}.ok{color:var(--good)}.no{color:var(--bad);font-weight:600}
code,pre{font-family:ui-monospace,monospace;font-size:.88rem;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;
overflow:auto;white-space:pre-wrap}figure{margin:0 0 8px}svg{width:100%;height:auto;display:block}
svg text{font:13px system-ui,sans-serif;fill:var(--fg);stroke:none}svg .tick{fill:var(--soft)}
svg .axis{fill:var(--soft);font-style:italic}svg .strong{font-weight:700;fill:var(--fg)}
svg .grid{stroke:var(--line)}svg .zero{stroke:var(--soft);stroke-width:1.4}
svg .curve{fill:none;stroke-width:2.4}svg .thin{stroke-width:1.2}
svg .a{stroke:var(--a)}svg .b{stroke:var(--b)}
svg .bad{stroke:var(--bad)}svg .dash{stroke-dasharray:7 4}
svg .bound{stroke-width:1.5;stroke-dasharray:3 4}
svg .fill-a{fill:var(--a)}svg .fill-b{fill:var(--b)}svg .fill-bad{fill:var(--bad)}
svg .band{fill:var(--a);fill-opacity:.16}svg .hover{fill:transparent}
svg .hover:hover{fill:var(--fg)}.videos{display:grid;
grid-template-columns:repeat(auto-fit,minmax(256px,1fr));gap:16px}
.many{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:4px 16px}
caption{text-align:left;font-weight:600}
video{width:100%;max-width:512px;image-rendering:pixelated;border-radius:6px;background:#000}
"""


def page(title: str, body: str) -> str:
    """Return a complete HTML5 page without external references; ``body`` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(heading: str, content: str, note: str = "") -> str:
    """Return a section with a heading, a figure and a caption; content and note are HTML."""
    caption = f"<figcaption>{note}</figcaption>" if note else ""
    return f"<section><h2>{escape(heading)}</h2><figure>{content}{caption}</figure></section>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Sequence[int] = (),
    caption: str = "",
) -> str:
    """Return a table; cells are HTML, columns in `numeric` are right-aligned."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numeric else ''}>{value}</{tag}>"
            for i, value in enumerate(row)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f"<table>{title}<thead><tr>{cells('th', head)}</tr></thead><tbody>{lines}</tbody></table>"
    )


def decision_line(verdict: Verdict, words: str) -> str:
    """Return the decision of a verdict as a badge, followed by `words`."""
    decision = escape(verdict.decision)
    return f'<p><span class="badge {decision}">{decision}</span> {escape(words)}</p>'


def guards_table(verdict: Verdict) -> str:
    """Return a table of the guards: result, measured value, limit and detail."""
    rows = [
        (
            escape(g.name.replace("_", " ")),
            '<span class="ok">passed</span>' if g.passed else '<span class="no">refuses</span>',
            f"{g.value:.4g}",
            f"{g.limit:.4g}",
            escape(g.detail),
        )
        for g in verdict.guards
    ]
    return table(("guard", "", "measured", "limit", "in words"), rows, (2, 3))


def write_page(path: Path, html: str) -> Path:
    """Write a page, complete or absent, with its folder; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html.encode())
    return path
