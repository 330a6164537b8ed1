"""Trains an experiment, from step 0 or from a checkpoint.

The loop is stable-baselines3's. At its boundaries, between two updates, finished episodes go to the
sinks, the collapse detector judges the update, the policy is scored on selection seeds, and a
checkpoint is written. A collapse is a result, not an exception.

A stop (signal, Ctrl-C) takes effect within the current step or minibatch. The interrupted rollout
or update is discarded: the checkpoint is that of the last boundary, held in memory, and the resumed
run repeats the interrupted work with the same random generators. So a run that was stopped or
killed ends with the same weights, byte for byte, as one that was not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from mario.config.experiment import ExperimentConfig
from mario.errors import CheckpointError
from mario.training.algorithms.contract import Algorithm
from mario.training.algorithms.factory import build_algorithm
from mario.training.checkpoint import read_checkpoint
from mario.training.collapse_detector import HealthRules
from mario.training.result import BestCheckpoint, Select, SelectionScore, TrainingResult
from mario.training.resume import restore_networks
from mario.training.run import TrainingRun
from mario.training.sb3_vec_env import EpisodeSource, make_vec_env
from mario.training.sinks import Progress, SinkSet, TrainingSink

__all__ = [
    "BestCheckpoint",
    "Select",
    "SelectionScore",
    "TrainingResult",
    "load_trained",
    "train",
]


def train(
    config: ExperimentConfig,
    run_dir: Path | str,
    *,
    sinks: Sequence[TrainingSink] = (),
    resume: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[Progress], None] | None = None,
    select: Select | None = None,
    episodes: EpisodeSource | None = None,
    initial: Callable[[BaseAlgorithm], None] | None = None,
    rules: HealthRules | None = None,
) -> TrainingResult:
    """Run an experiment.

    Args:
        config: the experiment.
        run_dir: the run's folder; holds `config.yaml`, `checkpoints/` and `best/`.
        sinks: receive the events of the run; an error in one never ends the run.
        resume: continue from the newest whole checkpoint in `run_dir` (from step 0, if the run
            was killed before its first).
        stop: set it, from a signal handler for one, to end cleanly within seconds, with a
            checkpoint.
        progress: called after each update.
        select: scores the policy on selection seeds every `selection.every_steps`; without it the
            training episodes' mean score decides which checkpoint is best.
        episodes: what each environment plays; by default the task's levels in turn.
        initial: called with the new model before the first step, to load weights for one.
        rules: thresholds of the collapse detector.

    Raises:
        TrainingError: the folder holds a run and `resume` is not set.
        CheckpointError: there is nothing whole to resume from, or it does not fit the
            configuration, or the final checkpoint cannot be written.
        ConsoleError: the emulator is not installed.
    """
    folder = Path(run_dir)
    run = TrainingRun(
        config,
        folder,
        sinks=SinkSet(sinks),
        stop=stop or threading.Event(),
        progress=progress,
        select=select,
        rules=rules,
    )
    try:
        saved = run.find_saved(resume)
        env = make_vec_env(config, episodes, config.network.threads)
        try:
            return run.execute(env, saved, initial)
        finally:
            env.close()
    except Exception as error:
        run.failed(error)
        raise


def load_trained(config: ExperimentConfig, checkpoint: Path | str) -> Algorithm:
    """Build the algorithm with a checkpoint's networks, for export or evaluation.

    Raises:
        CheckpointError: it is broken or of another network.
    """
    content = read_checkpoint(Path(checkpoint))
    small = config.model_copy(update={"environments": 1})
    env = make_vec_env(small, threads=1)
    try:
        algorithm = build_algorithm(small, env)
        restore_networks(algorithm.model, content)
        algorithm.model.num_timesteps = content.values["counters"]["num_timesteps"]
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit ({str(error).splitlines()[0][:160]}); expected a "
            "checkpoint of the same algorithm, network and actions; check the configuration"
        ) from None
    finally:
        env.close()
    return algorithm
