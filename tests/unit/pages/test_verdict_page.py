"""Verdict and comparison pages: complete, self-contained, well-formed."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.comparison import compare_scores
from mario.evaluation.gate import decide
from mario.evaluation.records import PairedUnit
from mario.evaluation.verdict import Verdict
from mario.pages.comparison_page import render_comparison
from mario.pages.layout import write_page
from mario.pages.verdict_page import Video, pick_episodes, render_verdict
from tests.support.evaluation_helpers import clear_pairs, progress_pairs, record

VOID = {"meta", "circle", "line", "path", "rect", "br", "polygon", "polyline"}


class Balance(HTMLParser):
    """Checks that every element is closed in order, and collects references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(verdict, pairs, **more):
    return render_verdict(verdict, pairs, command="mario gate 7 --against champion", **more)


def test_verdict_page_shows_the_decision_and_is_self_contained():
    generator = np.random.default_rng(3)
    pairs = progress_pairs(
        generator.gamma(6, 180, 60).astype(int), generator.gamma(6, 100, 60).astype(int)
    )
    verdict = decide(pairs, GateRule(primary="progress", max_units=60))
    film = Video("median", "unit <7>", b"\0\0\0 ftypisom")
    html = page_of(verdict, pairs, challenger_label="version 7 & co", videos=[film])
    page = Balance(html)
    assert all(r.startswith("data:video/mp4;base64,") for r in page.references)
    assert base64.b64encode(film.mp4).decode() in html
    assert "http" not in html.replace("https://json-schema.org", "")
    for text in ("version 7 &amp; co", "unit &lt;7&gt;", "mario gate 7", "challenger is promoted",
                 "promote at 20", "distinct trajectories champion",
                 "as if the units had been fixed beforehand", "at any time",
                 "test of inferiority", "does not prove that there is none",
                 verdict.rule.in_words, f"at any time {verdict.challenger.clear_low_anytime:.1%}",
                 verdict.challenger.digest):  # fmt: skip
        assert text in html, text
    assert len(html) < 250_000
    embedded = re.search(r'id="verdict">(.*?)</script>', html, re.DOTALL)
    assert embedded
    assert Verdict.from_dict(json.loads(embedded.group(1))) == verdict


def test_every_kind_of_verdict_has_a_page():
    many = [
        p
        for block in zip(
            *[clear_pairs([(0, 1), (1, 1)] * 4, level) for level in ("1-1", "1-2")], strict=True
        )
        for p in block
    ]
    for pairs in (clear_pairs([(1, 1)]), clear_pairs([(0, 0)] * 3), many):
        verdict = decide(pairs, GateRule(primary="clear"))
        html = page_of(verdict, pairs)
        Balance(html)
        assert verdict.decision in html
        assert "nan" not in html.lower().replace("nanmin", "")
        for level in verdict.levels:
            assert f"Where episodes end on {level}" in html


def test_a_page_of_thousands_of_units_stays_small():
    """A curve has a limited number of points with a tooltip."""
    pairs = clear_pairs([(1, 0), (0, 1)] * 700)
    verdict = decide(pairs, GateRule(primary="clear", beta=1e-9))
    assert verdict.units == len(verdict.path) == 1_400
    html = page_of(verdict, pairs)
    marks = re.findall(r'class="hover"><title>after (\d+) units', html)
    assert len(marks) <= 600
    assert marks.count("1400") == 3, "the last point of every curve"
    drawn = html.split('id="verdict">')[0]
    assert len(drawn) < 250_000


def test_verdict_page_requires_all_counted_pairs():
    pairs = clear_pairs([(1, 0)] * 5)
    verdict = decide(pairs, GateRule(primary="clear"))
    with pytest.raises(EvaluationError, match="5 units"):
        page_of(verdict, pairs[:3])


def test_median_and_worst_episode_do_not_depend_on_the_order():
    pairs = [
        PairedUnit(record("a", seed=s, furthest_px=px), record("b", seed=s))
        for s, px in enumerate((900, 300, 700, 2000))
    ]
    picked = pick_episodes(pairs)
    assert (picked["worst"].furthest_px, picked["median"].furthest_px) == (300, 700)
    assert pick_episodes(list(reversed(pairs))) == picked
    with pytest.raises(EvaluationError):
        pick_episodes([])


def test_comparison_page(tmp_path):
    generator = np.random.default_rng(0)
    scores = {"plain <ppo>": generator.beta(2, 5, (4, 2)), "tuned": generator.beta(4, 3, (6, 2))}
    comparison = compare_scores(scores, ("1-1", "1-2"), generator, resamples=100)
    path = write_page(tmp_path / "new" / "c.html", render_comparison(comparison, command="mario …"))
    html = path.read_text()
    Balance(html)
    assert "plain &lt;ppo&gt;" in html
    assert "fewer than 5 training seeds" in html
    assert [p.name for p in path.parent.iterdir()] == ["c.html"]
