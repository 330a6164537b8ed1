"""Where a job finds its database, its tracking server and its folder: one place for all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """The addresses a job works with.

    Attributes:
        runs_dir: folder for checkpoints, artefacts, videos and reports.
        database_url: SQLAlchemy URL of the store.
        tracking_uri: MLflow tracking and registry URI.
    """

    runs_dir: Path
    database_url: str
    tracking_uri: str

    @classmethod
    def embedded(cls, runs_dir: Path | str = "runs") -> Runtime:
        """Everything in files under `runs_dir`, no server."""
        folder = Path(runs_dir)
        return cls(
            runs_dir=folder,
            database_url=f"sqlite:///{folder / 'mario.db'}",
            tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        )

    @classmethod
    def from_environment(cls) -> Runtime:
        """Read MARIO_RUNS_DIR, MARIO_DATABASE_URL and MLFLOW_TRACKING_URI; embedded otherwise."""
        runs_dir = os.environ.get("MARIO_RUNS_DIR") or "runs"
        embedded = cls.embedded(runs_dir)
        return cls(
            runs_dir=embedded.runs_dir,
            database_url=os.environ.get("MARIO_DATABASE_URL") or embedded.database_url,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or embedded.tracking_uri,
        )

    def run_dir(self, run_id: str) -> Path:
        """The folder of one training run."""
        return self.runs_dir / run_id

    @property
    def artifact_dir(self) -> Path:
        """Where embedded MLflow keeps artefacts."""
        return self.runs_dir / "artifacts"
