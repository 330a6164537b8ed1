"""Real training runs that collapse, diverge, are rolled back, or are recorded in part only."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mario.policy.policy import Policy
from mario.training.callbacks import TrainerCallback
from mario.training.checkpoint import TENSORS_FILE, list_checkpoints
from mario.training.collapse_detector import HealthRules
from mario.training.trainer import SelectionScore, load_trained, train
from tests.support.training_runs import DQN, PPO, Listener, small_config


def test_collapse_stops_the_run_and_keeps_the_best(tmp_path: Path) -> None:
    # Thresholds under which every run is collapsed: what is tested is what happens then.
    rules = HealthRules(dominant_share=0.0, patience=3, warmup_updates=1)
    listener = Listener()
    result = train(
        small_config(collapse={"action": "stop"}, selection={"every_steps": 64, "units": 4}),
        tmp_path / "run", sinks=[listener], rules=rules,
    )  # fmt: skip
    assert result.status == "collapsed"
    assert "one action" in result.reason
    assert result.total_steps == 3 * 64
    assert listener.ends[0].status == "collapsed"
    assert result.best is not None
    assert load_trained(small_config(), result.best.path).model.num_timesteps == (
        result.best.total_steps
    )


def test_rollback_continues_from_the_best_with_a_lower_rate(tmp_path: Path) -> None:
    rules = HealthRules(dominant_share=0.0, patience=3, warmup_updates=1)
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    rates: list[float] = []
    kept: list[Any] = []

    def watch(model: Any) -> None:
        kept.append(model)

    def select(policy: Policy) -> SelectionScore:
        rates.append(kept[0].learning_rate.factor)
        return SelectionScore(next(scores))

    result = train(
        small_config(
            collapse={"action": "rollback", "max_rollbacks": 2},
            selection={"every_steps": 64, "units": 1},
        ),
        tmp_path / "run", rules=rules, select=select, initial=watch,
    )  # fmt: skip
    assert result.rollbacks == 2
    assert result.status == "collapsed"
    assert kept[0].learning_rate.factor == 0.25
    assert result.best is not None
    assert result.best.score == 0.9
    assert rates[0] == 1.0


def test_a_rollback_saves_a_run(tmp_path: Path) -> None:
    """A good start, an exploding learning rate for some updates, and a good end all the same."""
    bomb, update = 1e4, 15
    kept: list[Any] = []

    class Ruin(Listener):
        def on_health(self, sample: Any, health: Any) -> None:
            super().on_health(sample, health)
            if sample.update == update:
                kept[0].learning_rate.factor *= bomb

        def on_incident(self, incident: Any) -> None:
            assert incident.kind == "rollback"
            kept[0].learning_rate.factor /= bomb

    listener = Ruin()
    constant = {"learning_rate_schedule": "constant", "clip_range_schedule": "constant"}
    result = train(
        small_config(
            PPO | constant, total_steps=35 * 64, selection={"every_steps": 320, "units": 4},
            collapse={"action": "rollback", "max_rollbacks": 1},
        ),
        tmp_path / "run", sinks=[listener], initial=kept.append,
    )  # fmt: skip
    assert (result.status, result.rollbacks) == ("finished", 1)
    assert result.total_steps == 35 * 64
    assert kept[0].learning_rate.factor == 0.5
    said = [(sample.update, health.state) for sample, health in listener.health if health.changed]
    assert said[0] == (10, "healthy")
    ends = [at for at, state in said if state in ("collapsed", "diverged")]
    assert len(ends) == 1
    assert update < ends[0] <= update + 5
    assert said[-1][1] == result.health.state == "healthy"
    assert said[-1][0] == ends[0] + 10
    # It plays as before, not as the ruined policy did: one action only.
    assert listener.health[ends[0] - 1][0].dominant_action_share == 1.0
    for sample, _ in listener.health[ends[0] + 1 :]:
        assert sample.dominant_action_share is not None
        assert sample.dominant_action_share < 0.9
    # The detector judged the restored policy by its own episodes, all of them counted.
    first = listener.health[ends[0]][0]
    assert first.recent_furthest_px is None
    assert listener.health[-1][0].recent_furthest_px is not None
    assert listener.health[-1][0].episodes_seen == result.episodes


def test_one_minibatch_an_update_is_no_collapse(tmp_path: Path) -> None:
    config = small_config(PPO | {"n_epochs": 1, "batch_size": 64}, total_steps=20 * 64,
                          collapse={"action": "stop"})  # fmt: skip
    result = train(config, tmp_path / "run")
    assert (result.status, result.health.reasons) == ("finished", ())


def test_a_rollback_is_reported_and_a_damaged_best_ends_the_run(tmp_path: Path) -> None:
    class Damage(Listener):
        def on_health(self, sample: Any, health: Any) -> None:
            super().on_health(sample, health)
            if len(self.health) == 5:  # one rollback later, just before the next
                for path in list_checkpoints(tmp_path / "run" / "best"):
                    (path / TENSORS_FILE).write_bytes(b"no tensors")

    listener = Damage()
    result = train(
        small_config(
            collapse={"action": "rollback", "max_rollbacks": 9},
            selection={"every_steps": 64, "units": 1},
        ),
        tmp_path / "run", sinks=[listener],
        rules=HealthRules(dominant_share=0.0, patience=3, warmup_updates=1),
        select=lambda _: SelectionScore(0.5),
    )  # fmt: skip
    assert (result.status, result.rollbacks) == ("collapsed", 1)
    assert result.last is not None
    changes = [health.state for _, health in listener.health if health.changed]
    assert changes == ["warning", "collapsed", "warning", "collapsed"]


def test_a_run_resumed_after_a_rollback_recovers_from_the_collapse(
    tmp_path: Path,
) -> None:
    """Stopped right after the rollback: the first change of the next attempt is the recovery."""
    stop = threading.Event()

    class Stop(Listener):
        def on_incident(self, incident: Any) -> None:
            stop.set()

    config = small_config(
        collapse={"action": "rollback", "max_rollbacks": 1},
        selection={"every_steps": 64, "units": 1},
    )
    rules = HealthRules(dominant_share=0.0, patience=3, warmup_updates=1)
    how: dict[str, Any] = {"rules": rules, "select": lambda _: SelectionScore(0.5)}
    begun = train(config, tmp_path / "run", sinks=[Stop()], stop=stop, **how)
    assert (begun.status, begun.rollbacks) == ("interrupted", 1)

    class Starts(Listener):
        def on_start(self, start: Any) -> None:
            super().on_start(start)
            self.state = start.state

    listener = Starts()
    train(config, tmp_path / "run", sinks=[listener], resume=True, **how)
    assert listener.state == "collapsed"
    first = next(health for _, health in listener.health if health.changed)
    assert first.state == "warning"


def test_an_environment_that_the_callback_misses_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback of the older project: it read environment 0."""

    def first_only(self: TrainerCallback) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        self._hooks.step([infos[0]["record"]] if dones[0] else [])
        return True

    monkeypatch.setattr(TrainerCallback, "_on_step", first_only)
    listener = Listener()
    train(small_config(), tmp_path / "run", sinks=[listener])
    sample, health = listener.health[-1]
    assert sample.episodes_seen == len(listener.episodes)
    assert sample.episodes_finished > 3 * sample.episodes_seen
    assert health.state == "warning"
    assert "unseen_episodes" in health.rules


def test_infinite_gradient_is_a_result_and_never_reaches_the_weights(tmp_path: Path) -> None:
    kept: list[Any] = []

    def poison(model: Any) -> None:
        kept.append(model)
        parameter = model.policy.value_net.bias
        parameter.register_hook(lambda grad: grad * float("nan"))

    listener = Listener()
    result = train(small_config(), tmp_path / "run", initial=poison, sinks=[listener])
    assert result.status == "diverged"
    assert "not finite" in result.reason
    assert listener.health[-1][1].state == "diverged"
    for parameter in kept[0].policy.parameters():
        assert torch.isfinite(parameter).all()


def test_a_single_infinite_gradient_costs_one_rollback(tmp_path: Path) -> None:
    """Four minibatches an update: the tenth gradient is the second of the third."""
    seen = 0

    def once(grad: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return grad * float("nan") if seen == 10 else grad

    def poison(model: Any) -> None:
        model.policy.value_net.bias.register_hook(once)

    listener = Listener()
    result = train(
        small_config(
            total_steps=20 * 64, collapse={"action": "rollback", "max_rollbacks": 1},
            selection={"every_steps": 64, "units": 1},
        ),
        tmp_path / "run", initial=poison, sinks=[listener], select=lambda _: SelectionScore(0.5),
    )  # fmt: skip
    assert (result.status, result.rollbacks) == ("finished", 1)
    assert [s.update for s, health in listener.health if health.state == "diverged"] == [3]
    # Each sample is of an update that was made whole, but for the one that was refused.
    norms = [sample.gradient_norm for sample, _ in listener.health]
    assert norms.pop(2) is None
    assert all(norm is not None and math.isfinite(norm) for norm in norms)
    assert len(norms) == 19  # of 20 rollouts, all but the third's


def test_a_dqn_that_always_chooses_one_action_is_collapsed(tmp_path: Path) -> None:
    """At the default exploration, 0.1, it takes that action in 91% of the steps only."""

    def set_on_one(model: Any) -> None:
        for network in (model.q_net, model.q_net_target):
            network.q_net[-1].bias.data[4] += 1.0

    listener = Listener()
    result = train(
        small_config(
            DQN | {"exploration_initial": 0.1, "exploration_final": 0.1, "buffer_size": 8_000,
                   "learning_rate": 1e-9},
            total_steps=8_000, collapse={"action": "stop"},
        ),
        tmp_path / "run", initial=set_on_one, sinks=[listener],
    )  # fmt: skip
    assert (result.status, result.health.rules) == ("collapsed", ("dominant_action",))
    assert result.total_steps < 8_000
