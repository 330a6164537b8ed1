"""Settings of a service that follows the registry of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mario.registry.registry import ModelRegistry
from serving.settings import ServingSettings


def following(registry: ModelRegistry, cache: Path, **changes: Any) -> ServingSettings:
    """A free port, the addresses of the registry, and five polls a second."""
    values: dict[str, Any] = {
        "port": 0,
        "database_url": registry.store.url,
        "tracking_uri": registry.mlflow.tracking_uri,
        "cache": cache,
        "poll_seconds": 0.2,
    }
    return ServingSettings(**(values | changes))
