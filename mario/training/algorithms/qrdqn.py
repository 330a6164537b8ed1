"""DQN that learns the distribution of the return, by quantile regression (Dabney et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from sb3_contrib import QRDQN
from sb3_contrib.qrdqn.policies import CnnPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from mario.config.algorithms import QRDQNConfig
from mario.training.algorithms.contract import Algorithm, Network
from mario.training.algorithms.q_learning import QLearning


class QRDQNAlgorithm(QLearning):
    """QR-DQN: one linear layer from the features to the quantiles, whose mean is the Q-value."""

    name: ClassVar[str] = "qrdqn"

    def __init__(self, settings: QRDQNConfig, env: VecEnv, common: Mapping[str, Any]) -> None:
        """Build the model."""
        policy = {**common["policy_kwargs"], "n_quantiles": settings.quantiles}
        arguments = {**common, **self.replay_arguments(settings, env), "policy_kwargs": policy}
        self.model = QRDQN(CnnPolicy, env, **arguments)

    def q_values(self, observations: torch.Tensor) -> torch.Tensor:
        """Run the network: (N, *shape) of the task's kind of observation → Q-values (N, A)."""
        quantiles: torch.Tensor = self.model.quantile_net(observations)
        return quantiles.mean(dim=1)

    def network(self) -> Network:
        """Give the layers; the mean of linear layers is the linear layer of the mean weights."""
        network = self.model.quantile_net
        (quantiles,) = network.quantile_net
        head = nn.Linear(quantiles.in_features, int(self.model.action_space.n))
        shape = (network.n_quantiles, head.out_features)
        with torch.no_grad():
            head.weight.copy_(quantiles.weight.reshape(*shape, -1).mean(dim=0))
            head.bias.copy_(quantiles.bias.reshape(shape).mean(dim=0))
        return Network(network.features_extractor, head.to(self.model.device))


ALGORITHM: type[Algorithm] = QRDQNAlgorithm
