"""When checkpoints are written, and on what the best one is selected."""

from __future__ import annotations

from mario.config.section import NonNegativeInt, PositiveInt, Section


class CheckpointConfig(Section):
    """When the training state is written, and how many are kept."""

    every_steps: PositiveInt = 50_000
    keep: PositiveInt = 3


class SelectionConfig(Section):
    """How often the policy is scored on selection seeds, to find the best checkpoint."""

    every_steps: PositiveInt = 100_000
    units: NonNegativeInt = 20
