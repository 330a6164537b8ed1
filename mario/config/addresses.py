"""The addresses that jobs and serving share: runs folder, database and MLflow."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Addresses:
    """The addresses and the folder of this installation.

    Attributes:
        runs_dir: folder of checkpoints, artefacts, videos and reports.
        database_url: SQLAlchemy URL of the store.
        tracking_uri: MLflow tracking and registry URI.
    """

    runs_dir: Path
    database_url: str
    tracking_uri: str

    @classmethod
    def embedded(cls, runs_dir: Path | str = "runs") -> Self:
        """Keep everything in files under `runs_dir`, without a server."""
        folder = Path(runs_dir)
        return cls(
            runs_dir=folder,
            database_url=f"sqlite:///{folder / 'mario.db'}",
            tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        )

    @classmethod
    def from_environment(cls) -> Self:
        """Read MARIO_RUNS_DIR, MARIO_DATABASE_URL and MLFLOW_TRACKING_URI; default: embedded."""
        embedded = cls.embedded(os.environ.get("MARIO_RUNS_DIR") or "runs")
        return cls(
            runs_dir=embedded.runs_dir,
            database_url=os.environ.get("MARIO_DATABASE_URL") or embedded.database_url,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or embedded.tracking_uri,
        )

    @property
    def artifact_dir(self) -> Path:
        """Where embedded MLflow keeps artefacts."""
        return self.runs_dir / "artifacts"

    def absolute(self) -> Self:
        """Make every relative path absolute."""
        return replace(
            self,
            runs_dir=self.runs_dir.absolute(),
            database_url=absolute_url(self.database_url),
            tracking_uri=absolute_url(self.tracking_uri),
        )


def absolute_url(url: str) -> str:
    """Make the path of a relative SQLite URL absolute; return any other URL unchanged."""
    scheme, found, path = url.partition(":///")
    if not found or not scheme.startswith("sqlite") or not path or path.startswith(("/", ":")):
        return url
    return f"{scheme}:///{Path(path).absolute()}"
