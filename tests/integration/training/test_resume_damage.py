"""Runs whose checkpoints are damaged, lost or did not fit on the disk are reported and resumed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mario.config.collapse import CollapseConfig
from mario.errors import ArtefactError, CheckpointError, TrainingError
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.export_policy import export_policy
from mario.jobs.register import ARTEFACT_FOLDER
from mario.jobs.train import TrainOutcome, train_run
from mario.policy.artefact import load_artefact
from mario.store.records import AttemptEnd
from mario.store.store import ExperimentStore
from mario.training.checkpoint import list_checkpoints, verify_checkpoint
from tests.support.training_runs import small_config

CONFIG = small_config(
    total_steps=64 * 6,
    checkpoint={"every_steps": 64, "keep": 1},
    selection={"every_steps": 64 * 2, "units": 1},
    sinks={"mlflow": False, "prometheus": False, "tensorboard": False},
)


def interrupted(context: JobContext) -> TrainOutcome:
    """A run that was stopped after its first selection."""
    stop = threading.Event()
    outcome = train_run(
        CONFIG,
        context,
        stop=stop,
        on_progress=lambda now: stop.set() if now.total_steps >= 64 * 4 else None,
    )
    assert outcome.result.status == "interrupted"
    assert outcome.result.best is not None
    return outcome


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every write of a policy fail as on a full disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mario.policy.artefact.write_synced", full)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_best_policy_is_replaced_by_the_next_selection(
    context: JobContext, caplog: pytest.LogCaptureFixture
) -> None:
    begun = interrupted(context)
    assert begun.result.best is not None
    damaged = begun.result.best.path
    flip_a_bit(damaged / "tensors.pt")
    with caplog.at_level(logging.WARNING):
        done = train_run(CONFIG, context, resume=begun.run_id)
    assert "the next selection is the best" in caplog.text
    assert done.result.status == "finished"
    assert done.result.best is not None
    assert done.result.best.path != damaged
    verify_checkpoint(done.result.best.path)
    assert done.artefact is not None
    load_artefact(done.artefact)


def test_the_last_policy_is_exported_where_the_best_one_is_damaged(
    context: JobContext, caplog: pytest.LogCaptureFixture
) -> None:
    done = train_run(CONFIG, context)
    flip_a_bit(list_checkpoints(done.run_dir / "best")[0] / "tensors.pt")
    with caplog.at_level(logging.WARNING):
        artefact = export_policy(CONFIG, done.run_dir, done.result)
    assert "exporting the last policy" in caplog.text
    assert artefact is not None
    assert load_artefact(artefact.folder).manifest.training_steps == CONFIG.total_steps


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_without_its_checkpoints_is_not_started_again(
    context: JobContext, finished: bool
) -> None:
    """Its episodes would replace those in the store."""
    outcome = train_run(CONFIG, context) if finished else interrupted(context)
    store = context.store
    before = store.runs.get(outcome.run_id), store.runs.count_episodes(outcome.run_id)
    shutil.rmtree(outcome.run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"expected the one at .* steps that the store knows"):
        train_run(CONFIG, context, resume=outcome.run_id)
    store = context.store
    after = store.runs.get(outcome.run_id), store.runs.count_episodes(outcome.run_id)
    assert after == before


def test_a_run_restarted_on_another_machine_has_only_its_checkpoints_since_then(
    context: JobContext, tmp_path: Path
) -> None:
    """The other machine has its own runs folder; the run was killed before its first checkpoint."""
    begun = interrupted(context)
    there = JobContext(replace(context.settings, runs_dir=tmp_path / "elsewhere"))
    run_dir = there.settings.run_dir(begun.run_id)
    run_dir.mkdir(parents=True)
    shutil.copy(begun.run_dir / "config.yaml", run_dir)
    store = context.store
    assert store.runs.checkpoints(begun.run_id, "last")
    attempt = store.runs.resume(begun.run_id, start_steps=0).attempts[-1].attempt
    store.runs.end(
        AttemptEnd(run_id=begun.run_id, attempt=attempt, status="killed", end_steps=None, reason="")
    )
    done = train_run(CONFIG, there, resume=begun.run_id)
    assert (done.result.status, done.result.total_steps) == ("finished", CONFIG.total_steps)
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match="that the store knows"):
        train_run(CONFIG, there, resume=begun.run_id)


def test_a_run_is_not_restarted_in_a_database_that_does_not_know_it(
    context: JobContext, tmp_path: Path
) -> None:
    """A launcher without MARIO_DATABASE_URL: the run's journal belongs to another database."""
    begun = interrupted(context)
    other = JobContext(replace(context.settings, database_url=f"sqlite:///{tmp_path}/other.db"))
    with pytest.raises(TrainingError, match=r"other.db does not know.*MARIO_DATABASE_URL"):
        train_run(CONFIG, other, run_id=begun.run_id)
    store = other.store
    assert store.runs.list() == ()
    assert train_run(CONFIG, context, resume=begun.run_id).result.status == "finished"


def test_a_checkpoint_is_not_replaced_by_itself(context: JobContext) -> None:
    """A resumed run that is stopped at once leaves its only checkpoint as it is."""
    begun = interrupted(context)
    (checkpoint,) = list_checkpoints(begun.run_dir / "checkpoints")
    was = (checkpoint.stat().st_ino, checkpoint.stat().st_ctime_ns)
    stop = threading.Event()
    stop.set()
    again = train_run(CONFIG, context, resume=begun.run_id, stop=stop)
    assert again.result.total_steps == begun.result.total_steps
    assert list_checkpoints(begun.run_dir / "checkpoints") == [checkpoint]
    assert (checkpoint.stat().st_ino, checkpoint.stat().st_ctime_ns) == was
    assert train_run(CONFIG, context, resume=begun.run_id).result.status == "finished"


def test_a_policy_that_did_not_fit_on_the_disk_can_be_exported_later(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        fill_the_disk(full)
        with pytest.raises(ArtefactError, match=r"No space left on device.*free disk space"):
            train_run(CONFIG, context)
    (run_dir,) = (path.parent for path in context.settings.runs_dir.glob("*/config.yaml"))
    assert not list(run_dir.glob(f"{ARTEFACT_FOLDER}*")), "nothing half-written"
    done = train_run(CONFIG, context, resume=run_dir.name)
    assert done.artefact is not None
    load_artefact(done.artefact)


def test_a_collapse_on_a_full_disk_is_still_a_collapse(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mario.config.run_states import HealthState
    from mario.training.collapse_detector import Health

    monkeypatch.setattr(
        "mario.training.collapse_detector.CollapseDetector.update",
        lambda *_: Health(HealthState.COLLAPSED, ("no reason",), True, ("entropy",)),
    )
    fill_the_disk(monkeypatch)
    config = CONFIG.model_copy(update={"collapse": CollapseConfig(action="stop")})
    outcome = train_run(config, context)
    assert (outcome.result.status, outcome.exit_code, outcome.artefact) == ("collapsed", 3, None)
    assert "no policy exported" in caplog.text


COMMAND = (
    "train", "--config", "configs/smoke.yaml",
    "--set", "selection.units=0", "--set", "network.threads=1",
)  # fmt: skip


@pytest.mark.parametrize("output", ["> /dev/full", "| head -n 1"])
def test_a_closed_or_full_output_ends_no_run(tmp_path: Path, output: str) -> None:
    """A log on a full disk; a reader that closes the pipe after the first line."""
    runs = tmp_path / "runs"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {output}', "train",
         str(Path(sys.executable).with_name("mario")), *COMMAND],
        env={**os.environ, "MARIO_RUNS_DIR": str(runs)}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ExperimentStore.open(JobSettings.embedded(runs).database_url) as store:
        (run,) = store.runs.list()
    assert run.status == "finished"
    assert (runs / run.id / ARTEFACT_FOLDER).is_dir()
