"""Build small ONNX networks that follow the policy contract, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mario.game.smb.actions import Action
from mario.policy.artefact import Artefact, Golden, load_artefact, write_artefact
from mario.policy.manifest import ObservationStatistics
from mario.policy.onnx import OnnxPolicy

SIMPLE_ACTIONS = (
    Action(name="NOOP", buttons=0),
    Action(name="right", buttons=0b1000_0000),
    Action(name="right+A", buttons=0b1000_0001),
    Action(name="right+B", buttons=0b1000_0010),
    Action(name="right+A+B", buttons=0b1000_0011),
    Action(name="A", buttons=0b0000_0001),
    Action(name="left", buttons=0b0100_0000),
)


def nature_cnn_onnx(
    action_count: int = 7,
    seed: int = 0,
    *,
    height_px: int = 84,
    constant_action: int | None = None,
    logit_scale: float = 1.0,
) -> bytes:
    """A Nature CNN (Mnih et al. 2015) with random weights, as ONNX.

    Args:
        action_count: A, the width of the logits.
        seed: seed of the weights.
        height_px: height of the input; other than 84 breaks the contract on purpose.
        constant_action: its logit gets +1000, so that a greedy answer always is this action.
        logit_scale: factor on the logits' weights.
    """
    rng = np.random.default_rng(seed)
    initializers: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(name: str, *shape: int, scale: float = 1.0) -> str:
        deviation = scale * np.sqrt(2 / np.prod(shape[1:]))
        return constant(name, (rng.normal(size=shape) * deviation).astype(np.float32))

    nodes = [
        helper.make_node("Cast", ["observation"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", constant("scale", np.float32(1 / 255))], ["scaled"]),
    ]
    last, rows, columns = "scaled", height_px, 84
    for i, (out, channels, kernel, stride) in enumerate(
        [(32, 4, 8, 4), (64, 32, 4, 2), (64, 64, 3, 1)]
    ):
        bias = constant(f"conv{i}.bias", np.zeros(out, np.float32))
        nodes.append(
            helper.make_node(
                "Conv",
                [last, weight(f"conv{i}.weight", out, channels, kernel, kernel), bias],
                [f"conv{i}"],
                kernel_shape=[kernel, kernel],
                strides=[stride, stride],
            )
        )
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"]))
        last, rows, columns = (
            f"relu{i}",
            (rows - kernel) // stride + 1,
            (columns - kernel) // stride + 1,
        )
    nodes.append(helper.make_node("Flatten", [last], ["flat"], axis=1))
    flat = 64 * rows * columns
    nodes.append(
        helper.make_node(
            "Gemm",
            ["flat", weight("dense.weight", 512, flat), constant("dense.bias", np.zeros(512, "f"))],
            ["dense"],
            transB=1,
        )
    )
    nodes.append(helper.make_node("Relu", ["dense"], ["features"]))
    bias_array = np.zeros(action_count, np.float32)
    if constant_action is not None:
        bias_array[constant_action] = 1000
    nodes.append(
        helper.make_node(
            "Gemm",
            [
                "features",
                weight("actor.weight", action_count, 512, scale=logit_scale),
                constant("actor.bias", bias_array),
            ],
            ["logits"],
            transB=1,
        )
    )
    nodes.append(
        helper.make_node(
            "Gemm",
            [
                "features",
                weight("critic.weight", 1, 512),
                constant("critic.bias", np.zeros(1, "f")),
            ],
            ["value2d"],
            transB=1,
        )
    )
    nodes.append(
        helper.make_node(
            "Squeeze", ["value2d", constant("axis", np.array([1], np.int64))], ["value"]
        )
    )
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.UINT8, ["N", 4, height_px, 84])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", action_count]),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N"]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def random_observations(count: int, seed: int = 0) -> np.ndarray:
    """Observations uint8 (count, 4, 84, 84) of uniform noise."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)


def write_test_artefact(
    folder: Path,
    seed: int = 0,
    *,
    constant_action: int | None = None,
    selection: str = "greedy",
    golden_count: int = 4,
    training_statistics: ObservationStatistics | None = None,
) -> Artefact:
    """Write a policy artefact with random weights and matching golden answers."""
    onnx_bytes = nature_cnn_onnx(len(SIMPLE_ACTIONS), seed, constant_action=constant_action)
    common = {
        "onnx": onnx_bytes,
        "actions": SIMPLE_ACTIONS,
        "action_selection": selection,
        "frame_skip": 4,
        "training_config_hash": "test",
        "git_commit": "0" * 40,
        "training_statistics": training_statistics,
    }
    if golden_count == 0:
        return write_artefact(folder, **common)
    draft = folder.with_name(folder.name + ".draft")
    policy = OnnxPolicy(write_artefact(draft, **common), batch_invariant=True)
    observations = random_observations(golden_count, seed=99)
    logits, values = policy.infer(observations)
    artefact = write_artefact(folder, **common, golden=Golden(observations, logits, values))
    for file in draft.iterdir():
        file.unlink()
    draft.rmdir()
    return load_artefact(artefact.folder)
