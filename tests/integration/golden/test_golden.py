"""What commit 1ce122b wrote is read, resumed and served by the code of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from mario.cli.main import app
from mario.evaluation.verdict import VERDICT_SCHEMA, Verdict
from mario.journal.format import pending_journals
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.store import migrate
from mario.store.check import check_store
from mario.store.store import ExperimentStore
from mario.training.checkpoint import list_checkpoints
from serving.policies.sources import FolderSource
from serving.policies.version_follower import load_version
from tests.support.golden import (
    GOLDEN,
    checkpoint_digest,
    processor,
    run_id_in,
    table_rows,
    unpack,
)


def _mario(runs_dir: Path, *arguments: str, code: int = 0) -> str:
    """Run `mario ARGUMENTS` in this process against a runs folder."""
    names = dict.fromkeys(("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"))
    done = CliRunner().invoke(app, list(arguments), env={**names, "MARIO_RUNS_DIR": str(runs_dir)})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_an_interrupted_run_resumes_and_finishes_as_with_the_code_that_began_it(
    algorithm: str, tmp_path: Path
) -> None:
    runs_dir = unpack(algorithm, tmp_path)
    run_id = run_id_in(runs_dir)

    assert "finished" in _mario(runs_dir, "train", "--resume", run_id)

    with ExperimentStore.open(f"sqlite:///{runs_dir / 'mario.db'}") as store:
        run = store.runs.get(run_id)
    assert run.status == "finished"
    first, second = run.attempts
    assert (first.status, second.status) == ("interrupted", "finished")
    assert second.start_steps == first.end_steps  # it went on, it did not begin anew
    assert (runs_dir / run_id / "policy" / "policy.onnx").is_file()
    expected = json.loads((GOLDEN / "checkpoints.json").read_text())
    left = {path.name: path for path in list_checkpoints(runs_dir / run_id / "checkpoints")}
    assert left.keys() == expected[algorithm].keys()
    if processor() == expected["processor"]:  # elsewhere float32 differs in its last bits
        assert {n: checkpoint_digest(path) for n, path in left.items()} == expected[algorithm]


def _without_latency(verdict: dict[str, Any]) -> dict[str, Any]:
    """A verdict without what is measured anew and what a batched runner plays ahead."""
    guards = [each for each in verdict["guards"] if each["name"] != "inference_latency"]
    assert len(guards) == len(verdict["guards"]) - 1
    shown: dict[str, Any] = _rounded({**verdict, "guards": guards, "units_given": None})
    return shown


def _rounded(value: Any) -> Any:
    """Floats to 10 significant digits: another processor may round the last one otherwise."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def test_an_interrupted_gate_test_goes_on_and_spends_no_further_alpha(tmp_path: Path) -> None:
    runs_dir = unpack("gate", tmp_path)
    before = table_rows(runs_dir / "mario.db")
    (open_test,) = [row for row in before["evaluations"] if row["status"] == "running"][:1]

    _mario(runs_dir, "gate", "2", "--config", str(GOLDEN / "gate.yaml"), code=4)

    after = table_rows(runs_dir / "mario.db")
    assert after["alpha_entries"] == before["alpha_entries"]
    assert [row["id"] for row in after["evaluations"]] == [
        row["id"] for row in before["evaluations"]
    ]
    stored = before["evaluation_episodes"]
    assert after["evaluation_episodes"][: len(stored)] == stored
    assert len(after["evaluation_episodes"]) > len(stored)
    assert any(row["evaluation_id"] == open_test["id"] for row in stored)
    with ExperimentStore.open(f"sqlite:///{runs_dir / 'mario.db'}") as store:
        first, newest = store.evaluations.verdicts("mario-1-1")
    # The verdict that 1ce122b came to when it went on with the same test.
    expected = json.loads((GOLDEN / "gate-verdict.json").read_text())
    assert _without_latency(dict(newest.detail)) == _without_latency(expected)
    for stored_verdict in (first, newest):
        detail = dict(stored_verdict.detail)
        jsonschema.Draft202012Validator(VERDICT_SCHEMA).validate(detail)
        assert Verdict.from_dict(detail).to_dict() == detail


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004", "0005", "0006"])
def test_a_database_of_each_schema_version_migrates_and_keeps_its_rows(
    revision: str, tmp_path: Path
) -> None:
    path = unpack("databases", tmp_path) / f"v{revision}.db"
    before = table_rows(path)
    assert before["alembic_version"] == [{"version_num": revision}]

    migrate.upgrade(f"sqlite:///{path}")

    after = table_rows(path)
    assert after.pop("alembic_version") == [{"version_num": migrate.head_revision()}]
    for table, rows in before.items():
        if table != "alembic_version":
            assert rows or table in ("health_changes", "sqlite_sequence"), table
            kept = [{name: row[name] for name in rows[0]} for row in after[table]] if rows else []
            assert kept == rows, table
    with ExperimentStore.open(f"sqlite:///{path}") as store:
        (run,) = store.runs.list()
        assert (run.name, run.status, run.config["environments"]) == (
            "golden-ppo",
            "interrupted",
            4,
        )
        champion = store.ledger.champion("mario-1-1")
        assert champion is not None
        assert champion.version == 1
        verdicts = store.evaluations.verdicts("mario-1-1")
        assert sorted(Verdict.from_dict(dict(v.detail)).decision for v in verdicts) == [
            "promote", "reject",
        ]  # fmt: skip
        played = [store.evaluations.records(v.challenger_evaluation_id) for v in verdicts]
        assert all(played)
        assert check_store(store).findings == ()


def test_a_journal_that_a_killed_process_left_is_delivered(tmp_path: Path) -> None:
    runs_dir = unpack("journal", tmp_path)
    run_dir = runs_dir / run_id_in(runs_dir)
    lines = sum(len(path.read_bytes().splitlines()) for path in run_dir.glob("journal*/*.jsonl"))
    assert (len(list(pending_journals(runs_dir))), lines) == (2, 413)

    output = _mario(runs_dir, "store", "check", "--replay")

    assert "every invariant holds" in output
    assert not list(pending_journals(runs_dir))
    delivered = table_rows(runs_dir / "mario.db"), table_rows(runs_dir / "mlflow.db")
    # As many as 1ce122b delivers.
    assert {name: len(delivered[0][name]) for name in ("episodes", "health_samples")} == {
        "episodes": 150, "health_samples": 63,
    }  # fmt: skip
    assert len(delivered[1]["metrics"]) == 2115


def test_a_policy_answers_as_recorded_and_serving_accepts_it(tmp_path: Path) -> None:
    folder = unpack("policy", tmp_path)
    artefact = load_artefact(folder)
    assert artefact.golden is not None
    logits, values = OnnxPolicy(artefact).infer(artefact.golden.observations)
    np.testing.assert_allclose(logits, artefact.golden.logits, atol=1e-4)
    np.testing.assert_allclose(values, artefact.golden.values, atol=1e-4)

    source = FolderSource(folder)
    ref = source.resolve("champion")
    assert ref is not None
    loaded = load_version(source, ref, threads=1)
    assert loaded.ref.digest == artefact.digest
    assert loaded.policy.actions == artefact.manifest.actions
