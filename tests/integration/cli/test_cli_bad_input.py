"""Bad input on the command line: one line that says what to do, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mario.cli import main as cli
from mario.jobs.context import JobContext, JobSettings
from tests.support.policies import GOOD, write_odds_policy

Run = Callable[..., str]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run the command line and return its one line on standard error."""
    monkeypatch.setenv("MARIO_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.delenv("MARIO_DATABASE_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mario", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, (out, err)
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("mario: ")
        return lines[0]

    return run


BROKEN_CONFIGS = {
    "unknown key": ("name: a\ntotal_stps: 5", "did you mean total_steps"),
    "unknown nested key": ("name: a\ntotal_steps: 5\ngame: {framskip: 2}", "frame_skip"),
    "missing key": ("name: a", "total_steps: missing"),
    "wrong type": ("name: a\ntotal_steps: many", "got 'many'"),
    "boolean for a number": ("name: a\ntotal_steps: yes", "got True"),
    "unknown level": ("name: a\ntotal_steps: 5\ntask: 9-1", "1-1"),
    "unknown level in a list": (
        "name: a\ntotal_steps: 5\ntask: mine\nlevels: [1-1, 9-9]", "9-9"),
    "named task without levels": ("name: a\ntotal_steps: 5\ntask: mine", "levels"),
    "levels beside a level": ("name: a\ntotal_steps: 5\nlevels: [1-1]", "remove"),
    "batch that does not divide": (
        "name: a\ntotal_steps: 5\nalgorithm: {batch_size: 300}", "divisor"),
    "unknown algorithm": ("name: a\ntotal_steps: 5\nalgorithm: {name: a2c}", "'ppo', 'dqn'"),
    "dqn that never learns": (
        "name: a\ntotal_steps: 5\nalgorithm: {name: dqn}", "learning_starts_steps"),
    "probability above one": (
        "name: a\ntotal_steps: 5\ngame: {sticky_probability: 1.5}", "less than 1"),
    "not a number": ("name: a\ntotal_steps: 5\nalgorithm: {learning_rate: .nan}", "learning_rate"),
    "gate without units": (
        "name: a\ntotal_steps: 5\ngate: {min_units: 9, max_units: 3}", "min_units"),
    "key twice": ("name: a\nname: b\ntotal_steps: 5", "twice"),
    "not yaml": ("name: [", "not valid YAML"),
    "a list": ("- name", "expected keys"),
    "empty": ("", "expected keys"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_CONFIGS)
def test_broken_configs(kind: str, refused: Run, tmp_path: Path) -> None:
    text, hint = BROKEN_CONFIGS[kind]
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    line = refused("train", "--config", str(path))
    assert str(path) in line
    assert hint in line
    assert not (tmp_path / "runs").exists(), "nothing half-written stays"


def test_a_missing_config_lists_the_existing_ones(refused: Run) -> None:
    assert "demo.yaml" in refused("pipeline", "--config", "configs/dmeo.yaml")


def test_broken_override(refused: Run) -> None:
    assert "key=value" in refused("train", "--config", "configs/smoke.yaml", "--set", "gamma")


def test_unknown_level(refused: Run) -> None:
    assert '"1-1" to "8-4"' in refused("evaluate", "random", "--task", "1-9", "--units", "1")


def test_unknown_seed_family(refused: Run) -> None:
    assert "screening" in refused("evaluate", "random", "--family", "training")


def test_only_the_gate_plays_confirmation_units(refused: Run) -> None:
    """Otherwise challengers could be chosen by the units that test them."""
    assert "mario gate" in refused("evaluate", "random", "--family", "confirmation")


def test_unknown_run(refused: Run) -> None:
    assert "expected" in refused("train", "--resume", "run-0")


def attempts_of(context: JobContext, run_id: str) -> list[str]:
    """The status of each attempt in the store, and of the run."""

    store = context.store
    run = store.runs.get(run_id)
    assert run.attempts[-1].status == run.status
    return [attempt.status for attempt in run.attempts]


def test_a_seed_that_no_generator_takes(refused: Run, tmp_path: Path) -> None:
    line = refused(
        "train", "--config", "configs/smoke.yaml", "--set", "seed=99999999999999999999999"
    )
    assert "seed" in line
    assert "4294967296" in line
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_leaves_no_run(
    refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mario.store.store import ExperimentStore

    url = f"sqlite:///{tmp_path / 'mario.db'}"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MARIO_RUNS_DIR", str(tmp_path / "file" / "runs"))
    monkeypatch.setenv("MARIO_DATABASE_URL", url)
    line = refused("train", "--config", "configs/smoke.yaml", "--set", "sinks.mlflow=false")
    assert "MARIO_RUNS_DIR" in line
    with ExperimentStore.open(url) as store:
        assert store.runs.list() == ()


def test_no_training_starts_while_the_database_is_unreachable(
    refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a new run nor another attempt; nothing half-written remains."""
    url = "postgresql+psycopg2://me:secret@127.0.0.1:9/mario"
    monkeypatch.setenv("MARIO_DATABASE_URL", url)
    line = refused("train", "--config", "configs/smoke.yaml")
    assert "start it, or name another database with MARIO_DATABASE_URL" in line
    assert "secret" not in line
    assert not (tmp_path / "runs").exists()
    folder = tmp_path / "runs" / "run-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(Path("configs/smoke.yaml").read_text(encoding="utf-8"))
    assert "start it" in refused("train", "--resume", "run-1")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_run_is_resumed_with_its_own_configuration(
    refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder; only settings that change no weight may be overridden."""
    import threading

    from typer.testing import CliRunner

    from mario.cli.main import app
    from mario.config.experiment import load_config
    from mario.jobs.begin_run import config_of_run
    from mario.jobs.train import train_run

    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    config = load_config("configs/smoke.yaml", ("selection.units=0", "sinks.mlflow=false"))
    stop = threading.Event()
    outcome = train_run(config, context, stop=stop, on_progress=lambda _: stop.set())
    monkeypatch.chdir(tmp_path)  # there is no configs/ here
    line = refused("train", "--resume", outcome.run_id, "--set", "algorithm.gamma=0.5")
    assert "another configuration" in line
    line = refused(
        "train", "--resume", outcome.run_id, "--set", "evaluation.action_selection=sample"
    )
    assert "action_selection" in line
    line = refused("train", "--resume", outcome.run_id, "--config", "configs/other.yaml")
    assert "expected one of them" in line
    assert attempts_of(context, outcome.run_id) == ["interrupted"], "nothing was written"
    done = CliRunner().invoke(
        app, ["train", "--resume", outcome.run_id, "--set", "sinks.prometheus=false"]
    )
    assert done.exit_code == 0, done.output
    again = config_of_run(outcome.run_id, context)
    assert not again.sinks.prometheus
    assert again.algorithm == config.algorithm
    before = attempts_of(context, outcome.run_id)
    assert before[-1] == "finished"
    refused("train", "--resume", outcome.run_id, "--set", "algorithm.gamma=0.5")
    assert attempts_of(context, outcome.run_id) == before, "a finished run stays finished"


def test_corrupt_checkpoint(refused: Run, tmp_path: Path) -> None:
    """A run whose checkpoints are all damaged is not resumed."""
    import threading

    from mario.config.experiment import load_config
    from mario.jobs.train import train_run

    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    config = load_config("configs/smoke.yaml", ("selection.units=0", "sinks.mlflow=false"))
    stop = threading.Event()
    outcome = train_run(config, context, stop=stop, on_progress=lambda _: stop.set())
    assert outcome.result.status == "interrupted"
    checkpoints = list((outcome.run_dir / "checkpoints").glob("steps-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        for file in checkpoint.iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = refused("train", "--resume", outcome.run_id)
    assert "checkpoint" in line
    assert attempts_of(context, outcome.run_id) == ["interrupted"], "nothing was written"


def test_missing_database(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARIO_DATABASE_URL", "postgresql+psycopg2://me:secret@127.0.0.1:9/mario")
    line = refused("store", "check")
    assert "127.0.0.1" in line
    assert "secret" not in line


def test_invalid_database_url(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARIO_DATABASE_URL", "runs/mario.db")
    assert "sqlite:///" in refused("store", "check")


def test_version_without_artefact(refused: Run, tmp_path: Path) -> None:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    write_odds_policy(tmp_path / "policy", GOOD)
    registry = context.registry
    version = registry.register("mario-1-1", tmp_path / "policy").version
    for file in context.settings.artifact_dir.rglob("policy.onnx"):
        file.unlink()
    line = refused("evaluate", str(version), "--units", "1")
    assert "policy.onnx" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "champion"),
        ("evaluate", "12"),
        ("evaluate", "nobody"),
        ("gate", "runs/none"),
        ("promote", "verdict-0"),
        ("report", "verdict-0"),
        ("register", "run-0"),
        ("registry", "rollback"),
        ("record", "champion"),
        ("compare", "a=1", "b=2"),
    ],
)
def test_missing_things(arguments: tuple[str, ...], refused: Run) -> None:
    assert "expected" in refused(*arguments)
