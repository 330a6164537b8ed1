"""The machine's PostgreSQL with extensions: Prefect needs pg_trgm, which the wheel lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import free_port


def programs() -> Path | None:
    """Find the folder of `initdb` and `pg_ctl`; None without PostgreSQL on the machine."""
    found = shutil.which("initdb") or shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def full_postgres() -> Iterator[str]:
    """Run a server in a temporary folder; yield `postgresql+asyncpg://…` of an empty database."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL with contrib on this machine: apt-get install postgresql")
    port = free_port()
    data = Path(tempfile.mkdtemp(prefix="mario-full-pg-"))
    # PostgreSQL refuses to run as root; its package creates a user.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(data, user)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(folder / program), *arguments], user=user, check=True, timeout=120,
            cwd=data, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    cluster = data / "cluster"
    run("initdb", "-A", "trust", "--no-sync", "-U", "postgres", "-D", str(cluster))
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        run("pg_ctl", "-D", str(cluster), "-w", "-l", str(data / "log"), "-o", options, "start")
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", str(cluster), "-w", "-m", "immediate", "stop")
        shutil.rmtree(data, ignore_errors=True)
