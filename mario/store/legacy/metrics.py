"""Convert metric rows of the older project to health samples, each row once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mario.config.run_states import HealthState
from mario.store.engine import encode_json
from mario.store.legacy.values import METRIC_NAMES, column_of, integer_of, moment_of, plain, take
from mario.store.records import HealthSampleEntry


@dataclass
class _Sample:
    index: int
    steps: int
    at: datetime
    signals: dict[str, Any]
    stored: bool
    changed: bool = False
    #: Labels of signals without a matching row of the source so far.
    open: set[str] = field(default_factory=set)


class MetricSamples:
    """Matches a run's metric rows with the stored samples, and collects the new ones.

    Rows with one metric each become one sample for each step, with a signal for each row. A second
    row with the same step and name becomes ``name#2``; a column without a known name becomes
    ``name.column``. A wide row with all metrics of a step becomes one sample.
    """

    def __init__(
        self, run_id: str, columns: Iterable[str], stored: Iterable[HealthSampleEntry]
    ) -> None:
        """Start with the stored samples.

        Args:
            run_id: the run.
            columns: the columns of the source's table.
            stored: the run's samples in the store.
        """
        self.run_id = run_id
        names = list(columns)
        self._used = {name: column_of(names, METRIC_NAMES, name) for name in METRIC_NAMES}
        self._samples = [
            _Sample(one.update_index, one.total_steps, one.at, encode_json(dict(one.signals)), True,
                    open=set(one.signals))
            for one in stored
        ]  # fmt: skip
        self._by_steps = {sample.steps: sample for sample in self._samples}
        self._next = max((sample.index for sample in self._samples), default=-1) + 1

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of the source."""
        recorded = take(row, METRIC_NAMES, "total_steps")
        steps = integer_of(recorded, 2**63) or 0
        at = moment_of(take(row, METRIC_NAMES, "at"))
        name = take(row, METRIC_NAMES, "name")
        if name is None:
            self._add_wide(row, steps, at)
            return
        sample = self._by_steps.get(steps)
        if sample is None:
            sample = self._by_steps[steps] = self._begin(steps, at)
        left_out = {"id", *(self._used[n] for n in ("experiment_id", "name", "value"))}
        if recorded is None or recorded == steps:
            left_out.add(self._used["total_steps"])
        if at is not None and at == sample.at:
            left_out.add(self._used["at"])
        signals = {"": take(row, METRIC_NAMES, "value")} | {
            f".{column}": value
            for column, value in row.items()
            if column not in left_out and value is not None
        }
        self._put(sample, str(name), encode_json(plain(signals)))

    def new(self) -> list[dict[str, Any]]:
        """Return the rows of new samples."""
        return [
            {
                "run_id": self.run_id,
                "update_index": sample.index,
                "attempt": 1,
                "total_steps": sample.steps,
                "state": HealthState.WARMING,  # no detector judged it
                "signals": encode_json(sample.signals),
                "at": sample.at,
            }
            for sample in self._samples
            if not sample.stored
        ]

    def amended(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield index and signals of stored samples with new signals."""
        for sample in self._samples:
            if sample.stored and sample.changed:
                yield sample.index, sample.signals

    def _begin(self, steps: int, at: datetime | None) -> _Sample:
        sample = _Sample(self._next, steps, at or datetime.fromtimestamp(0, UTC), {}, False)
        self._samples.append(sample)
        self._next += 1
        return sample

    def _put(self, sample: _Sample, name: str, signals: Mapping[str, Any]) -> None:
        """Match the row with the sample's signals, or add it under the first free label."""
        number = 1
        while True:
            label = name if number == 1 else f"{name}#{number}"
            labelled = {f"{label}{suffix}": value for suffix, value in signals.items()}
            if label in sample.open and all(
                sample.signals.get(key) == value for key, value in labelled.items()
            ):
                sample.open -= set(labelled)
                return
            if not any(key in sample.signals for key in labelled):
                sample.signals |= labelled
                sample.changed = True
                return
            number += 1

    def _add_wide(self, row: Mapping[str, Any], steps: int, at: datetime | None) -> None:
        left_out = {"id", self._used["experiment_id"]}
        if at is not None:
            left_out.add(self._used["at"])
        signals = encode_json(
            plain({name: value for name, value in row.items() if name not in left_out})
        )
        for sample in self._samples:
            if sample.steps == steps and sample.open and sample.signals == signals:
                sample.open.clear()
                return
        self._begin(steps, at).signals.update(signals)
