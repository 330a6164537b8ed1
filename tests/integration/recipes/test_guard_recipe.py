"""A new guard of the gate is its limit and its name in `mario/config/gate.py`, and its module."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.recipes import changed_files, copy_tree, run

GUARD = '''"""Guard: the challenger's episodes are not too long."""

from __future__ import annotations

import numpy as np

from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult]:
    """Refuse slow play; value: median length of the challenger's episodes, in steps."""
    median = float(np.median([pair.challenger.steps for pair in given.pairs]))
    limit = given.rule.max_median_steps
    detail = f"half of the challenger's episodes take {median:.0f} steps or more"
    return (GuardResult("episode_length", median <= limit, median, float(limit), detail),)
'''

JUDGE = """
import json
from pathlib import Path

import jsonschema

from mario.config.experiment import load_config
from mario.evaluation.verdict import VERDICT_SCHEMA, Verdict
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.gate import judge
from mario.jobs.policies import policy_from_artefact
from mario.jobs.report import report_verdict
from tests.support.policies import GOOD, STUCK, write_odds_policy

for name, odds in (("good", GOOD), ("stuck", STUCK)):
    write_odds_policy(Path(name), odds)
good, stuck = (policy_from_artefact(Path(name)) for name in ("good", "stuck"))
verdicts = [json.loads(Path("tests/data/golden/gate-verdict.json").read_text())]
with JobContext(JobSettings.embedded("runs")) as context:
    for limit in (5, 3000):
        config = load_config("recipe.yaml", (f"gate.max_median_steps={limit}",))
        outcome = judge(good, stuck, config.gate, "1-1", ("1-1",), context.store)
        verdicts.append(dict(context.store.evaluations.verdict(outcome.verdict_id).detail))
    page = report_verdict(outcome.verdict_id, context).read_text(encoding="utf-8")
for verdict in verdicts:
    jsonschema.Draft202012Validator(VERDICT_SCHEMA).validate(verdict)
    Verdict.from_dict(verdict)
print(json.dumps([*verdicts[1:], "episode_length" in page]))
"""

CONFIG = """
name: recipe
total_steps: 512
environments: 4
game: {actions: complex}
gate: {primary: progress, alpha: 0.4, max_units: 60}
"""


def test_a_new_guard_is_two_files_and_refuses_a_promotion(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    config = tree / "mario/config/gate.py"
    text = config.read_text()
    for old, new in (
        ('    "inference_latency",\n)\n', '    "inference_latency",\n    "episode_length",\n)\n'),
        ("max_latency_ratio: Annotated[float, Field(gt=0)] = 2.0\n",
         "max_latency_ratio: Annotated[float, Field(gt=0)] = 2.0\n"
         "    max_median_steps: PositiveInt = 3_000\n"),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config.write_text(text)
    (tree / "mario/evaluation/guards/episode_length.py").write_text(GUARD)
    assert changed_files(tree) == [
        "mario/config/gate.py",
        "mario/evaluation/guards/episode_length.py",
    ]

    (tree / "recipe.yaml").write_text(CONFIG)
    (tree / "judge.py").write_text(JUDGE)
    # Another limit is another rule, so these are two tests of the same policies.
    verdict, passed, on_page = json.loads(run(tree, "judge.py").splitlines()[-1])
    assert (verdict["test_decision"], verdict["decision"]) == ("promote", "reject")
    assert verdict["reasons"][0].startswith("guard episode_length refuses: half of the challenger")
    assert verdict["rule"]["max_median_steps"] == 5
    assert verdict["guards"][-1]["name"] == "episode_length"
    assert passed["decision"] == "promote"
    assert passed["guards"][-1]["passed"]
    assert on_page
