"""Broken configurations are refused in one line that names the key and what is expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from mario.config.algorithms import DQNConfig, PPOConfig
from mario.config.experiment import SEED_BOUND, ExperimentConfig, load_config, parse_config
from mario.errors import ConfigError
from tests.support.paths import ROOT

CONFIGS = ROOT / "configs"

MINIMAL = "name: try\ntotal_steps: 4096\n"

# The text after the minimal configuration, and the words that the message must contain.
BROKEN = {
    "unknown key": ("gama: 0.9\n", ["gama", "unknown key"]),
    "unknown key in a section": (
        "algorithm: {name: ppo, gama: 0.9}\n", ["algorithm.gama", "gamma"],
    ),
    "wrong type": ("environments: many\n", ["environments", "'many'"]),
    "float for a count": ("environments: 2.5\n", ["environments", "2.5"]),
    "number below its range": ("environments: 0\n", ["environments", "0"]),
    "number above its range": ("algorithm: {gamma: 1.5}\n", ["algorithm.gamma", "1.5"]),
    "not a number": ("algorithm: {learning_rate: .nan}\n", ["algorithm.learning_rate"]),
    "batch does not divide": (
        "environments: 3\nalgorithm: {n_steps: 10, batch_size: 7}\n", ["batch_size", "7", "30"],
    ),
    "unknown level": ("task: 9-1\n", ["task", "9-1", "8-4"]),
    "unknown level in a list": ("task: mine\nlevels: [1-1, 1-7]\n", ["levels", "1-7"]),
    "level twice": ("task: mine\nlevels: [1-1, 1-1]\n", ["levels", "each level once"]),
    "named task without levels": ("task: mine\n", ["task", "levels"]),
    "levels beside a level": ('task: "1-1"\nlevels: [1-2]\n', ["levels", "remove"]),
    "unknown algorithm": ("algorithm: {name: sac}\n", ["algorithm.name", "sac", "dqn"]),
    "key of the other algorithm": (
        "algorithm: {name: dqn, n_epochs: 4}\n", ["algorithm.n_epochs", "unknown key"],
    ),
    "unknown reward": ("game: {reward: {name: fun}}\n", ["game.reward.name", "fun"]),
    "parameter of no effect": (
        "game: {reward: {name: game, flag: 5}}\n", ["game.reward.flag", "standard"],
    ),
    "unknown key in a reward": (
        "game: {reward: {name: speedrun, flagg: 5}}\n", ["game.reward.flagg", "mean flag?"],
    ),
    "unknown key in the default reward": (
        "game: {reward: {deaths: 5}}\n", ["game.reward.deaths", "mean death?"],
    ),
    "unknown console": ("game: {console: snes}\n", ["game.console", "snes", "nes-py"]),
    "unknown actions": ("game: {actions: all}\n", ["game.actions", "'all'", "right_only"]),
    "stuck limit beyond the episode": (
        "game: {stuck_limit_steps: 5000}\n", ["stuck_limit_steps", "5000", "max_steps"],
    ),
    "exploration that grows": (
        "algorithm: {name: dqn, learning_starts_steps: 100, exploration_final: 1.0,"
        " exploration_initial: 0.5}\n",
        ["exploration_final", "exploration_initial"],
    ),
    "learning starts after the end": (
        "algorithm: {name: dqn, learning_starts_steps: 9999}\n", ["learning_starts_steps", "4096"],
    ),
    "seed that no generator takes": (
        "seed: 99999999999999999999999\n", ["seed", "99999999999999999999999", "4294967296"],
    ),
    "negative seed": ("seed: -1\n", ["seed", "-1"]),
    "key given twice": ("name: again\n", ["name", "twice"]),
    "not YAML": ("algorithm: [\n", ["not valid YAML"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_config_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    text, words = BROKEN[kind]
    path = tmp_path / "broken.yaml"
    path.write_text(MINIMAL + text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "broken.yaml" in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"no such file.*there\.yaml"):
        load_config(tmp_path / "away.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="at the top"):
        load_config(tmp_path / "empty.yaml")


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="total_steps: missing"):
        parse_config({"name": "try"}, "here")


@pytest.mark.parametrize("override", ["algorithm", "algorithm.gamma=[", "name.x=1"])
def test_broken_override_is_refused(override: str, tmp_path: Path) -> None:
    path = tmp_path / "fine.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, (override,))


def test_override_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fine.yaml"
    path.write_text(MINIMAL + "algorithm: {gamma: 0.9}\n")
    config = load_config(path, ("algorithm.gamma=0.8", "total_steps=8192"))
    assert config.algorithm.gamma == 0.8
    assert config.total_steps == 8192


def test_settings_of_another_algorithm_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(MINIMAL + "algorithm: {n_steps: 64, gamma: 0.9, clip_range: 0.1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ("algorithm.name=dqn", "algorithm.batch_sise=8"))
    said = str(caught.value)
    assert "algorithm.n_steps, algorithm.clip_range: unknown keys beside algorithm.name dqn" in said
    assert "only ppo has" in said
    assert "did you mean n_steps" not in said
    assert "algorithm.batch_sise: unknown key; did you mean batch_size?" in said


def test_wandb_may_be_turned_off_without_quotes(tmp_path: Path) -> None:
    """YAML 1.1 reads a bare `off` as False."""
    path = tmp_path / "fine.yaml"
    path.write_text(MINIMAL + "sinks: {wandb: online}\n")
    assert load_config(path, ("sinks.wandb=off",)).sinks.wandb == "off"
    path.write_text(MINIMAL + "sinks: {wandb: off}\n")
    assert load_config(path).sinks.wandb == "off"
    with pytest.raises(ConfigError, match=r"sinks\.wandb"):
        load_config(path, ("sinks.wandb=on",))


def test_the_largest_seed_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "fine.yaml"
    path.write_text(MINIMAL)
    assert load_config(path, (f"seed={SEED_BOUND - 1}",)).seed == SEED_BOUND - 1
    with pytest.raises(ConfigError, match="seed: got"):
        load_config(path, (f"seed={SEED_BOUND}",))


def test_yaml_round_trip_and_hash(tmp_path: Path) -> None:
    config = parse_config({"name": "try", "total_steps": 4096}, "here")
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    again = load_config(path)
    assert again == config
    assert again.content_hash() == config.content_hash()
    renamed = config.model_copy(update={"name": "other"})
    assert renamed.content_hash() == config.content_hash()
    other = config.model_copy(update={"seed": 1})
    assert other.content_hash() != config.content_hash()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem


# name: lr, schedule, gamma, n_steps, epochs, batch, clip, entropy, lambda, envs, steps, skip,
# stuck limit, reward
SEED_TABLE = {
    "ppo_baseline": (1e-4, "constant", .99, 1024, 5, 128, .2, .01, .95, 8, 2_000_000, 1, 0, "game"),
    "ppo_v2": (3e-5, "constant", .99, 1024, 5, 128, .2, .02, .95, 4, 2_000_000, 1, 150, "standard"),
    "ppo_v3": (3e-5, "linear", .99, 1024, 10, 128, .15, .02, .95, 4, 10_000_000, 1, 300,
               "standard"),
    "ppo_v4": (3e-5, "linear", .99, 1024, 10, 128, .15, .02, .95, 4, 10_000_000, 4, 300,
               "standard"),
    "ppo_v5": (3e-5, "linear", .99, 1024, 10, 128, .15, .02, .95, 4, 2_000_000, 4, 300, "speedrun"),
}  # fmt: skip


@pytest.mark.parametrize("name", SEED_TABLE)
def test_seed_configurations_have_their_values(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    ppo = config.algorithm
    assert isinstance(ppo, PPOConfig)
    assert SEED_TABLE[name] == (
        ppo.learning_rate, ppo.learning_rate_schedule, ppo.gamma, ppo.n_steps, ppo.n_epochs,
        ppo.batch_size, ppo.clip_range, ppo.entropy_coefficient, ppo.gae_lambda,
        config.environments, config.total_steps, config.game.frame_skip,
        config.game.stuck_limit_steps, config.game.reward.name,
    )  # fmt: skip


@pytest.mark.parametrize(("cores", "expected"), [(1, 8), (2, 16), (6, 32), (16, 128), (96, 128)])
def test_environments_are_the_machines_unless_set(
    cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    config = parse_config({"name": "here", "total_steps": 1_000}, "test")
    assert config.environments == expected
    # The number that was written holds on another machine, too.
    written = yaml.safe_load(config.to_yaml())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    assert parse_config(written, "test") == config
    assert parse_config({**written, "environments": 4}, "test").environments == 4


def test_dqn_baseline_has_its_values() -> None:
    config: ExperimentConfig = load_config(CONFIGS / "dqn_baseline.yaml")
    dqn = config.algorithm
    assert isinstance(dqn, DQNConfig)
    assert (dqn.learning_rate, dqn.gamma, dqn.buffer_size, dqn.learning_starts_steps) == (
        1e-4, 0.99, 100_000, 10_000,
    )  # fmt: skip
    assert (dqn.batch_size, dqn.target_update_steps) == (32, 1_000)
    assert (dqn.exploration_initial, dqn.exploration_final) == (1, 0.1)
    assert dqn.exploration_fraction == 0.2
    assert (config.total_steps, config.game.frame_skip) == (2_000_000, 1)
    assert config.game.reward.name == "game"


def test_dqn_1_1_has_the_values_that_its_sources_have() -> None:
    config = load_config(CONFIGS / "dqn_1-1.yaml")
    dqn = config.algorithm
    assert isinstance(dqn, DQNConfig)
    # rl-baselines3-zoo, hyperparams/dqn.yml, atari; the discount is stable-baselines3's default.
    assert (dqn.learning_rate, dqn.learning_rate_schedule, dqn.gamma) == (1e-4, "constant", 0.99)
    assert (dqn.buffer_size, dqn.batch_size, dqn.target_update_steps) == (100_000, 32, 1_000)
    assert (dqn.train_frequency_steps, dqn.gradient_steps) == (4, 1)
    assert (dqn.exploration_initial, dqn.exploration_final) == (1.0, 0.01)
    assert dqn.exploration_fraction == 0.1
    # Rainbow, table 1: 80,000 frames of history.
    assert dqn.learning_starts_steps * config.game.frame_skip == 80_000
    assert (config.game.frame_skip, config.game.reward.name) == (4, "progress")
    # Several games step together; the replay period is that of one game.
    assert config.environments == 16
    assert config.environments % dqn.train_frequency_steps == 0
    # Disk use is bounded, as each checkpoint holds the replay buffer.
    assert config.checkpoint.keep == 2
