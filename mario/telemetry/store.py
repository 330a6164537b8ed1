"""The metrics of the writer between a training run and the database."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mario.telemetry.instruments import InstrumentSet


class StoreMetrics:
    """The metrics of one run's writer to the database.

    Args:
        instruments: the instruments to update.
        run: the run's id, the label `run` of every series.
    """

    def __init__(self, instruments: InstrumentSet, run: str) -> None:
        self._all = instruments
        self._run = run

    def available(self, yes: bool) -> None:
        """Show whether the database accepts writes."""
        self._all.set("mario_store_available", yes, run=self._run)

    def waiting(self, queue_rows: int, journal_rows: int) -> None:
        """Show the rows that wait in memory and in the journal on disk."""
        self._all.set("mario_store_queue_rows", queue_rows, run=self._run)
        self._all.set("mario_store_journal_rows", journal_rows, run=self._run)

    def written(self, rows: Mapping[str, int], seconds: float) -> None:
        """Count a batch that was written.

        Args:
            rows: number of rows by table.
            seconds: how long the batch took.
        """
        self._all.add("mario_store_batches_total", run=self._run, result="written")
        self._all.observe("mario_store_batch_seconds", seconds, run=self._run)
        for table, count in rows.items():
            self._all.add("mario_store_written_rows_total", count, run=self._run, table=table)
        self._all.set("mario_store_last_write_timestamp_seconds", time.time(), run=self._run)
        self.available(True)

    def failed(self) -> None:
        """Count a batch that could not be written."""
        self._all.add("mario_store_batches_total", run=self._run, result="failed")
        self.available(False)

    def replayed(self, rows: int) -> None:
        """Count rows that were written from the journal."""
        self._all.add("mario_store_journal_replayed_rows_total", rows, run=self._run)
