"""A collapse in environments 1 to 7, which ends a run although environment 0 plays as before.

The older project trained on 8 environments, recorded only the first, and did not see its policy
collapse. Here environments 1 to 7 of a real PPO run stop doing what the policy chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mario.training.episodes import TrainingEpisode
from mario.training.sinks import Progress, TrainingSink
from mario.training.trainer import train
from tests.support.training_runs import Listener, small_config

ONSET_UPDATES, STEPS_AN_UPDATE = 30, 256


class PartialCollapse(TrainingSink):
    """From an update on, only environment 0 still plays what the policy chooses."""

    def __init__(self) -> None:
        self.env: Any = None
        self.updates = 0
        self.before: list[TrainingEpisode] = []
        self.after: list[TrainingEpisode] = []

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        (self.before if self.updates < ONSET_UPDATES else self.after).extend(episodes)

    def on_progress(self, progress: Progress) -> None:
        self.updates += 1
        if self.updates == ONSET_UPDATES:
            send = self.env.step_async

            def stuck(actions: Any) -> None:
                changed = np.array(actions)
                changed[1:] = 0  # no button at all
                send(changed)

            self.env.step_async = stuck


def test_a_collapse_in_environments_1_to_7_ends_the_run(tmp_path: Path) -> None:
    config = small_config(
        {"name": "ppo", "n_steps": STEPS_AN_UPDATE // 8, "batch_size": 128, "n_epochs": 2},
        environments=8,
        total_steps=60 * STEPS_AN_UPDATE,
        game={"max_steps": 200, "stuck_limit_steps": 30},
        collapse={"action": "stop"},
        selection={"every_steps": 8 * STEPS_AN_UPDATE, "units": 4},
    )
    accident, listener = PartialCollapse(), Listener()

    def keep(model: Any) -> None:
        accident.env = model.get_env()

    result = train(config, tmp_path / "run", sinks=[accident, listener], initial=keep)
    assert result.status == "collapsed", result.reason
    assert "of 8 environments below" in result.reason
    assert result.total_steps > ONSET_UPDATES * STEPS_AN_UPDATE
    # Environment 0 shows nothing: read alone, as the old callback did, the run looks well.
    first = [e.furthest_x_px for e in accident.before if e.env_index == 0]
    later = [e.furthest_x_px for e in accident.after if e.env_index == 0]
    assert np.mean(later or first) > 0.5 * np.mean(first)
    others = [e.furthest_x_px for e in accident.after if e.env_index > 0][7:]
    assert np.mean(others) < 0.5 * np.mean(first)
    # It did not cry wolf before, and kept the best policy of before.
    for sample, health in listener.health[:ONSET_UPDATES]:
        assert health.state in ("warming", "healthy", "warning"), (sample.update, health)
    assert result.best is not None
    assert result.best.total_steps <= ONSET_UPDATES * STEPS_AN_UPDATE
