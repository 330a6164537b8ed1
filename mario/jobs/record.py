"""Record: one evaluation episode as a video."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from mario.config.game import ConsoleName
from mario.evaluation.protocol import record_frames
from mario.game.video import write_mp4
from mario.jobs.context import JobContext
from mario.jobs.policies import load_policy


def record_episode(
    reference: str,
    task: str,
    unit: tuple[str, int],
    output: Path,
    context: JobContext,
    *,
    console: str = "native",
) -> int:
    """Play a unit and write it as an MP4 file.

    Args:
        reference: the policy, as for `load_policy`.
        task: the task whose registered model is meant.
        unit: level and seed.
        output: the file.
        context: settings and registry.
        console: the console.

    Returns:
        The number of pictures.

    Raises:
        RegistryError, ArtefactError: the policy cannot be loaded.
        ConfigError: unknown level.
        ConsoleError: PyAV is missing.
    """
    policy = load_policy(reference, task, context).policy
    frames = record_frames(policy, unit, cast(ConsoleName, console))
    return write_mp4(output, frames, policy.frame_skip)
