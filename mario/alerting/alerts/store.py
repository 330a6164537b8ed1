"""Alerts about the path of rows from training runs into the database."""

from __future__ import annotations

from mario.alerting.declarations import Alert, AlertGroup

STORE_ALERTS = AlertGroup(
    "store",
    "the path from training runs into the database",
    (
        Alert("MarioStoreUnavailable", "critical",
              "mario_store_available == 0",
              "Run {{ $labels.run }} cannot reach the database",
              "Nothing is lost yet; the trainer writes the rows to a journal on its disk.",
              pending="2m"),
        Alert("MarioStoreBehind", "warning",
              "mario_store_journal_rows > 0 and mario_store_available == 1",
              "The journal of run {{ $labels.run }} is not replayed",
              "{{ $value }} rows wait on disk although the database answers.", pending="30m"),
    ),
)  # fmt: skip
