"""Deep Q-learning (Mnih et al. 2015, "Human-level control through deep RL", Nature 518)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.policies import CnnPolicy

from mario.config.algorithms import DQNConfig
from mario.training.algorithms.contract import Algorithm, Network
from mario.training.algorithms.q_learning import QLearning


class DQNAlgorithm(QLearning):
    """DQN: one linear layer from the features to the Q-values."""

    name: ClassVar[str] = "dqn"

    def __init__(self, settings: DQNConfig, env: VecEnv, common: Mapping[str, Any]) -> None:
        """Build the model."""
        self.model = DQN(CnnPolicy, env, **self.replay_arguments(settings, env), **common)

    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        """Run the network: (N, *shape) of the task's kind of observation → Q-values (N, A)."""
        q_values: torch.Tensor = self.model.q_net(observations)
        return q_values

    def network(self) -> Network:
        """Give the layers."""
        q_net = self.model.q_net
        return Network(q_net.features_extractor, q_net.q_net)


ALGORITHM: type[Algorithm] = DQNAlgorithm
