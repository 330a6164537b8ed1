"""From stable-baselines3 to the policy artefact: its archive, the ONNX export, and its check.

The ONNX graph is written node by node rather than traced: the same weights give the same bytes (so
the same digest), in milliseconds, and without the fast but odd layout that training computes in.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from mario.config.evaluation import ActionSelection
from mario.config.experiment import ExperimentConfig
from mario.errors import ArtefactError
from mario.game.smb.actions import action_set
from mario.game.smb.observations.contract import ObservationKind, Observations
from mario.game.smb.observations.factory import observation_kind
from mario.game.smb.observations.pixels import OBSERVATION
from mario.policy.artefact import MAX_GOLDEN_OBSERVATIONS, Artefact, Golden, write_artefact
from mario.policy.manifest import (
    Float32Array,
    ObservationSpec,
    ObservationStatistics,
    check_observations,
)
from mario.policy.onnx import OnnxPolicy
from mario.policy.policy import Generators, PolicyOutput, choose, softmax
from mario.training.algorithms.contract import Algorithm, Network

#: Largest difference between the trained network and its ONNX file.
TOLERANCE = 1e-4
#: ONNX operator set; every operator used is older, so any runtime since 2021 reads it.
_OPSET = 13


class TorchPolicy:
    """A network under training as a policy, without an export.

    Attributes:
        actions: the actions it chooses from.
        selection: how it chooses unless the caller overrides it.
        frame_skip: console frames that one decision lasts.
        observation: its kind of observation.
    """

    def __init__(
        self, algorithm: Algorithm, config: ExperimentConfig, selection: ActionSelection
    ) -> None:
        """Answer with the algorithm's network as it is when asked."""
        self.actions = action_set(config.game.actions)
        self.selection = selection
        self.frame_skip = config.game.frame_skip
        self.observation = observation_kind(config.observation)
        self._algorithm = algorithm

    def infer(self, observations: Observations) -> tuple[Float32Array, Float32Array]:
        """Run the network on (N, …): logits float32 (N, A), values float32 (N,)."""
        check_observations(observations, self.observation)
        return torch_outputs(self._algorithm, observations)

    def act(
        self,
        observations: Observations,
        generator: Generators | None = None,
        *,
        selection: ActionSelection | None = None,
    ) -> PolicyOutput:
        """Choose an action for each observation; see `mario.policy.policy.Policy.act`."""
        if len(observations) == 0:
            empty = np.empty((0, len(self.actions)), np.float32)
            return PolicyOutput(np.empty(0, np.int64), empty, np.empty(0, np.float32))
        logits, values = self.infer(observations)
        probabilities = softmax(logits)
        return PolicyOutput(
            choose(probabilities, selection or self.selection, generator), probabilities, values
        )


def torch_outputs(
    algorithm: Algorithm, observations: Observations
) -> tuple[Float32Array, Float32Array]:
    """Run an algorithm's network on observations (N, …).

    Returns:
        logits float32 (N, A) and values float32 (N,).
    """
    inputs = torch.as_tensor(observations, device=algorithm.model.device)
    with torch.no_grad():
        logits, values = algorithm.outputs(inputs)
    return logits.float().cpu().numpy(), values.float().cpu().numpy()


def save_archive(model: BaseAlgorithm) -> bytes:
    """Write the model as stable-baselines3's own archive (`model.zip`)."""
    buffer = io.BytesIO()
    model.save(buffer)
    return buffer.getvalue()


def export_onnx(network: Network, observation: ObservationKind = OBSERVATION) -> bytes:
    """Write the network as ONNX: observations (N, …) → logits float32 (N, A), value float32 (N,).

    The same weights give the same bytes.

    Args:
        network: the layers.
        observation: what the network sees; pixels by default.

    Raises:
        ArtefactError: the network is not convolutions (or none), a dense layer and linear heads.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    convolutions, dense, action_head, value_head = _layers(network)
    tensors: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, values: Any) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def parameters(name: str, layer: nn.Module) -> list[str]:
        state = layer.state_dict()
        return [
            constant(f"{name}.{part}", state[part].detach().float().cpu().numpy())
            for part in ("weight", "bias")
        ]

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    value, input_type = "observation", TensorProto.FLOAT
    if observation.dtype == "uint8":
        input_type = TensorProto.UINT8
        value = add("Cast", [value], "float", to=TensorProto.FLOAT)
        value = add("Div", [value, constant("scale", np.float32(255.0))], "scaled")
    for index, layer in enumerate(convolutions):
        inputs = [value, *parameters(f"convolution{index}", layer)]
        value = add("Conv", inputs, f"conv{index}", strides=list(layer.stride),
                    kernel_shape=list(layer.kernel_size))  # fmt: skip
        value = add("Relu", [value], f"relu{index}")
    value = add("Flatten", [value], "flat", axis=1)
    value = add("Gemm", [value, *parameters("dense", dense)], "dense_out", transB=1)
    features = add("Relu", [value], "features")
    add("Gemm", [features, *parameters("action_head", action_head)], "logits", transB=1)
    if value_head is not None:
        column = add("Gemm", [features, *parameters("value_head", value_head)], "column", transB=1)
        axes = constant("axes", np.array([1], np.int64))
        add("Squeeze", [column, axes], "value")
    else:
        add("ReduceMax", ["logits"], "value", axes=[1], keepdims=0)
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", input_type, ["N", *observation.shape])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT,
                                          ["N", action_head.out_features]),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N"]),
        ],
        tensors,
    )  # fmt: skip
    exported = helper.make_model(
        graph, producer_name="mario", opset_imports=[helper.make_opsetid("", _OPSET)]
    )
    exported.ir_version = 8
    checker.check_model(exported)
    return bytes(exported.SerializeToString(deterministic=True))


def export_artefact(
    algorithm: Algorithm,
    folder: Path | str,
    config: ExperimentConfig,
    *,
    observations: Observations,
    git_commit: str,
    training_steps: int | None = None,
    action_selection: ActionSelection | None = None,
    overwrite: bool = False,
) -> Artefact:
    """Export a trained policy as the artefact, and check it against the network.

    Args:
        algorithm: the trained algorithm.
        folder: where the artefact shall be; complete or absent.
        config: the experiment it was trained by.
        observations: (N, …), N ≥ 1, real observations of the game; all are compared,
            up to 256 are kept as golden answers, all make the statistics for drift.
        git_commit: commit of the code that trained it.
        training_steps: agent steps it was trained on; the model's own count by default.
        action_selection: overrides the configuration's.
        overwrite: replace an existing folder.

    Raises:
        ArtefactError: ONNX Runtime answers differently by more than 1e-4, or the folder exists.
    """
    network, model = algorithm.network(), algorithm.model
    kind = observation_kind(config.observation)
    logits, values = _exact_outputs(network, observations)
    count = min(len(observations), MAX_GOLDEN_OBSERVATIONS)
    # Spread over all that was given: neighbours are nearly the same picture.
    chosen = np.unique(np.linspace(0, len(observations) - 1, count).astype(np.int64))
    artefact = write_artefact(
        folder,
        onnx=export_onnx(network, kind),
        actions=action_set(config.game.actions),
        action_selection=action_selection or config.evaluation.action_selection,
        frame_skip=config.game.frame_skip,
        training_config_hash=config.content_hash(),
        git_commit=git_commit,
        model_zip=save_archive(model),
        golden=Golden(observations[chosen], logits[chosen], values[chosen]),
        task=config.task,
        training_steps=model.num_timesteps if training_steps is None else training_steps,
        observation=ObservationSpec.of(kind),
        training_statistics=ObservationStatistics.of(observations) if kind is OBSERVATION else None,
        overwrite=overwrite,
    )
    check_onnx(artefact, observations, logits, values)
    return artefact


def check_onnx(
    artefact: Artefact, observations: Observations, logits: Float32Array, values: Float32Array
) -> float:
    """Compare the artefact's answers with the network's.

    Args:
        artefact: what was exported.
        observations: (N, …).
        logits: float32 (N, A), the network's.
        values: float32 (N,), the network's.

    Returns:
        The largest absolute difference.

    Raises:
        ArtefactError: it is above 1e-4.
    """
    onnx_logits, onnx_values = OnnxPolicy(artefact, batch_invariant=True).infer(observations)
    difference = float(max(np.abs(onnx_logits - logits).max(), np.abs(onnx_values - values).max()))
    if not difference <= TOLERANCE:
        raise ArtefactError(
            f"{artefact.folder}: ONNX and torch differ by {difference:.3g} on "
            f"{len(observations)} observations; expected at most {TOLERANCE:g}; the weights may "
            "have grown out of float32's precision (check the run's health), train again"
        )
    return difference


def _exact_outputs(
    network: Network, observations: Observations
) -> tuple[Float32Array, Float32Array]:
    """Run the layers in float32 in their plain layout: what the ONNX file must give."""
    convolutions, dense, action_head, value_head = _layers(network)
    device = dense.weight.device
    logits, values = [], []
    with torch.no_grad():
        for start in range(0, len(observations), 64):
            batch = torch.as_tensor(observations[start : start + 64], device=device)
            activations = batch.to(torch.float32)
            if batch.dtype == torch.uint8:
                activations = activations / 255.0
            for layer in convolutions:
                activations = torch.relu(layer(activations))
            features = torch.relu(dense(activations.flatten(1)))
            answer = action_head(features)
            logits.append(answer)
            values.append(
                answer.max(1).values if value_head is None else value_head(features)[:, 0]
            )
    return torch.cat(logits).cpu().numpy(), torch.cat(values).cpu().numpy()


def _layers(
    network: Network,
) -> tuple[list[nn.Conv2d], nn.Linear, nn.Linear, nn.Linear | None]:
    """Find the convolutions, the dense layer, the action head and the value head."""

    def linear(module: nn.Module | None) -> list[nn.Linear]:
        layers = [] if module is None else module.modules()
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    convolutions = [m for m in network.extractor.modules() if isinstance(m, nn.Conv2d)]
    dense, action, value = (
        linear(part) for part in (network.extractor, network.action_head, network.value_head)
    )
    values_expected = 0 if network.value_head is None else 1
    if [len(dense), len(action), len(value)] != [1, 1, values_expected]:
        raise ArtefactError(
            f"network: got {len(convolutions)} convolutions, {len(dense)} dense layers and "
            f"{len(action) + len(value)} heads; expected convolutions (or none), one dense "
            f"layer and {1 + values_expected} linear heads; use one of the networks of "
            "`network.features`"
        )
    return convolutions, dense[0], action[0], value[0] if value else None
