"""Selection: evaluate the policy in training on selection seeds, to find its best checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from mario.config.experiment import ExperimentConfig
from mario.evaluation.protocol import play_units
from mario.evaluation.seeds import selection_units
from mario.game.batch.contract import BatchStep
from mario.game.console.contract import UInt8Array
from mario.policy.policy import Policy
from mario.training.result import SelectionScore


class _Stopped(Exception):
    """Stops a selection during its episodes."""


def selector(
    config: ExperimentConfig, stop: threading.Event
) -> Callable[[Policy], SelectionScore | None] | None:
    """Make the function that scores a policy on selection seeds under mario-eval-v1.

    Args:
        config: the experiment.
        stop: ends an evaluation during its episodes; it then returns None.

    Returns:
        The function; None if the experiment has no selection.
    """
    if config.selection.units == 0:
        return None
    units = selection_units(config)

    def obey(_observations: UInt8Array, _step: BatchStep) -> None:
        if stop.is_set():
            raise _Stopped

    def select(policy: Policy) -> SelectionScore | None:
        try:
            records = list(
                play_units(
                    policy,
                    units,
                    policy_digest="under training",
                    environments=min(config.evaluation.environments, len(units)),
                    console=config.game.console,
                    on_step=obey,  # an episode may take a minute: too long for a stop
                )
            )
        except _Stopped:
            return None
        return SelectionScore(
            float(np.mean([record.episode_score for record in records])),
            {
                "mean_furthest_px": float(np.mean([r.furthest_px for r in records])),
                "clear_rate": float(np.mean([r.cleared for r in records])),
                "units": float(len(records)),
            },
        )

    return select
