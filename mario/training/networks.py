"""The network: the CNN of Mnih et al., computed so that it is fast, behind SB3's policy classes.

stable-baselines3's algorithms are not touched; only the policy class is this project's:

* space to depth: the first convolution (8 × 8, stride 4, on 4 frames) is computed as a 2 × 2
  convolution, stride 1, on the picture cut into 4 × 4 blocks (64 channels). The numbers are the
  same, but 64 channels fill a vector unit where 4 do not, and cutting moves whole 32-bit words (a
  block is 4 px wide) before anything becomes a float. The weights keep their usual shape.
* the factor 1/255 goes into the first weights (8 thousand numbers), not into the pictures (7
  million in a minibatch).
* channels_last memory, bfloat16 autocast and torch.compile, each as configured. `auto` takes
  bfloat16 only where the machine computes it in hardware: on a CPU without AVX512-BF16 it is
  several times slower than float32.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from mario.config.network import NetworkConfig

Precision = Literal["float32", "bfloat16"]

_BLOCK_PX = 4

#: Convolutions as (filters, size, stride), then the width of the dense layer.
ARCHITECTURES: dict[str, tuple[tuple[tuple[int, int, int], ...], int]] = {
    # Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518.
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),
    # Mnih et al. 2013, "Playing Atari with Deep Reinforcement Learning": a third of the work.
    "small": (((16, 8, 4), (32, 4, 2)), 256),
    # A fiftieth of the work: for tests and for the short runs of `benchmarks/collapse.py`.
    "tiny": (((8, 8, 8), (16, 3, 2)), 64),
}


def choose_precision(setting: str, device: torch.device) -> Precision:
    """Say what `network.precision` means on this machine.

    Args:
        setting: ``auto``, ``float32`` or ``bfloat16``.
        device: where the network lives.
    """
    if setting in ("float32", "bfloat16"):
        return "bfloat16" if setting == "bfloat16" else "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    # Without the instructions, oneDNN emulates bfloat16 (measured: a seventh of float32's speed).
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_device(setting: str) -> torch.device:
    """Say what `network.device` means on this machine: CUDA when it is there, else the CPU."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(setting)


class FastCNN(BaseFeaturesExtractor):
    """The convolutions and the dense layer, observations (N, …) → float32 (N, width).

    Scaling by 1/255 happens here (see above), so the policy is made with `normalize_images=False`.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        *,
        architecture: str = "nature",
        precision: Precision = "float32",
        channels_last: bool = True,
        space_to_depth: bool = True,
        compiled: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            observation_space: frames (C, size, size), or a vector (D,), which skips the
                convolutions; uint8 is divided by 255.
            architecture: a key of :data:`ARCHITECTURES`.
            precision: what the layers compute in; weights stay float32.
            channels_last: memory order of the activations.
            space_to_depth: whether the first convolution is computed on 4 × 4 blocks.
            compiled: whether torch.compile translates the layers.
        """
        convolutions, width = ARCHITECTURES[architecture]
        super().__init__(observation_space, width)
        channels, size, *_ = (*observation_space.shape, 1)
        if len(observation_space.shape) == 1:
            convolutions = ()
        self._scale = 1.0 / 255.0 if observation_space.dtype == np.uint8 else 1.0
        layers = []
        for filters, kernel, stride in convolutions:
            layers.append(nn.Conv2d(channels, filters, kernel, stride))
            channels, size = filters, (size - kernel) // stride + 1
        self.convolutions = nn.ModuleList(layers)
        self.dense = nn.Linear(channels * size * size, width)
        self._precision = precision
        # Grey levels are whole numbers up to 255: exact in bfloat16, too.
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        # The trick needs whole blocks: a stride of one block, a kernel and a picture of several.
        _, kernel, stride = (*convolutions, (0, 0, 0))[0]
        whole = kernel % _BLOCK_PX == observation_space.shape[-1] % _BLOCK_PX == 0
        self._space_to_depth = space_to_depth and stride == _BLOCK_PX and whole
        # Weights stay in their plain order (orthogonal initialisation wants it): one channels_last
        # operand is enough for the convolution to be computed and answered in that order.
        self._compiled: Any = torch.compile(self._compute) if compiled else None

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Compute the features, float32 (N, width), of observations (N, …)."""
        compute = self._compute if self._compiled is None else self._compiled
        if self._precision == "float32":
            return compute(observations)
        with torch.autocast(observations.device.type, dtype=torch.bfloat16):
            features: torch.Tensor = compute(observations)
        return features.float()

    def activations(self, observations: torch.Tensor) -> list[torch.Tensor]:
        """Give every layer's activations after ReLU, for the health of the units.

        Returns:
            float32 tensors: (N, channels, height, width) for convolutions, (N, width) for the
            dense layer.
        """
        values = observations.to(torch.float32)
        if self._scale != 1.0:
            values = values / 255.0
        found = []
        for layer in self.convolutions:
            values = F.relu(layer(values))
            found.append(values)
        found.append(F.relu(self.dense(values.flatten(1))))
        return found

    def _compute(self, observations: torch.Tensor) -> torch.Tensor:
        if not len(self.convolutions):
            return F.relu(self.dense(observations.to(self._dtype) * self._scale))
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv2d)
        weight = first.weight * self._scale
        if self._space_to_depth and observations.dtype == torch.uint8:
            pictures = _blocks(observations, self._dtype)
            values = F.conv2d(pictures, _block_weights(weight), first.bias)
        else:
            pictures = observations.to(self._dtype).contiguous(memory_format=self._memory)
            values = F.conv2d(pictures, weight, first.bias, first.stride)
        values = F.relu(values)
        for layer in self.convolutions[1:]:
            values = F.relu(layer(values))
        return F.relu(self.dense(values.flatten(1)))


def _blocks(observations: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cut uint8 (N, C, H, W) into 4 × 4 blocks: (N, 16 C, H/4, W/4), channels last, 0 … 255."""
    n, c, h, w = observations.shape
    rows, columns = h // _BLOCK_PX, w // _BLOCK_PX
    words = observations.contiguous().view(torch.int32).view(n, c, rows, _BLOCK_PX, columns)
    words = words.permute(0, 2, 4, 1, 3).contiguous()
    pixels = words.view(torch.uint8).view(n, rows, columns, c * _BLOCK_PX * _BLOCK_PX)
    return pixels.to(dtype).permute(0, 3, 1, 2)


def _block_weights(weight: torch.Tensor) -> torch.Tensor:
    """Order an (F, C, 8, 8) kernel for :func:`_blocks`: (F, 16 C, 2, 2)."""
    filters, c, height, width = weight.shape
    rows, columns = height // _BLOCK_PX, width // _BLOCK_PX
    cut = weight.reshape(filters, c, rows, _BLOCK_PX, columns, _BLOCK_PX)
    cut = cut.permute(0, 1, 3, 5, 2, 4).reshape(filters, c * _BLOCK_PX * _BLOCK_PX, rows, columns)
    return cut.contiguous(memory_format=torch.channels_last)


class MarioActorCriticPolicy(ActorCriticCnnPolicy):
    """SB3's actor-critic policy on :class:`FastCNN`, with categorical heads computed directly.

    `torch.distributions.Categorical` validates and normalises at every call; for minibatches of a
    small network that is a tenth of the update. The formulas are the same.
    """

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose actions for (N, *shape) of the task's kind of observation.

        Returns:
            Actions int64 (N,), values float32 (N, 1), log-probabilities float32 (N,).
        """
        log_p, values = self._heads(obs)
        if deterministic:
            actions = log_p.argmax(dim=1)
        else:
            actions = torch.multinomial(log_p.exp(), 1).squeeze(1)
        return actions, values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1)

    def evaluate_actions(
        self, obs: Any, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Judge actions int64 (N,): values (N, 1), log-probabilities (N,), entropies (N,)."""
        log_p, values = self._heads(obs)
        log_prob = log_p.gather(1, actions.long().unsqueeze(1)).squeeze(1)
        entropy = -(log_p.exp() * log_p).sum(dim=1)
        return values, log_prob, entropy

    def predict_values(self, obs: Any) -> torch.Tensor:
        """Estimate the values, float32 (N, 1)."""
        return self._heads(obs)[1]

    def _heads(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features_extractor(obs)
        return torch.log_softmax(self.action_net(features), dim=1), self.value_net(features)


def policy_kwargs(network: NetworkConfig, device: torch.device) -> dict[str, Any]:
    """Say how SB3 is to build the policy of this configuration on this machine."""
    return {
        "features_extractor_class": FastCNN,
        "features_extractor_kwargs": {
            "architecture": network.features,
            "precision": choose_precision(network.precision, device),
            "channels_last": network.channels_last,
            "space_to_depth": True,
            "compiled": network.compile,
        },
        "net_arch": [],
        "normalize_images": False,
    }
