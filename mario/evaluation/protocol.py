"""`mario-eval-v1`: play units with a policy and record the episodes.

A unit's episode depends on (protocol, level, seed) and the policy only. The seed drives the no-ops
at the start and the sticky actions through the episode's own generator; a second generator derived
from it draws the policy's actions where they are sampled. How many units are played at once, in
which order, on which console or on how many threads changes nothing. Across machines this holds
for the console, and for whole episodes where the network gives the same answers: ONNX logits may
differ in the last bit between the kernels of different CPUs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from mario.config.evaluation import ENVIRONMENTS, MAX_STEPS, NO_OP_MAX_FRAMES, STICKY_PROBABILITY
from mario.config.faults import parse_settings
from mario.config.game import ConsoleName, GameConfig
from mario.errors import EvaluationError
from mario.evaluation.records import EpisodeRecord, RecordedEnd
from mario.game.batch.contract import BatchStep, EpisodeSpec, GameBatch
from mario.game.batch.factory import open_batch
from mario.game.console.contract import UInt8Array
from mario.game.console.factory import open_console
from mario.game.rng import derive_seed
from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import read_time
from mario.game.smb.observations.contract import Observations
from mario.game.smb.stage import start_level
from mario.policy.policy import Policy

#: Second argument of `derive_seed` for the generator that draws a sampling policy's actions.
_ACTION_STREAM = 1

_RECORDED_END: dict[EndReason, RecordedEnd] = {
    EndReason.FLAG: "flag",
    EndReason.DEATH: "death",
    EndReason.TIME_OUT: "clock",
    EndReason.TRUNCATED: "steps",
}


def protocol_game(policy: Policy, console: ConsoleName = "native") -> GameConfig:
    """The game of the protocol, with the policy's frame skip."""
    values = {
        "console": console,
        "frame_skip": policy.frame_skip,
        "no_op_max_frames": NO_OP_MAX_FRAMES,
        "sticky_probability": STICKY_PROBABILITY,
        "max_steps": MAX_STEPS,
    }
    return parse_settings(GameConfig, values, "evaluation")


def _open_games(slots: int, policy: Policy, console: ConsoleName, threads: int) -> GameBatch:
    """Open the protocol's games with the policy's actions."""
    buttons = [action.buttons for action in policy.actions]
    return open_batch(
        slots,
        protocol_game(policy, console),
        observation=policy.observation.name,
        buttons=buttons,
        threads=threads,
    )


@cache
def start_clock(level: str, console: ConsoleName) -> int:
    """Read the game clock at a level's first controllable frame, in the game's ticks."""
    machine = open_console(console)
    start_level(machine, level)
    return read_time(machine.ram)


@dataclass
class _Playing:
    """A unit that is being played in a slot."""

    level: str
    seed: int
    generator: np.random.Generator
    action_counts: list[int]
    game_reward: int = 0
    trajectory: hashlib._Hash = field(default_factory=hashlib.sha256)


def play_units(
    policy: Policy,
    units: Iterable[tuple[str, int]],
    *,
    policy_digest: str,
    environments: int = ENVIRONMENTS,
    console: ConsoleName = "native",
    threads: int = 0,
    on_step: Callable[[Observations, BatchStep], None] | None = None,
) -> Iterator[EpisodeRecord]:
    """Play units and yield the record of each as soon as it has ended.

    Args:
        policy: the policy.
        units: (level, seed) each; read one by one, so closing this generator ends an endless
            stream.
        policy_digest: identifies the policy in the records.
        environments: units played at once, ≥ 1; changes nothing but speed.
        console: which emulator; changes nothing but speed.
        threads: threads of the console; 0 = all cores.
        on_step: called after every step with the observations it acted on, (N, …), and
            the step; for latency measurements and recordings.

    Yields:
        Records in the order in which episodes end.

    Raises:
        EvaluationError: `environments` is below 1, or a unit's level or seed is impossible.
    """
    if environments < 1:
        raise EvaluationError(
            f"got environments={environments}; expected at least 1; correct the setting"
        )
    queue = iter(units)
    first = [unit for _, unit in zip(range(environments), queue, strict=False)]
    if not first:
        return
    batch = _open_games(len(first), policy, console, threads)
    try:
        yield from _play(batch, policy, first, queue, policy_digest, console, on_step)
    finally:
        batch.close()


def _play(
    games: GameBatch,
    policy: Policy,
    first: Sequence[tuple[str, int]],
    queue: Iterator[tuple[str, int]],
    policy_digest: str,
    console: ConsoleName,
    on_step: Callable[[Observations, BatchStep], None] | None,
) -> Iterator[EpisodeRecord]:
    slots = len(first)
    observations = policy.observation.zeros(slots)
    playing: list[_Playing | None] = [_start(policy, unit) for unit in first]
    waiting: list[_Playing | None] = [None] * slots

    def queue_next(slot: int) -> None:
        unit = next(queue, None)
        waiting[slot] = None if unit is None else _start(policy, unit)
        games.queue(slot, None if unit is None else EpisodeSpec(*unit))

    for slot, unit in enumerate(first):
        games.begin(slot, EpisodeSpec(*unit), observations)
        queue_next(slot)
    while any(game is not None for game in playing):
        active = [slot for slot, game in enumerate(playing) if game is not None]
        generators = [game.generator for game in playing if game is not None]
        seen = observations if len(active) == slots else observations[active]
        chosen = policy.act(seen, generators).actions
        actions = np.zeros(slots, np.int64)
        actions[active] = chosen
        acted_on = observations.copy() if on_step is not None else observations
        step = games.step(actions, observations)
        if on_step is not None:
            on_step(acted_on, step)
        for slot in active:
            game = playing[slot]
            assert game is not None
            game.action_counts[int(actions[slot])] += 1
            game.game_reward += int(step.game_reward[slot])
            game.trajectory.update(int(actions[slot]).to_bytes(2, "little"))
            game.trajectory.update(step.after[slot].tobytes())
            end = EndReason(int(step.end[slot]))
            if end is EndReason.RUNNING:
                continue
            yield _record(game, step, slot, end, policy_digest, console)
            playing[slot] = waiting[slot]
            if playing[slot] is not None:
                queue_next(slot)


def _start(policy: Policy, unit: tuple[str, int]) -> _Playing:
    level, seed = unit
    find_level(level)
    if not 0 <= seed < 2**64:
        raise EvaluationError(f"got seed {seed}; expected 0 to 2**64 - 1; take seeds from seeds.py")
    bits = np.random.PCG64(derive_seed(seed, _ACTION_STREAM))
    return _Playing(level, seed, np.random.Generator(bits), [0] * len(policy.actions))


def _record(
    game: _Playing,
    step: BatchStep,
    slot: int,
    end: EndReason,
    policy_digest: str,
    console: ConsoleName,
) -> EpisodeRecord:
    after = step.after[slot]
    return EpisodeRecord(
        policy_digest=policy_digest,
        level=game.level,
        seed=game.seed,
        cleared=end is EndReason.FLAG,
        furthest_px=int(step.furthest_x_px[slot]),
        level_length_px=find_level(game.level).length_px,
        score_points=int(after["score"]),
        coins=int(after["coins"]),
        time_left=int(after["time_left"]),
        time_start=start_clock(game.level, console),
        status=int(after["status"]),
        steps=int(step.steps[slot]),
        # gym-super-mario-bros' own reward: shaped, and the same whatever a policy was trained on.
        shaped_return=float(game.game_reward),
        action_counts=tuple(game.action_counts),
        trajectory_hash=game.trajectory.hexdigest(),
        end_reason=_RECORDED_END[end],
    )


def record_frames(
    policy: Policy,
    unit: tuple[str, int],
    console: ConsoleName = "native",
) -> Iterator[UInt8Array]:
    """Play one unit again and yield its pictures, one a step, for a video.

    Yields:
        uint8 (240, 256, 3) each, copies; the first is the picture the policy first acts on.
    """
    batch = _open_games(1, policy, console, threads=1)
    try:
        observations = policy.observation.zeros(1)
        game = _start(policy, unit)
        batch.begin(0, EpisodeSpec(*unit), observations)
        yield batch.screen_rgb(0)
        end = int(EndReason.RUNNING)
        while end == EndReason.RUNNING:
            actions = policy.act(observations, [game.generator]).actions
            end = int(batch.step(actions, observations).end[0])
            yield batch.screen_rgb(0)
    finally:
        batch.close()
