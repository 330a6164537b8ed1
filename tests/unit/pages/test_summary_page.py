"""The summary page has the style, badge and guards of the verdict page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mario.config.gate import GateRule
from mario.evaluation.gate import decide
from mario.pages.layout import STYLE, guards_table
from mario.pages.summary_page import write_summary
from mario.pages.verdict_page import render_verdict
from mario.store.records import Run
from tests.support.evaluation_helpers import progress_pairs


def run() -> Run:
    return Run(
        id="run-1",
        name="demo <1>",
        task="1-1",
        algorithm="ppo",
        config={},
        config_hash="0" * 64,
        git_commit=None,
        git_diff=None,
        library_versions={},
        hardware={},
        status="finished",
        status_reason=None,
        parent_run_id=None,
        mlflow_run_id=None,
        imported=False,
        extra=None,
        started_at=datetime(2026, 11, 1, tzinfo=UTC),
        ended_at=None,
        attempts=(),
    )


def test_both_pages_share_style_badge_and_guards(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pairs = progress_pairs(
        generator.gamma(6, 180, 60).astype(int), generator.gamma(6, 100, 60).astype(int)
    )
    verdict = decide(pairs, GateRule(primary="progress", max_units=60))
    page = write_summary(
        tmp_path / "run-1" / "summary.html",
        run=run(),
        episodes=(),
        verdict_id="verdict-1",
        verdict=verdict,
        sides=[("new <1>", [p.challenger for p in pairs]), ("old", [p.champion for p in pairs])],
        video=tmp_path / "run-1" / "median-episode.mp4",
        report=tmp_path / "run-1" / "verdict.html",
        outcome="the champion of mario-1-1 is version 1",
    )
    summary = page.read_text(encoding="utf-8")
    report = render_verdict(verdict, pairs, command="mario gate --again verdict-1")
    for text in (STYLE, guards_table(verdict), '<span class="badge promote">promote</span>'):
        assert text in summary
        assert text in report
    for text in ("demo &lt;1&gt;", "new &lt;1&gt;", "is version 1", "src='median-episode.mp4'"):
        assert text in summary, text
    assert "<1>" not in summary.split("plotly")[0]
    assert summary.count("<html") == summary.count("</html>") == 1
    assert [path.name for path in page.parent.iterdir()] == ["summary.html"]
