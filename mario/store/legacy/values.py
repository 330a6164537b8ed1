"""Column names of the older project, and conversions of its values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from mario.config.run_states import RunStatus

#: Column names of each value; the first that exists is used.
EXPERIMENT_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "experiment_id", "run_id"),
    "name": ("name", "experiment_name", "run_name", "title"),
    "algorithm": ("algorithm", "algo", "agent", "model_type"),
    "config": ("config", "configuration", "config_json", "params"),
    "status": ("status", "state"),
    "started_at": ("created_at", "started_at", "start_time", "timestamp", "date"),
    "ended_at": ("completed_at", "ended_at", "finished_at", "end_time", "updated_at"),
    "git_commit": ("git_commit", "git_hash", "commit_hash"),
    "level": ("level", "stage_name"),
}
HYPERPARAMETER_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "name": ("name", "param_name", "parameter_name", "parameter", "key"),
    "value": ("value", "param_value", "parameter_value"),
}
EPISODE_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "number": ("episode_number", "episode_num", "episode", "episode_index", "episode_id"),
    "env_index": ("env_index", "env_id", "environment", "env"),
    "total_steps": ("total_steps", "total_timesteps", "global_step", "timestep", "step"),
    "length_steps": ("length", "episode_length", "steps", "num_steps", "length_steps", "duration"),
    "shaped_return": ("total_reward", "episode_reward", "reward", "shaped_return", "score_total"),
    "furthest_x_px": ("max_x_pos", "max_x", "furthest_x", "max_x_position", "x_pos", "distance"),
    "end_reason": ("end_reason", "termination_reason", "death_reason", "outcome"),
    "seed": ("seed",),
    "level": ("level",),
    "x_px": ("x_pos", "x_position", "final_x_pos", "final_x", "x"),
    "y_px": ("y_pos", "y_position", "y"),
    "score": ("score", "final_score"),
    "coins": ("coins", "coins_collected"),
    "time_left": ("time_left", "time", "time_remaining"),
    "life": ("life", "lives"),
    "status": ("status", "mario_status"),
    "world": ("world",),
    "stage": ("stage",),
    "area": ("area",),
    "flag": ("flag_get", "flag", "completed", "level_completed", "cleared", "level_complete"),
    "ended_at": ("created_at", "ended_at", "timestamp", "completed_at", "time_stamp"),
}
METRIC_NAMES: Mapping[str, tuple[str, ...]] = {
    "experiment_id": ("experiment_id", "run_id"),
    "total_steps": (
        "total_steps",
        "timestep",
        "timesteps",
        "total_timesteps",
        "global_step",
        "step",
    ),
    "at": ("created_at", "timestamp", "recorded_at", "time"),
    "name": ("metric_name", "name", "key"),
    "value": ("metric_value", "value"),
}
STATUSES = {
    **dict.fromkeys(("completed", "complete", "finished", "done", "success"), RunStatus.FINISHED),
    **dict.fromkeys(("failed", "error", "crashed"), RunStatus.FAILED),
    "collapsed": RunStatus.COLLAPSED,
    "killed": RunStatus.KILLED,
}
MARIO_STATUS = {"small": 0, "tall": 1, "big": 1, "fireball": 2, "fire": 2}


def column_of(
    columns: Sequence[str] | Any, names: Mapping[str, tuple[str, ...]], wanted: str
) -> str | None:
    """Return the first name of a value among the columns."""
    present = set(columns)
    return next((name for name in names[wanted] if name in present), None)


def take(row: Mapping[str, Any], names: Mapping[str, tuple[str, ...]], wanted: str) -> Any:
    """Return a row's value under the first of its names that the row has."""
    column = column_of(row.keys(), names, wanted)
    return None if column is None else row[column]


def as_mapping(value: Any) -> dict[str, Any]:
    """Convert a stored configuration of any type to a mapping."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {"text": value}
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value is None else {"value": value}


def plain(value: Any) -> Any:
    """Convert a value from a database to JSON types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def text_of(value: Any, length: int) -> str | None:
    """Convert to text, cut to a length in characters."""
    return None if value is None else str(value)[:length]


def number_of(value: Any) -> float:
    """Convert to a finite float; 0 if that is impossible."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def integer_of(value: Any, limit: int = 2**31) -> int | None:
    """Convert to an integer; None if that is impossible or outside ±limit."""
    try:
        number = value if isinstance(value, int) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -limit < number < limit else None


def moment_of(value: Any) -> datetime | None:
    """Convert a timestamp, a text or Unix seconds to a time; without a zone it is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, int | float | Decimal):
        try:
            return datetime.fromtimestamp(float(value), UTC)
        except (OverflowError, OSError, ValueError):
            return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return None


def flag_of(value: Any) -> bool | None:
    """Convert a boolean, a number or a text to a boolean; None if that is impossible."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("true", "t", "yes", "y", "on"):
            return True
        if word in ("false", "f", "no", "n", "off"):
            return False
        try:
            value = float(word)
        except ValueError:
            return None
    return bool(value) if isinstance(value, bool | int | float | Decimal) else None
