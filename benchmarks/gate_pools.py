"""The episodes that `gate_calibration.py` draws from: real ones by file, and simulated ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mario.errors import EvaluationError
from mario.evaluation.records import EpisodeRecord, metric_value

DATA = Path(__file__).resolve().parent / "data" / "gate"
#: Clear-rate gains of the real pairs: less is noise of the files, more is over in a few units.
LEAST_GAIN, GREATEST_GAIN = 0.05, 0.35

#: Score pools by name, each with where it is from.
Pools = dict[str, tuple[np.ndarray, str]]
#: Real records by the name of their file; all files hold the same units in the same order.
Real = dict[str, list[EpisodeRecord]]


def simulated_scores(
    generator: np.random.Generator, clear_rate: float, *, late: float = 1.0, clock: float = 0.72
) -> np.ndarray:
    """2,000 scores of a policy on 1-1 that clears at a rate and dies at the level's hard spots.

    Args:
        generator: source of the draws.
        clear_rate: in [0, 1].
        late: above 1, deaths move towards the later spots.
        clock: share of the clock left at a clear.
    """
    n = 2_000
    cleared = generator.random(n) < clear_rate
    weights = np.array([0.15, 0.2, 0.25, 0.15, 0.15, 0.1]) * late ** np.arange(6)
    spots = generator.choice([0.1, 0.22, 0.36, 0.45, 0.7, 0.85], n, p=weights / weights.sum())
    died = np.clip(0.5 * (spots + generator.normal(0, 0.02, n)), 0, 0.4999)
    won = np.clip(0.5 + 0.5 * generator.normal(clock, 0.04, n), 0.5, 1)
    return np.where(cleared, won, died)


def read_jsonl(path: Path) -> tuple[EpisodeRecord, ...]:
    """Read what `mario.evaluation.records.write_jsonl` wrote.

    Raises:
        EvaluationError: no such file, or a line that is not a record.
    """
    return tuple(_lines(path))


def _lines(path: Path) -> Iterator[EpisodeRecord]:
    if not path.is_file():
        raise EvaluationError(
            f"got {path}, which is not a file; expected episode records, one JSON object a line; "
            "write them with `mario evaluate`"
        )
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
            except json.JSONDecodeError as error:
                raise EvaluationError(
                    f"got {path}:{number}, which is not JSON ({error.msg}); expected one episode "
                    "record a line; the file was cut or edited: evaluate again"
                ) from error
            if not isinstance(data, dict):
                raise EvaluationError(
                    f"got {path}:{number} holding {type(data).__name__}; expected an object; "
                    "evaluate again"
                )
            yield EpisodeRecord.from_dict(data)


def load_pools(generator: np.random.Generator) -> tuple[Pools, Real]:
    """Score pools, real ones first, and the real records by name; all of the same units."""
    real = {path.stem: list(read_jsonl(path)) for path in sorted(DATA.glob("*.jsonl"))}
    for name, records in real.items():
        if [r.unit for r in records] != [r.unit for r in next(iter(real.values()))]:
            raise EvaluationError(
                f"got other units in {name}.jsonl than in the first file of {DATA}; expected the "
                "same in all, so that policies can be paired; write it again with gate_data.py"
            )
    pools: Pools = {
        name: (np.array([r.episode_score for r in records]), "real episodes")
        for name, records in real.items()
    }
    for rate in (0.1, 0.5, 0.85):
        pools[f"simulated {rate:g}"] = (simulated_scores(generator, rate), "simulated")
    return pools, real


def rate(records: list[EpisodeRecord]) -> float:
    return float(np.mean([r.cleared for r in records]))


def values_of(records: list[EpisodeRecord], metric: str) -> np.ndarray:
    """One value a unit, float (U,)."""
    return np.array([metric_value(record, metric) for record in records])


def better_scores(pool: np.ndarray, gain: float = 0.05) -> np.ndarray:
    """The pool, float (P,), better by a gain on average; no clear is won or lost."""
    # Each stays on its own side of .5.
    top = np.where(pool >= 0.5, 1.0, 0.4999)
    better = np.minimum(pool + gain, top)
    for _ in range(20):  # what the ceilings cut off goes to the others
        better = np.minimum(better + (pool.mean() + gain - better.mean()), top)
    return better


def improving_pairs(real: Real) -> list[tuple[str, str]]:
    """Pairs of real policies (worse, better) with a gain in the clear rate worth a test."""
    names = sorted(real, key=lambda name: (rate(real[name]), name))
    return [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if LEAST_GAIN <= rate(real[b]) - rate(real[a]) <= GREATEST_GAIN
        # Of those who never clear one is enough.
        and (rate(real[a]) > 0 or a == max(n for n in names if rate(real[n]) == 0))
    ]


def beside_clears(before: np.ndarray, after: np.ndarray) -> float:
    """Gain in the mean score had the clear rate stayed at the average of both.

    The rest of the gain is the change of the clear rate times what a clear is worth on average
    (Oaxaca-Blinder decomposition with pooled weights; the two parts add up to the gain).
    """
    rates = [float((side >= 0.5).mean()) for side in (before, after)]
    middle = sum(rates) / 2
    parts = 0.0
    for weight, kind in ((middle, lambda s: s[s >= 0.5]), (1 - middle, lambda s: s[s < 0.5])):
        old, new = kind(before), kind(after)
        if old.size and new.size:
            parts += weight * float(new.mean() - old.mean())
    return parts
