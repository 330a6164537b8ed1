"""The settings of each learning algorithm, and the list of all algorithms.

Each algorithm names its settings of the first release in `identity_fields`; the list never changes
(`mario.config.identities`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mario.config.identities import Fields, fields
from mario.config.section import NonNegativeInt, PositiveInt, Probability, Section

ScheduleName = Literal["constant", "linear"]


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017) as stable-baselines3 has it."""

    name: Literal["ppo"] = "ppo"
    learning_rate: Annotated[float, Field(gt=0)] = 2.5e-4
    learning_rate_schedule: ScheduleName = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    gae_lambda: Probability = 0.95
    n_steps: PositiveInt = 128
    n_epochs: PositiveInt = 4
    batch_size: PositiveInt = 256
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    clip_range_schedule: ScheduleName = "constant"
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.01
    entropy_schedule: ScheduleName = "constant"
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    target_kl: Annotated[float, Field(gt=0)] | None = None
    normalize_advantage: bool = True

    identity_fields: ClassVar[Fields] = fields(
        "name learning_rate learning_rate_schedule gamma gae_lambda n_steps n_epochs batch_size "
        "clip_range clip_range_schedule entropy_coefficient entropy_schedule value_coefficient "
        "max_grad_norm target_kl normalize_advantage"
    )

    def check(self, *, environments: int, total_steps: int) -> None:
        """Refuse values that do not fit the experiment.

        Raises:
            ValueError: the minibatches do not divide the rollout.
        """
        rollout = self.n_steps * environments
        if self.batch_size < 2:
            raise ValueError("algorithm.batch_size: got 1, expected at least 2")
        if rollout % self.batch_size:
            raise ValueError(
                f"algorithm.batch_size: got {self.batch_size}, expected a divisor of "
                f"the rollout, n_steps x environments = {self.n_steps} x "
                f"{environments} = {rollout}"
            )

    def buffered_steps(self, *, environments: int, total_steps: int) -> float:
        """Steps whose observations are in memory at most: the rollout and its flattened copy."""
        return 2.0 * self.n_steps * environments


class ReplayConfig(Section):
    """What DQN and its variants share: a replay buffer and random exploration."""

    name: str
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    learning_rate_schedule: ScheduleName = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    buffer_size: PositiveInt = 100_000
    learning_starts_steps: NonNegativeInt = 10_000
    batch_size: PositiveInt = 32
    train_frequency_steps: PositiveInt = 4
    gradient_steps: PositiveInt = 1
    target_update_steps: PositiveInt = 1_000
    exploration_initial: Probability = 1.0
    exploration_final: Probability = 0.1
    exploration_fraction: Probability = 0.2

    identity_fields: ClassVar[Fields] = fields(
        "name learning_rate learning_rate_schedule gamma buffer_size learning_starts_steps "
        "batch_size train_frequency_steps gradient_steps target_update_steps exploration_initial "
        "exploration_final exploration_fraction"
    )

    def check(self, *, environments: int, total_steps: int) -> None:
        """Refuse values that do not fit the experiment.

        Raises:
            ValueError: exploration would grow, or nothing would be learned.
        """
        if self.exploration_final > self.exploration_initial:
            raise ValueError(
                f"algorithm.exploration_final: got {self.exploration_final}, expected at "
                f"most exploration_initial = {self.exploration_initial}"
            )
        if self.learning_starts_steps >= total_steps:
            raise ValueError(
                f"algorithm.learning_starts_steps: got {self.learning_starts_steps}, "
                f"expected less than total_steps = {total_steps}, or nothing is learned"
            )

    def buffered_steps(self, *, environments: int, total_steps: int) -> float:
        """Steps whose observations are in memory at most.

        A fourth is added to the full buffer: the packed copy that a checkpoint is written from.
        """
        return 1.25 * min(self.buffer_size, total_steps)


class DQNConfig(ReplayConfig):
    """Deep Q-learning (Mnih et al. 2015) as stable-baselines3 has it."""

    name: Literal["dqn"]
    max_grad_norm: Annotated[float, Field(gt=0)] = 10.0

    identity_fields: ClassVar[Fields] = {**ReplayConfig.identity_fields, **fields("max_grad_norm")}


class QRDQNConfig(ReplayConfig):
    """Quantile regression DQN (Dabney et al. 2018, arXiv:1710.10044) as sb3-contrib has it."""

    name: Literal["qrdqn"]
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    exploration_final: Probability = 0.01
    quantiles: PositiveInt = 200
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None

    identity_fields: ClassVar[Fields] = {
        **ReplayConfig.identity_fields,
        **fields("quantiles max_grad_norm"),
    }


#: Every algorithm; `name` chooses one.
AlgorithmConfig = Annotated[PPOConfig | DQNConfig | QRDQNConfig, Field(discriminator="name")]
