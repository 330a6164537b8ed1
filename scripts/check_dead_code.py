"""Check for dead code: functions, classes and settings that nothing but tests uses.

`python scripts/check_dead_code.py` prints what it finds and exits 1, or exits 0. Vulture looks
through the packages alone, without tests and benchmarks. Fields of records and columns of tables
are written and read by name, which it cannot see, so variables and attributes count only in
`mario/config`, where each is a setting that somebody must read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mario", "flows", "serving")
#: Decorators that hand a function to a framework.
DECORATORS = (
    "@*.command", "@*.callback", "@flow", "@task", "@*_validator", "@model_serializer",
    "@event.listens_for",
)  # fmt: skip
#: Names that are used where vulture does not look, by who uses them.
ALLOWED = {
    "Gymnasium and those who step an environment": {
        "MarioEnv", "MarioVectorEnv", "close_extras", "render",
    },
    "those who read the store from Python (docs/guides/store.md)": {
        "alpha_entries", "health_changes", "selections",
    },
    "the list of sinks, which reads each by its name": {"tensorboard"},
    "those who call the service from Python": {"end_session", "start_session"},
    "stable-baselines3": {
        "_on_rollout_end", "_on_rollout_start", "_on_step", "_on_training_end", "env_is_wrapped",
        "env_method", "evaluate_actions", "get_attr", "predict_values", "set_attr", "step_async",
        "step_wait",
    },
    "SQLAlchemy": {"load_dialect_impl", "process_result_value"},
    "http.server": {"do_GET", "log_message", "version_string"},
    "pydantic": {"model_config"},
    "rich": {"on_broken_pipe"},
}  # fmt: skip


def main() -> int:
    """Look through the packages; return the exit code."""
    names = [name for group in ALLOWED.values() for name in group]
    vulture = Vulture(ignore_names=names, ignore_decorators=list(DECORATORS))
    vulture.scavenge([str(ROOT / package) for package in PACKAGES], ["*/migrations/*"])
    found = False
    for item in vulture.get_unused_code(min_confidence=60):
        path = Path(item.filename).relative_to(ROOT)
        by_name = item.typ in ("variable", "attribute")
        if by_name and path.parts[:2] != ("mario", "config"):
            continue
        print(f"{path}:{item.first_lineno}: unused {item.typ} {item.name}; delete it")
        found = True
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
