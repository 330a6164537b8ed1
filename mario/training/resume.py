"""Exact resume: copy everything that decides how training continues, and restore it.

That is: networks, optimizer, every random generator (Python, NumPy, torch, CUDA, the action space),
counters, the observation the policy sees next, the environments with their unfinished episodes, and
what the algorithm itself adds (a replay buffer). Whatever is left out is rebuilt identically or
changes no weight.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from mario.errors import CheckpointError, SaveStateError
from mario.training.algorithms.contract import Algorithm
from mario.training.checkpoint import CheckpointContent
from mario.training.sb3_vec_env import GameVecEnv, VecSnapshot
from mario.training.schedules import learning_rate

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def capture(algorithm: Algorithm, env: GameVecEnv, values: Mapping[str, Any]) -> CheckpointContent:
    """Copy the whole state of a run, between two updates.

    Args:
        algorithm: the algorithm.
        env: its games.
        values: the run's own state, as JSON types.
    """
    model = algorithm.model
    networks = capture_networks(model)
    tensors = {**networks.tensors, "torch_rng": torch.get_rng_state().clone()}
    if torch.cuda.is_available():
        tensors["cuda_rng"] = torch.cuda.get_rng_state_all()
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - SB3 draws from it
    snapshot = env.snapshot()
    arrays: dict[str, npt.NDArray[Any]] = {
        "numpy_rng": np.asarray(keys),
        "last_observations": np.array(model._last_obs),
        "last_episode_starts": np.array(model._last_episode_starts),
        "env_episodes": snapshot.episodes,
        "env_returns": snapshot.returns,
        "env_furthest_px": snapshot.furthest_px,
        "env_observations": snapshot.observations,
    }
    for index, slot in enumerate(snapshot.slots):
        arrays[f"env_slot_{index}"] = np.frombuffer(slot, np.uint8)
    state: dict[str, Any] = {
        "trainer": dict(values),
        **networks.values,
        "learning_rate_factor": learning_rate(model).factor,
        "python_rng": _listed(random.getstate()),
        "numpy_rng": [int(position), int(has_gauss), float(gauss)],
        "action_space_rng": model.action_space.np_random.bit_generator.state,
        "env_total_steps": snapshot.total_steps,
        "env_count": len(snapshot.slots),
        "threads": torch.get_num_threads(),
    }
    own_values, own_arrays = algorithm.capture()
    return CheckpointContent(state | own_values, tensors, arrays | own_arrays)


def capture_networks(model: BaseAlgorithm) -> CheckpointContent:
    """Copy what an export and a rollback need: networks, optimizer and counters."""
    policy: Any = model.policy
    tensors = {
        "policy": copy.deepcopy(policy.state_dict()),
        "optimizer": copy.deepcopy(policy.optimizer.state_dict()),
    }
    values = {"counters": {name: getattr(model, name) for name in _COUNTERS}}
    return CheckpointContent(values, tensors, {})


def restore(algorithm: Algorithm, env: GameVecEnv, content: CheckpointContent) -> dict[str, Any]:
    """Restore a captured state.

    Args:
        algorithm: freshly built from the same configuration.
        env: freshly opened, likewise.
        content: from :func:`capture`.

    Returns:
        The run's own state.

    Raises:
        CheckpointError: the state does not fit the model or the games.
    """
    model, values, arrays = algorithm.model, content.values, content.arrays
    try:
        restore_networks(model, content)
        for name, value in values["counters"].items():
            setattr(model, name, value)
        count = values["env_count"]
        observations = env.restore(
            VecSnapshot(
                slots=[arrays[f"env_slot_{index}"].tobytes() for index in range(count)],
                episodes=arrays["env_episodes"],
                returns=arrays["env_returns"],
                furthest_px=arrays["env_furthest_px"],
                observations=arrays["env_observations"],
                total_steps=values["env_total_steps"],
            )
        )
        if not np.array_equal(observations, arrays["last_observations"]):
            raise SaveStateError("the observations differ from those that were saved")
        model._last_obs = arrays["last_observations"].copy()
        model._last_episode_starts = arrays["last_episode_starts"].copy()
        learning_rate(model).factor = values["learning_rate_factor"]
        algorithm.restore(content)
        _restore_generators(model, content)
    except (KeyError, ValueError, TypeError, RuntimeError, SaveStateError) as error:
        raise CheckpointError(
            f"checkpoint does not fit this run ({str(error).splitlines()[0][:160]}); expected one "
            "of the same configuration, console and version; start the run again"
        ) from error
    trainer: dict[str, Any] = dict(values["trainer"])
    return trainer


def restore_networks(model: BaseAlgorithm, content: CheckpointContent) -> None:
    """Restore the networks and the optimizer, and nothing else."""
    policy: Any = model.policy
    policy.load_state_dict(content.tensors["policy"])
    policy.optimizer.load_state_dict(content.tensors["optimizer"])


def _restore_generators(model: BaseAlgorithm, content: CheckpointContent) -> None:
    values = content.values
    version, words, gauss = values["python_rng"]
    random.setstate((version, tuple(words), gauss))
    position, has_gauss, cached = values["numpy_rng"]
    np.random.set_state(  # noqa: NPY002 - SB3 draws from it
        ("MT19937", content.arrays["numpy_rng"], position, has_gauss, cached)
    )
    model.action_space.np_random.bit_generator.state = values["action_space_rng"]
    torch.set_rng_state(content.tensors["torch_rng"].cpu())
    if torch.cuda.is_available() and "cuda_rng" in content.tensors:
        torch.cuda.set_rng_state_all([state.cpu() for state in content.tensors["cuda_rng"]])


def _listed(value: Any) -> Any:
    """Turn tuples into lists, as JSON has them."""
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


class PreservedGenerators:
    """A context that restores the global random generators at its end.

    Within it the policy is scored, which must not change how training continues.
    """

    def __enter__(self) -> None:
        """Copy the generators' states."""
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - SB3 draws from it
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def __exit__(self, *_: object) -> None:
        """Restore them."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002 - SB3 draws from it
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
