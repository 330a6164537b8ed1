"""A new reward is one file; where it needs a term that there is not, two."""

from __future__ import annotations

from pathlib import Path

from tests.support.recipe_runs import episodes, play_in, train_in
from tests.support.recipes import changed_files, copy_tree, run

SURVIVAL = '''

class SurvivalReward(RewardConfig):
    """Survival: every step that Mario lives counts."""

    name: Literal["survival"] = "survival"
    alive_per_step: float = 1.0


def _progress_by_default'''

CALM = '''

class CalmReward(RewardConfig):
    """Calm: only standing costs, a little."""

    name: Literal["calm"] = "calm"
    idle_per_step: float = -0.001


def _progress_by_default'''

PLAY = """
from mario.config.game import GameConfig
from mario.game.env import MarioEnv

env = MarioEnv("1-1", GameConfig.model_validate({"reward": {"name": "calm"}}))
env.reset(seed=1)
for _ in range(8):
    print(env.step(0)[1])
"""


def change(file: Path, *replacements: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)


def test_a_new_reward_is_one_file(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    change(
        tree / "mario/config/rewards.py",
        ("\n\ndef _progress_by_default", CALM),
        ("| ProgressReward,", "| ProgressReward | CalmReward,"),
    )
    assert run(tree, "-c", PLAY).split() == ["-0.001"] * 8
    assert changed_files(tree) == ["mario/config/rewards.py"]


def test_a_new_reward_with_a_new_term_is_two_files(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    change(
        tree / "mario/config/rewards.py",
        ("    milestones: Milestones = Field(", "    alive_per_step: float = 0.0\n"
         "    milestones: Milestones = Field("),
        ("\n\ndef _progress_by_default", SURVIVAL),
        ("| ProgressReward,", "| ProgressReward | SurvivalReward,"),
    )  # fmt: skip
    change(
        tree / "mario/game/smb/rewards.py",
        ("        + reward.death * died\n", "        + reward.death * died\n"
         "        + reward.alive_per_step * ~died\n"),
    )  # fmt: skip

    folder = train_in(tree, game={"reward": {"name": "survival", "scale": 0.5}, "max_steps": 12})
    played = episodes(tree)
    assert len(played) > 20
    for earned, steps, end in played:
        assert earned == 0.5 * (steps - (end in ("death", "time_out")))
    assert play_in(tree, folder) == 7
    assert changed_files(tree) == ["mario/config/rewards.py", "mario/game/smb/rewards.py"]
