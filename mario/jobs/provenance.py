"""The provenance of a run: commit, uncommitted changes, library versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "mario-mlops", "torch", "stable-baselines3", "numpy", "gymnasium", "gym-super-mario-bros",
    "nes-py", "onnxruntime", "mlflow", "prefect", "bentoml", "sqlalchemy",
)  # fmt: skip
_MAX_DIFF_CHARACTERS = 200_000
UNKNOWN_COMMIT = "unknown"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def git_commit() -> str:
    """The commit of the code: from Git, else MARIO_GIT_COMMIT (set in images), else ``unknown``."""
    return _git("rev-parse", "HEAD") or os.environ.get("MARIO_GIT_COMMIT") or UNKNOWN_COMMIT


def git_diff() -> str | None:
    """Uncommitted changes of tracked files, cut at 200,000 characters; None without any."""
    diff = _git("diff", "HEAD")
    return diff[:_MAX_DIFF_CHARACTERS] if diff else None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes and accelerator of this machine."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name(0)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
