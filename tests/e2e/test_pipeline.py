"""The pipeline as a person runs it, twice: pages, video, verdict, a seed of its own each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mario.jobs.context import JobContext, JobSettings
from mario.jobs.gate import repeat_verdict
from mario.jobs.versions import champion_version
from tests.support.paths import ROOT
from tests.support.videos import moving_share

pytestmark = pytest.mark.slow

SHORT = [
    *("--set", "total_steps=1024", "--set", "evaluation.screening_units=2"),
    *("--set", "gate.primary=progress", "--set", "gate.max_units=6"),
]


def pipeline(runs_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "mario.cli", "pipeline", "--config", "configs/smoke.yaml"),
            *SHORT,
            *options,
        ],
        cwd=ROOT,
        env={**os.environ, "MARIO_RUNS_DIR": str(runs_dir)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_twice_in_a_row(tmp_path: Path) -> None:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    for number in (1, 2):
        done = pipeline(context.settings.runs_dir, "--next-seed", "--require-promotion")
        assert "Traceback" not in done.stderr
        promoted = "(promoted just now)" in done.stdout
        assert done.returncode == (0 if promoted else 4), done.stdout + done.stderr
        found = dict(re.findall(r"^(summary|verdict|video) +(\S+)$", done.stdout, re.MULTILINE))
        page = Path(found["summary"]).read_text(encoding="utf-8")
        assert "random policy" in page
        assert "mean of 100 episodes" in page
        assert "src='http" not in page
        assert moving_share(Path(found["video"])) > 0.5
        store = context.store
        runs = store.runs.list()
        verdicts = store.evaluations.verdicts("mario-1-1")
        assert len(runs) == len(verdicts) == number
        assert {run.status for run in runs} == {"finished"}
        assert len({run.config["seed"] for run in runs}) == number
    digests = {verdict.challenger_digest for verdict in verdicts}
    assert len(digests) == 2, "two seeds, two policies"
    same, _ = repeat_verdict(verdicts[0].id, context)
    assert same, "the one command on the verdict's page repeats every number"
    assert champion_version("1-1", context) in (None, 1, 2)
