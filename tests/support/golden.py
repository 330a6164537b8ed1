"""Files under `tests/data/golden` that commit 1ce122b wrote, and their unpacked copies."""

from __future__ import annotations

import hashlib
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mario.training.checkpoint import read_checkpoint
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "data" / "golden"


#: Where the folders stood when they were packed: MLflow keeps absolute paths.
_MADE_IN = "/tmp/golden"


def unpack(name: str, tmp_path: Path) -> Path:
    """Unpack `NAME.tar.xz` into `tmp_path/NAME`, and return that folder."""
    folder = tmp_path / name
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for database in folder.glob("*.db"):
        _relocate(database, f"{_MADE_IN}/{name}", str(folder))
    return folder


def table_rows(database: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of a SQLite file, as SQLite stores it."""
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row["name"] for row in connection.execute(_TABLES)]
        return {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY rowid")]
            for name in names
        }


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"


def _relocate(database: Path, old: str, new: str) -> None:
    """Replace a folder's path in every text column of a SQLite file."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for (table,) in connection.execute(_TABLES).fetchall():
            for column in connection.execute(f"PRAGMA table_info({table})").fetchall():
                connection.execute(
                    f'UPDATE {table} SET "{column[1]}" = replace("{column[1]}", ?, ?) '
                    f'WHERE typeof("{column[1]}") = \'text\' AND instr("{column[1]}", ?)',
                    (old, new, old),
                )


def run_id_in(runs_dir: Path) -> str:
    """The id of the one training run in a runs folder."""
    (found,) = (path.parent.name for path in runs_dir.glob("run-*/config.yaml"))
    return found


def processor() -> str:
    """What decides the last bits of a float32 result: torch's version, its kernels, the model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}"


def checkpoint_digest(checkpoint: Path) -> str:
    """SHA-256 over every tensor and array of a checkpoint: networks, optimizer, buffers, games."""
    content = read_checkpoint(checkpoint)
    digest = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                digest.update(str(key).encode())
                feed(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                feed(part)
        elif isinstance(value, torch.Tensor):
            digest.update(value.numpy().tobytes())
        elif hasattr(value, "tobytes"):
            digest.update(value.tobytes())
        else:
            digest.update(repr(value).encode())

    feed(content.tensors)
    feed(dict(sorted(content.arrays.items())))
    return digest.hexdigest()
