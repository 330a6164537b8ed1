"""Real training runs on the real game: determinism, resume, selection, sinks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mario.errors import CheckpointError, TrainingError
from mario.game.smb.actions import action_set
from mario.game.smb.levels import level
from mario.jobs.selection import selector
from mario.policy.policy import Policy, RandomPolicy
from mario.training.checkpoint import TENSORS_FILE, list_checkpoints, read_checkpoint
from mario.training.collapse_detector import HealthRules
from mario.training.episodes import TrainingEpisode
from mario.training.sinks import RunStart, TrainingSink
from mario.training.trainer import SelectionScore, train
from tests.support.training_runs import DQN, PPO, Listener, small_config, weights_digest

ALGORITHMS = {"ppo": PPO, "dqn": DQN}


@pytest.fixture(scope="module", params=list(ALGORITHMS))
def uninterrupted(
    request: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Listener]:
    """Algorithm, digest of the final weights and events of a run that nothing interrupted."""
    listener = Listener()
    folder = tmp_path_factory.mktemp(f"whole-{request.param}")
    result = train(small_config(ALGORITHMS[request.param]), folder / "run", sinks=[listener])
    assert result.status == "finished"
    return request.param, weights_digest(result.last), listener


def by_identity(episodes: list[TrainingEpisode]) -> dict[tuple[int, int], TrainingEpisode]:
    return {(e.env_index, e.episode_index): e for e in episodes}


def test_same_seed_same_weights_other_seed_others(
    uninterrupted: tuple[str, str, Listener], tmp_path: Path
) -> None:
    algorithm, digest, _ = uninterrupted
    again = train(small_config(ALGORITHMS[algorithm]), tmp_path / "again")
    assert weights_digest(again.last) == digest
    other = train(small_config(ALGORITHMS[algorithm], seed=4), tmp_path / "other")
    assert weights_digest(other.last) != digest


def test_every_environment_is_seen(uninterrupted: tuple[str, str, Listener]) -> None:
    _, _, listener = uninterrupted
    assert {episode.env_index for episode in listener.episodes} == {0, 1, 2, 3}
    # Reading index 0 alone, as the accident's callback did, would give a quarter of them.
    numbers = [e.episode_index for e in listener.episodes if e.env_index == 3]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 640 // 4 // 12


def test_stopped_and_resumed_run_ends_with_the_same_weights(
    uninterrupted: tuple[str, str, Listener], tmp_path: Path
) -> None:
    algorithm, digest, whole = uninterrupted
    config = small_config(ALGORITHMS[algorithm])
    listener, chance = Listener(), random.Random(1)
    for attempt in range(200):
        stop = threading.Event()

        class Stopper(TrainingSink):
            """Stops the run after a few steps, in the middle of a rollout or an update."""

            left = chance.randrange(1, 4)

            def on_progress(self, progress: Any, stop: threading.Event = stop) -> None:
                self.left -= 1
                if self.left == 0:
                    threading.Timer(chance.random() * 0.05, stop.set).start()
                elif self.left < 0:  # before the timer, on a busy machine
                    stop.set()

        result = train(
            config, tmp_path / "run", resume=attempt > 0, stop=stop, sinks=[listener, Stopper()]
        )
        if result.status == "finished":
            break
        assert result.status == "interrupted"
    assert attempt >= 2
    assert weights_digest(result.last) == digest
    assert by_identity(listener.episodes) == by_identity(whole.episodes)
    assert result.episodes == len(whole.episodes)


@pytest.mark.timeout(1200)
def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = small_config()
    whole = train(config, tmp_path / "whole")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    script = (
        "import sys; from pathlib import Path; from mario.config.experiment import load_config;"
        "from mario.training.trainer import train;"
        "folder = Path(sys.argv[2]);"
        "r = train(load_config(sys.argv[1]), folder, resume=(folder / 'config.yaml').exists());"
        "print(r.status)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    folder = tmp_path / "run" / "checkpoints"
    seen: set[str] = set()
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            fresh = {path.name for path in list_checkpoints(folder)} - seen
            if fresh:
                seen |= fresh
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    assert done.stdout.strip().endswith("finished")
    assert weights_digest(list_checkpoints(folder)[0]) == weights_digest(whole.last)
    assert not list(folder.glob(".writing-*"))


def test_broken_newest_checkpoint_is_skipped(tmp_path: Path) -> None:
    config = small_config()
    whole = train(config, tmp_path / "run")
    digest = weights_digest(whole.last)
    newest, before = list_checkpoints(tmp_path / "run" / "checkpoints")
    (newest / TENSORS_FILE).write_bytes(b"half")
    listener = Listener()
    result = train(config, tmp_path / "run", resume=True, sinks=[listener])
    assert listener.starts[0].start_steps == int(before.name.split("-")[1])
    assert weights_digest(result.last) == digest


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        train(small_config(), tmp_path / "run", resume=True)
    train(small_config(), tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already"):
        train(small_config(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="another configuration"):
        train(small_config(seed=9), tmp_path / "run", resume=True)
    # What changes no weight may change.
    train(small_config(name="renamed"), tmp_path / "run", resume=True)


def test_episodes_are_counted_over_a_resume(tmp_path: Path) -> None:
    stop, listener = threading.Event(), Listener()
    train(small_config(), tmp_path / "run", stop=stop,
          progress=lambda p: stop.set() if p.total_steps >= 320 else None)  # fmt: skip
    train(small_config(), tmp_path / "run", resume=True, sinks=[listener])
    assert listener.health[0][0].episodes_finished > len(listener.episodes) / 2
    for sample, health in listener.health:
        assert sample.episodes_seen == sample.episodes_finished
        assert "unseen_episodes" not in health.rules
    assert listener.starts[0].state in ("warming", "warning", "healthy")


def test_a_late_update_is_reported(tmp_path: Path) -> None:
    listener = Listener()
    train(small_config(), tmp_path / "run", sinks=[listener], rules=HealthRules(stale_seconds=1e-6))
    first, *others = listener.health
    assert first[0].seconds_since_update is None
    for sample, health in others:
        assert sample.seconds_since_update is not None
        assert "stale" in health.rules


def test_a_selection_obeys_a_stop_in_the_middle_of_an_episode() -> None:
    stop, asked = threading.Event(), 0

    class Counting(RandomPolicy):
        def act(self, *arguments: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 5:
                stop.set()
            return super().act(*arguments, **options)

    select = selector(small_config(selection={"every_steps": 64, "units": 8}), stop)
    assert select is not None
    assert select(Counting(action_set("simple"))) is None
    assert asked == 5


def test_no_sink_can_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError(f"no {name}")

    listener = Listener()
    result = train(small_config(), tmp_path / "run", sinks=[Broken(), listener])  # type: ignore[list-item]
    assert result.status == "finished"
    assert len(listener.episodes) == result.episodes
    assert "Broken.on_start failed" in caplog.text


def test_no_checkpoint_without_its_episodes_on_the_disk(tmp_path: Path) -> None:
    class Forgetful(TrainingSink):
        """Cannot keep anything for a while, like a store on a full disk with its database away."""

        asked = 0

        def flush(self) -> bool:
            self.asked += 1
            return self.asked not in (2, 3)

    listener = Listener()
    train(small_config(), tmp_path / "run", sinks=[Forgetful(), listener])
    last = [written.total_steps for written in listener.checkpoints if written.kind == "last"]
    assert last == [128, 512, 640]


def test_an_error_is_reported_to_the_sinks(tmp_path: Path) -> None:
    def broken(_: Policy) -> SelectionScore:
        raise ZeroDivisionError("no units")

    listener = Listener()
    with pytest.raises(ZeroDivisionError):
        train(small_config(), tmp_path / "run", select=broken, sinks=[listener])
    assert [end.status for end in listener.ends] == ["failed"]
    assert listener.ends[0].reason == "ZeroDivisionError: no units"


def test_a_refused_resume_is_reported_to_the_sinks(tmp_path: Path) -> None:
    train(small_config(), tmp_path / "run")
    listener = Listener()
    with pytest.raises(CheckpointError):
        train(small_config(seed=4), tmp_path / "run", resume=True, sinks=[listener])
    assert [end.status for end in listener.ends] == ["failed"]
    assert "another configuration" in listener.ends[0].reason


def test_selection_does_not_change_training(
    uninterrupted: tuple[str, str, Listener], tmp_path: Path
) -> None:
    algorithm, digest, _ = uninterrupted

    def select(policy: Policy) -> SelectionScore:
        torch.rand(5)
        np.random.rand(5)  # noqa: NPY002 - the generator that training draws from
        random.random()
        observations = np.zeros((2, 4, 84, 84), np.uint8)
        output = policy.act(observations, np.random.default_rng(0), selection="sample")
        assert output.probabilities.shape == (2, 7)
        return SelectionScore(0.5, {"clears": 0.0})

    listener = Listener()
    result = train(
        small_config(ALGORITHMS[algorithm]), tmp_path / "run", select=select, sinks=[listener]
    )
    assert weights_digest(result.last) == digest
    assert listener.selections[-1].details == {"clears": 0.0}


def test_a_replay_buffer_is_bounded_in_a_checkpoint(tmp_path: Path) -> None:
    listener = Listener()
    config = small_config(DQN)
    result = train(config, tmp_path / "run", sinks=[listener])
    assert result.last is not None
    arrays = read_checkpoint(result.last).arrays
    size = sum(array.nbytes for name, array in arrays.items() if name.startswith("replay_"))
    # The bound of the guide: a frame, action, reward and end for each transition; four frames more
    # where an episode begins or the ring closes.
    frame, rest = 84 * 84, 8 + 4 + 4
    starts = len(listener.episodes) + 2 * config.environments
    assert arrays["replay_newest"].shape[:2] == (400 // config.environments, config.environments)
    assert size <= 400 * (frame + rest) + starts * (4 * frame + 2 * 8)


def test_stop_is_obeyed_within_seconds(tmp_path: Path) -> None:
    # One update of this run takes minutes; the stop comes in the middle of it.
    config = small_config(
        {"name": "ppo", "n_steps": 16, "batch_size": 32, "n_epochs": 100_000},
        total_steps=10_000,
    )
    stop = threading.Event()
    stopped_at: list[float] = []

    def end() -> None:
        stopped_at.append(time.monotonic())
        stop.set()

    class Stopper(TrainingSink):
        def on_start(self, start: RunStart) -> None:
            threading.Timer(3.0, end).start()

    result = train(config, tmp_path / "run", stop=stop, sinks=[Stopper()])
    # A bound against hanging, not a measurement: 10 s after the stop, three times over.
    assert time.monotonic() - stopped_at[0] < 30
    assert result.status == "interrupted"
    assert result.last is not None


def test_training_score_is_the_protocols(tmp_path: Path) -> None:
    listener = Listener()
    result = train(small_config(), tmp_path / "run", sinks=[listener])
    expected = np.mean(
        [0.5 * e.furthest_x_px / level("1-1").length_px for e in listener.episodes[-100:]]
    )
    assert listener.selections[-1].score == pytest.approx(expected)
    assert result.best is not None


def test_best_of_an_older_checkpoint_survives_a_resume(tmp_path: Path) -> None:
    """The newest checkpoint is broken; the best found after the older one is found again."""
    config = small_config(selection={"every_steps": 64, "units": 1})
    scores = [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95, 0.8]

    def selecting(kept: list[Any]) -> Any:
        def select(_: Policy) -> SelectionScore:
            return SelectionScore(scores[kept[0].num_timesteps // 64 - 1])

        return select

    kept: list[Any] = []
    whole = train(config, tmp_path / "run", select=selecting(kept), initial=kept.append)
    assert whole.best is not None
    assert whole.best.total_steps == 9 * 64
    newest, older = list_checkpoints(tmp_path / "run" / "checkpoints")
    (newest / TENSORS_FILE).write_bytes(b"half")
    assert int(older.name.split("-")[1]) < 9 * 64

    class Holder(TrainingSink):
        def on_start(self, start: Any) -> None:
            kept[:] = [type("Steps", (), {"num_timesteps": start.start_steps})]

        def on_progress(self, progress: Any) -> None:
            kept[0].num_timesteps = progress.total_steps

    again = train(config, tmp_path / "run", resume=True, select=selecting(kept), sinks=[Holder()])
    assert again.best is not None
    assert (again.best.total_steps, again.best.score) == (9 * 64, 0.95)
    assert again.best.path.is_dir()
