"""The fast network against the plain one; losses' inputs and returns against their definitions."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mario.config.network import NetworkConfig
from mario.errors import ArtefactError
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.training.algorithms.contract import Algorithm
from mario.training.algorithms.factory import build_algorithm
from mario.training.export import (
    TorchPolicy,
    check_onnx,
    export_artefact,
    export_onnx,
    save_archive,
    torch_outputs,
)
from mario.training.networks import ARCHITECTURES, FastCNN, choose_precision, policy_kwargs
from mario.training.sb3_vec_env import make_vec_env
from mario.training.signals import GradientMeter, dormant_share
from tests.support.training_runs import DQN, PPO, QRDQN, small_config

SPACE = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=generator)


def plain(network: FastCNN, observations: torch.Tensor) -> torch.Tensor:
    """The network as its paper has it: scale, convolve, ReLU, dense."""
    values = observations.double() / 255
    for layer in network.convolutions:
        weight, bias = layer.weight.double(), layer.bias.double()
        values = F.relu(F.conv2d(values, weight, bias, layer.stride))
    return F.relu(
        F.linear(values.flatten(1), network.dense.weight.double(), network.dense.bias.double())
    )


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("channels_last", [True, False])
def test_fast_layout_computes_the_same(architecture: str, channels_last: bool) -> None:
    torch.manual_seed(0)
    network = FastCNN(SPACE, architecture=architecture, channels_last=channels_last)
    observations = pictures(3)
    got, expected = network(observations), plain(network, observations)
    assert torch.allclose(got.double(), expected, atol=1e-5)
    got.sum().backward()
    fast = [p.grad.clone() for p in network.parameters()]  # type: ignore[union-attr]
    network.zero_grad()
    plain(network, observations).sum().backward()
    for ours, theirs in zip(fast, network.parameters(), strict=True):
        scale = theirs.grad.abs().max()  # type: ignore[union-attr]
        assert torch.allclose(ours, theirs.grad, atol=1e-5 * float(scale) + 1e-7)  # type: ignore[arg-type]


def test_bfloat16_stays_near_float32() -> None:
    torch.manual_seed(0)
    exact = FastCNN(SPACE, architecture="small")
    rough = FastCNN(SPACE, architecture="small", precision="bfloat16")
    rough.load_state_dict(exact.state_dict())
    with torch.no_grad():
        difference = (exact(pictures(2)) - rough(pictures(2))).abs().max()
        assert 0 < difference < 0.05 * exact(pictures(2)).abs().max()


def test_precision_follows_the_machine() -> None:
    device = torch.device("cpu")
    assert choose_precision("float32", device) == "float32"
    assert choose_precision("bfloat16", device) == "bfloat16"
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert choose_precision("auto", device) == ("bfloat16" if hardware else "float32")
    assert policy_kwargs(NetworkConfig(), device)["normalize_images"] is False


def network_keys(precision: str) -> dict[str, Any]:
    """A small network with its precision named: `auto` is another one on another machine."""
    return {"features": "tiny", "threads": 1, "precision": precision}


@pytest.fixture(params=[PPO, DQN, QRDQN], ids=["ppo", "dqn", "qrdqn"])
def algorithm(request: Any) -> Iterator[Algorithm]:
    torch.set_num_threads(1)
    config = small_config(request.param, network=network_keys("float32"))
    env = make_vec_env(config, threads=1)
    yield build_algorithm(config, env)
    env.close()


def test_policy_heads_against_torch_distributions() -> None:
    config = small_config()
    env = make_vec_env(config, threads=1)
    policy: Any = build_algorithm(config, env).model.policy
    observations = pictures(6)
    actions, values, log_probs = policy(observations)
    features = policy.features_extractor(observations)
    expected = torch.distributions.Categorical(logits=policy.action_net(features))
    assert torch.allclose(log_probs, expected.log_prob(actions), atol=1e-6)
    again, log_again, entropy = policy.evaluate_actions(observations, actions.float())
    assert torch.allclose(again, values, atol=1e-6)
    assert torch.allclose(log_again, log_probs, atol=1e-6)
    assert torch.allclose(entropy, expected.entropy(), atol=1e-6)
    assert torch.equal(policy.predict_values(observations), values)
    best = policy(observations, deterministic=True)[0]
    assert torch.equal(best, expected.probs.argmax(1))
    env.close()


def test_gae_and_returns_by_their_definition() -> None:
    """Schulman et al. 2016, eq. 16: A_t = sum over l of (γλ)^l δ_{t+l}, up to the episode's end."""
    config = small_config(
        PPO | {"gamma": 0.9, "gae_lambda": 0.8}, game={"max_steps": 5, "no_op_max_frames": 0}
    )
    env = make_vec_env(config, threads=1)
    model: Any = build_algorithm(config, env).model
    seen: dict[str, Any] = {}
    train = model.train

    def look() -> None:
        buffer = model.rollout_buffer
        for name in ("rewards", "values", "episode_starts", "advantages", "returns"):
            seen[name] = getattr(buffer, name).copy()
        with torch.no_grad():
            last = model.policy.predict_values(torch.as_tensor(model._last_obs))
        seen["last"] = last.numpy().flatten()
        seen["last_starts"] = model._last_episode_starts.copy()
        train()

    model.train = look
    model.learn(64)
    gamma, lam = 0.9, 0.8
    steps, count = seen["rewards"].shape
    starts = np.vstack([seen["episode_starts"][1:], seen["last_starts"][None]])
    values = np.vstack([seen["values"], seen["last"][None]])
    ends = 0
    for env_index in range(count):
        for t in range(steps):
            advantage, weight = 0.0, 1.0
            for k in range(t, steps):
                goes_on = 1.0 - starts[k, env_index]
                delta = (
                    seen["rewards"][k, env_index]
                    + gamma * values[k + 1, env_index] * goes_on
                    - values[k, env_index]
                )
                advantage += weight * delta
                weight *= gamma * lam
                if not goes_on:
                    ends += 1
                    break
            assert seen["advantages"][t, env_index] == pytest.approx(advantage, abs=1e-4)
            total = advantage + values[t, env_index]
            assert seen["returns"][t, env_index] == pytest.approx(total, abs=1e-4)
    assert ends > 0
    env.close()


def test_truncated_episodes_bootstrap_from_their_last_picture() -> None:
    """Pardo et al. 2018: a step limit is no death; the value of what would have followed counts."""
    config = small_config(game={"max_steps": 3, "no_op_max_frames": 0})
    env = make_vec_env(config, threads=1)
    model: Any = build_algorithm(config, env).model
    raw: list[np.ndarray] = []
    ends: list[tuple[int, int, np.ndarray]] = []
    step = env.step_wait

    def listen() -> Any:
        observations, rewards, dones, infos = step()
        raw.append(rewards.copy())
        for index in np.flatnonzero(dones):
            ends.append((len(raw) - 1, int(index), infos[index]["terminal_observation"]))
        return observations, rewards, dones, infos

    env.step_wait = listen  # type: ignore[method-assign]
    seen: dict[str, Any] = {}

    def look() -> None:
        seen["rewards"] = model.rollout_buffer.rewards.copy()

    model.train = look
    model.learn(16 * 4)
    assert ends
    for t, index, picture in ends:
        with torch.no_grad():
            value = float(model.policy.predict_values(torch.as_tensor(picture)[None]))
        expected = raw[t][index] + config.algorithm.gamma * value
        assert seen["rewards"][t, index] == pytest.approx(expected, abs=1e-5)
    env.close()


def test_gradient_meter_measures_before_clipping(algorithm: Algorithm) -> None:
    norms: list[float] = []
    model: Any = algorithm.model
    meter = GradientMeter(model, norms.append)
    outputs = algorithm.network().extractor
    model.policy.optimizer.zero_grad()
    (1000 * outputs(pictures(4)).sum()).backward()
    trained = [p for group in model.policy.optimizer.param_groups for p in group["params"]]
    expected = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in trained if p.grad is not None))
    torch.nn.utils.clip_grad_norm_(trained, 0.5)
    model.policy.optimizer.step()
    assert expected > 10
    assert meter.take() == pytest.approx(expected, rel=1e-4)
    assert norms == pytest.approx([expected], rel=1e-4)
    assert meter.take() is None
    meter.close()


def test_dormant_units_are_counted_in_the_deadest_layer(algorithm: Algorithm) -> None:
    extractor: Any = algorithm.network().extractor
    observations = pictures(8).numpy()
    with torch.no_grad():
        for layer in (*extractor.convolutions, extractor.dense):
            layer.bias.fill_(1.0)
            layer.weight.mul_(0.01)
    assert dormant_share(algorithm, observations) == 0.0
    with torch.no_grad():
        extractor.dense.bias[:16].fill_(-100.0)
    assert dormant_share(algorithm, observations) == pytest.approx(16 / 64)
    with torch.no_grad():
        extractor.convolutions[1].bias.fill_(-100.0)
    assert dormant_share(algorithm, observations) == 1.0


def real_observations(count: int) -> np.ndarray:
    config = small_config(game={"max_steps": 200})
    env = make_vec_env(config, threads=1)
    observations, kept = env.reset(), []
    generator = np.random.default_rng(0)
    while len(kept) * 4 < count:
        for _ in range(4):
            observations, *_ = env.step(generator.integers(0, 7, 4))
        kept.append(observations)
    env.close()
    return np.concatenate(kept)[:count]


def test_artefact_answers_like_the_network(algorithm: Algorithm, tmp_path: Path) -> None:
    config = small_config()
    observations = real_observations(64)
    artefact = export_artefact(
        algorithm, tmp_path / "policy", config, observations=observations, git_commit="abc"
    )
    loaded = OnnxPolicy(load_artefact(tmp_path / "policy"))
    logits, values = loaded.infer(observations)
    expected_logits, expected_values = torch_outputs(algorithm, observations)
    assert np.abs(logits - expected_logits).max() <= 1e-4
    assert np.abs(values - expected_values).max() <= 1e-4
    assert loaded.check_golden() <= 1e-4
    assert artefact.manifest.action_names == ("noop", "right", "right+A", "right+B", "right+A+B",
                                              "A", "left")  # fmt: skip
    assert artefact.manifest.training_config_hash == config.content_hash()
    # The same weights give the same bytes, and TorchPolicy acts like the artefact.
    assert export_onnx(algorithm.network()) == artefact.onnx
    policy = TorchPolicy(algorithm, config, "greedy")
    assert np.array_equal(policy.act(observations).actions, loaded.act(observations).actions)
    assert len(policy.act(observations[:0]).actions) == 0


def test_a_network_trained_in_bfloat16_is_exported_in_float32(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    observations = real_observations(16)
    answers = {}
    for precision in ("float32", "bfloat16"):
        config = small_config(network=network_keys(precision))
        env = make_vec_env(config, threads=1)
        algorithm = build_algorithm(config, env)
        folder = tmp_path / precision
        export_artefact(algorithm, folder, config, observations=observations, git_commit="abc")
        answers[precision] = OnnxPolicy(load_artefact(folder)).infer(observations)
        logits, values = torch_outputs(algorithm, observations)
        env.close()
    # The seed is the same, and with it the weights: so is the file's answer, to the last bit.
    for mine, theirs in zip(answers["bfloat16"], answers["float32"], strict=True):
        assert np.array_equal(mine, theirs)
    # The network itself answers in bfloat16: near, and not the same.
    assert 0 < np.abs(values - answers["bfloat16"][1]).max() < 0.05
    assert np.abs(logits - answers["bfloat16"][0]).max() < 0.05


def test_a_wrong_export_is_found(algorithm: Algorithm, tmp_path: Path) -> None:
    config = small_config()
    observations = real_observations(8)
    artefact = export_artefact(
        algorithm, tmp_path / "policy", config, observations=observations, git_commit="abc"
    )
    logits, values = torch_outputs(algorithm, observations)
    with pytest.raises(ArtefactError, match="differ by"):
        check_onnx(artefact, observations, logits + 2e-4, values)


def test_an_archive_holds_the_weights(algorithm: Algorithm) -> None:
    model = algorithm.model
    with zipfile.ZipFile(io.BytesIO(save_archive(model))) as archive:
        weights = io.BytesIO(archive.read("policy.pth"))
    stored = torch.load(weights, map_location=model.device, weights_only=True)
    assert stored.keys() == model.policy.state_dict().keys()
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, stored[name])
