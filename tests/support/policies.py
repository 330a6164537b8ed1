"""Policy artefacts of known skill, without training: they choose actions by fixed odds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mario.game.smb.actions import action_set
from mario.policy.artefact import Artefact, Golden, load_artefact, write_artefact
from mario.policy.onnx import OnnxPolicy
from tests.support.onnx_networks import random_observations

#: Odds of the action set `complex`: noop, right, right+A, right+B, right+A+B, A, left, left+A,
#: left+B, left+A+B, down, up. GOOD gets about three times as far on 1-1 as uniform odds.
GOOD = (0.005, 0.005, 0.30, 0.30, 0.355, 0.005, 0.005, 0.005, 0.005, 0.005, 0.005, 0.005)
#: STUCK never leaves the start, so any policy that goes right beats it.
STUCK = (0.4945, 0.0005, 0.0005, 0.0005, 0.0005, 0.001, 0.40, 0.001, 0.10, 0.0005, 0.0005, 0.0005)
POOR = (0.20, 0.05, 0.05, 0.05, 0.05, 0.05, 0.20, 0.10, 0.10, 0.05, 0.05, 0.05)


def odds_network(odds: Sequence[float]) -> bytes:
    """Build an ONNX network whose logits are constant log odds."""
    logits = np.log(np.asarray(odds, np.float32))
    zeros = np.zeros((1, len(odds)), np.float32)
    tensors = [
        numpy_helper.from_array(logits, "log_odds"),
        numpy_helper.from_array(zeros, "zeros"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    nodes = [
        helper.make_node("Cast", ["observation"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["means"]),
        helper.make_node("MatMul", ["means", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "log_odds"], ["logits"]),
        helper.make_node("Mul", ["mean", "zero"], ["value"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odds",
        [helper.make_tensor_value_info("observation", TensorProto.UINT8, ["N", 4, 84, 84])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(odds)]),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N"]),
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_odds_policy(
    folder: Path, odds: Sequence[float], *, config_hash: str = "0" * 64
) -> Artefact:
    """Write an artefact that samples its actions by fixed odds, golden answers included."""
    shared = {
        "onnx": odds_network(odds),
        "actions": action_set("complex"),
        "action_selection": "sample",
        "frame_skip": 4,
        "training_config_hash": config_hash,
        "git_commit": "0" * 40,
        "task": "1-1",
    }
    plain = write_artefact(folder.with_name(folder.name + "-plain"), **shared)
    observations = random_observations(4)
    logits, values = OnnxPolicy(plain).infer(observations)
    write_artefact(folder, **shared, golden=Golden(observations, logits, values))
    return load_artefact(folder)
