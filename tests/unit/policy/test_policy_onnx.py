"""The ONNX runtime gives the right numbers, the same for every batch, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from mario.errors import ArtefactError
from mario.policy.artefact import Golden, load_artefact, write_artefact
from mario.policy.onnx import OnnxPolicy
from mario.policy.policy import RandomPolicy, choose, softmax
from tests.support.onnx_networks import (
    SIMPLE_ACTIONS,
    nature_cnn_onnx,
    random_observations,
    write_test_artefact,
)
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_artefact(tmp_path_factory.mktemp("policy") / "a").folder


@pytest.fixture(scope="module")
def policy(folder: Path) -> OnnxPolicy:
    return OnnxPolicy(load_artefact(folder))


def test_logits_match_the_onnx_reference_evaluator(policy: OnnxPolicy) -> None:
    observations = random_observations(2)
    logits, values = policy.infer(observations)
    reference = ReferenceEvaluator(onnx.load_from_string(policy.artefact.onnx))
    expected_logits, expected_values = reference.run(None, {"observation": observations})
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    np.testing.assert_allclose(values, expected_values, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("forced", [None, False])
def test_answers_do_not_depend_on_the_batch(
    folder: Path, threads: int, forced: bool | None
) -> None:
    """Bit-identical for every batch size up to 65 and every position in the batch."""
    policy = OnnxPolicy(load_artefact(folder), threads=threads, batch_invariant=forced)
    observations = random_observations(70, seed=3)
    observations[5] = 0
    alone = [policy.infer(observations[i : i + 1]) for i in range(70)]
    logits = np.concatenate([answer[0] for answer in alone])
    values = np.concatenate([answer[1] for answer in alone])
    for size in (1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 64, 65, 70):
        for start in (0, 70 - size):
            got_logits, got_values = policy.infer(observations[start : start + size])
            np.testing.assert_array_equal(got_logits, logits[start : start + size])
            np.testing.assert_array_equal(got_values, values[start : start + size])


def test_the_probe_sees_a_network_whose_rows_depend_on_each_other(tmp_path: Path) -> None:
    """The fallback for kernels that depend on the batch size, with a network that does."""
    model = onnx.load_from_string(nature_cnn_onnx())
    for node in model.graph.node:
        if node.output[0] == "logits":
            node.output[0] = "row_logits"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["row_logits"], ["batch_mean"], keepdims=1),
            onnx.helper.make_node("Sub", ["row_logits", "batch_mean"], ["logits"]),
        ]
    )
    artefact = write_artefact(
        tmp_path / "a",
        onnx=model.SerializeToString(),
        actions=SIMPLE_ACTIONS,
        action_selection="greedy",
        frame_skip=4,
        training_config_hash="x",
        git_commit="x",
    )
    policy = OnnxPolicy(artefact)
    assert not policy.batch_invariant
    observations = random_observations(5)
    together = policy.infer(observations)[0]
    alone = np.concatenate([policy.infer(observations[i : i + 1])[0] for i in range(5)])
    np.testing.assert_array_equal(together, alone)


def test_act_is_greedy_or_sampled_as_the_artefact_says(tmp_path: Path) -> None:
    greedy = OnnxPolicy(write_test_artefact(tmp_path / "g", selection="greedy"))
    sampling = OnnxPolicy(write_test_artefact(tmp_path / "s", selection="sample"))
    observations = random_observations(6)
    output = greedy.act(observations)
    assert output.actions.dtype == np.int64
    assert output.actions.shape == (6,)
    assert output.probabilities.dtype == np.float32
    assert output.probabilities.shape == (6, 7)
    assert output.values.dtype == np.float32
    assert output.values.shape == (6,)
    np.testing.assert_array_equal(output.actions, output.probabilities.argmax(1))
    with pytest.raises(ValueError, match="generator"):
        sampling.act(observations)
    first = sampling.act(observations, np.random.default_rng(1)).actions
    again = sampling.act(observations, np.random.default_rng(1)).actions
    np.testing.assert_array_equal(first, again)
    assert greedy.act(observations[:0]).probabilities.shape == (0, 7)
    overridden = sampling.act(observations, selection="greedy").actions
    np.testing.assert_array_equal(
        overridden, sampling.act(observations, selection="greedy").actions
    )


def test_one_generator_a_row_makes_rows_independent_of_the_batch(tmp_path: Path) -> None:
    policy = OnnxPolicy(write_test_artefact(tmp_path / "s", selection="sample"))
    observations = random_observations(8)
    together = policy.act(observations, [np.random.default_rng(i) for i in range(8)]).actions
    alone = [
        int(policy.act(observations[i : i + 1], [np.random.default_rng(i)]).actions[0])
        for i in range(8)
    ]
    assert together.tolist() == alone
    with pytest.raises(ValueError, match="7 generators for 8"):
        policy.act(observations, [np.random.default_rng(i) for i in range(7)])


def test_sampling_follows_the_probabilities() -> None:
    probabilities = np.array([[0.5, 0.0, 0.3, 0.2]] * 20_000, dtype=np.float32)
    chosen = choose(probabilities, "sample", np.random.default_rng(0))
    shares = np.bincount(chosen, minlength=4) / len(chosen)
    # Four standard errors of a share near one half among 20,000 draws are 0.014.
    np.testing.assert_allclose(shares, probabilities[0], atol=0.014)
    assert shares[1] == 0


def test_softmax_survives_large_logits() -> None:
    probabilities = softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-7)


def test_wrong_observations_are_refused(policy: OnnxPolicy) -> None:
    for bad in (
        np.zeros((4, 84, 84), np.uint8),
        np.zeros((1, 84, 84, 4), np.uint8),
        np.zeros((1, 4, 84, 84), np.float32),
        np.zeros((1, 4, 84, 83), np.uint8),
    ):
        with pytest.raises(ArtefactError, match="uint8"):
            policy.act(bad)


def test_golden_answers_are_checked(tmp_path: Path, policy: OnnxPolicy) -> None:
    assert policy.check_golden() == 0.0
    golden = policy.artefact.golden
    assert golden is not None
    off = golden.logits.copy()
    off[1, 2] += 0.01
    artefact = write_artefact(
        tmp_path / "a",
        onnx=policy.artefact.onnx,
        actions=SIMPLE_ACTIONS,
        action_selection="greedy",
        frame_skip=4,
        training_config_hash="x",
        git_commit="x",
        golden=Golden(golden.observations, off, golden.values),
    )
    with pytest.raises(ArtefactError, match=r"differ by 0\.01"):
        OnnxPolicy(artefact).check_golden()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (b"not a network", "does not load"),
        (nature_cnn_onnx(action_count=5), r"logits float32 \(2, 5\)"),
        (nature_cnn_onnx(height_px=80), "expected input observation"),
    ],
)
def test_networks_that_break_the_contract_are_refused(
    tmp_path: Path, network: bytes, message: str
) -> None:
    artefact = write_artefact(
        tmp_path / "a",
        onnx=network,
        actions=SIMPLE_ACTIONS,
        action_selection="greedy",
        frame_skip=4,
        training_config_hash="x",
        git_commit="x",
    )
    with pytest.raises(ArtefactError, match=message):
        OnnxPolicy(artefact)


def test_the_random_policy_is_uniform_and_seeded() -> None:
    policy = RandomPolicy(SIMPLE_ACTIONS)
    observations = np.zeros((7000, 4, 84, 84), np.uint8)
    actions = policy.act(observations, np.random.default_rng(0)).actions
    counts = np.bincount(actions, minlength=7)
    assert counts.min() > 850
    assert counts.max() < 1150
    np.testing.assert_array_equal(
        actions, policy.act(observations, np.random.default_rng(0)).actions
    )
    with pytest.raises(ValueError, match="generator"):
        policy.act(observations)


def test_the_runtime_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'stable_baselines3', 'gymnasium', 'mlflow'):\n"
        "    sys.modules[name] = None\n"
        "from mario.policy.artefact import load_artefact\n"
        "from mario.policy.onnx import OnnxPolicy\n"
        f"policy = OnnxPolicy(load_artefact({str(folder)!r}))\n"
        "import numpy as np\n"
        "print(policy.act(np.zeros((1, 4, 84, 84), np.uint8)).actions.shape)\n"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(1,)" in done.stdout
