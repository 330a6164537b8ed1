"""`mario gate` and `mario compare`: exit codes, page and JSON."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

from mario.cli import main as cli
from mario.config.experiment import load_config
from mario.jobs.context import JobContext
from mario.jobs.versions import champion_version
from tests.support.policies import GOOD, POOR, write_odds_policy

# A high α keeps the test short; the second challenger is tested at a lower one.
EXPERIMENT = (
    "{name: short, total_steps: 1, task: 1-1, "
    "gate: {primary: progress, alpha: 0.4, min_units: 8, max_units: 100}}"
)

Mario = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def mario(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mario:
    """Run the command line in this process, which has the heavy imports already."""
    monkeypatch.setenv("MARIO_RUNS_DIR", str(context.settings.runs_dir))
    monkeypatch.delenv("MARIO_DATABASE_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["mario", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return run


def test_the_gate_exits_with_0_for_a_promotion_and_with_4_otherwise(
    context: JobContext, mario: Mario, tmp_path: Path
) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(EXPERIMENT, encoding="utf-8")
    versions = []
    for name, odds in (("good", GOOD), ("poor", POOR)):
        write_odds_policy(tmp_path / name, odds)
        registry = context.registry
        versions.append(registry.register("mario-1-1", tmp_path / name).version)
    for version, code, words in zip(
        versions, (0, 4), ({"promote"}, {"reject", "inconclusive"}), strict=True
    ):
        done = mario("gate", str(version), "--config", str(config))
        said = done.out + done.err
        assert done.code == code, said
        assert "Traceback" not in said
        assert f"rule of {config}: progress, smallest effect 0.05, alpha 0.4, beta 0.1" in done.err
        assert done.out.split(":")[0].lower() in words
        assert ("promote with: mario promote" in done.out) == (code == 0)
    store = context.store
    stored = store.evaluations.verdicts("mario-1-1")
    assert [verdict.challenger_version for verdict in stored] == versions
    assert stored[0].decision == "promote"
    assert stored[1].decision != "promote"
    declared = load_config(config).gate.alpha
    spent = [verdict.detail["rule"]["alpha"] for verdict in stored]
    assert declared > spent[0] > spent[1], "each challenger has less of the declared level"
    assert champion_version("1-1", context) is None, "the gate judges; `mario promote` promotes"
    # The command on the page of the verdict repeats it.
    for verdict, code in zip(stored, (0, 4), strict=True):
        again = mario("gate", "--again", verdict.id)
        assert again.code == code, again.out + again.err
        assert f"every number is that of {verdict.id}" in again.out
    page = tmp_path / "pages" / "verdict.html"
    assert mario("report", stored[0].id, "--output", str(page)).code == 0
    assert f"mario gate --again {stored[0].id}" in page.read_text(encoding="utf-8")
    document = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert document == stored[0].detail
    store = context.store
    assert len(store.evaluations.verdicts("mario-1-1")) == 2, "a repetition is no verdict"


def test_an_unregistered_challenger_is_refused_before_alpha_is_spent(
    context: JobContext, mario: Mario, tmp_path: Path
) -> None:
    write_odds_policy(tmp_path / "good", GOOD)
    for reference in (str(tmp_path / "good"), "random"):
        done = mario("gate", reference)
        assert done.code == 2, done.out + done.err
        assert "no registered version" in done.err
        assert "Traceback" not in done.err
    store = context.store
    assert not store.evaluations.verdicts("mario-1-1")
    assert not store.ledger.alpha_entries("mario-1-1")


def test_a_comparison_of_two_recipes_as_page_and_as_json(mario: Mario, tmp_path: Path) -> None:
    recipes = []
    for name, odds in (("poor", POOR), ("good", GOOD)):
        folders = []
        for seed in (1, 2):
            folder = tmp_path / f"{name} & co" / str(seed)
            write_odds_policy(folder, (odds[0] + 0.001 * seed, *odds[1:]))
            folders.append(str(folder))
        recipes.append(f"{name}={','.join(folders)}")
    page = tmp_path / "pages" / "comparison.html"
    command = ("compare", *recipes, "--units", "6", "--metric", "progress", "--output", str(page))
    done = mario(*command)
    assert done.code == 0, done.out + done.err
    assert str(page) in done.out
    html = page.read_text(encoding="utf-8")
    assert "poor" in html
    assert "good" in html
    for quote in "\"'":
        assert f"src={quote}http" not in html, "the page needs nothing but itself"
    text = page.with_suffix(".json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["metric"] == "progress"
    assert [(recipe["name"], recipe["runs"]) for recipe in document["recipes"]] == [
        ("poor", 2),
        ("good", 2),
    ]
    poor, good = (recipe["iqm"] for recipe in document["recipes"])
    assert len(poor) == len(good) == 3, "value, lower and upper end"
    assert 0 <= poor[1] <= poor[0] <= poor[2] < good[1] <= good[0] <= good[2] <= 1
    (better,) = document["improvements"]
    assert (better["better"], better["than"]) == ("good", "poor")
    assert better["probability"][0] == 1
    assert [warning for warning in document["warnings"] if "fewer than 5" in warning]

    # The command on the page repeats it, whatever the names of the folders.
    shown = re.search(r"mario compare .*", unescape(html))
    assert shown is not None
    printed = shlex.split(shown.group().split("</pre>")[0])
    assert printed[2:4] == recipes
    page.unlink()
    again = mario(*printed[1:], "--output", str(page))
    assert again.code == 0, again.out + again.err
    repeated = page.with_suffix(".json").read_text(encoding="utf-8")
    assert repeated == text, "same seed, same intervals"
