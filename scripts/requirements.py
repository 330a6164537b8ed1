"""Prints what pyproject.toml asks for: `requirements.py EXTRA,EXTRA`, the build tools included.

With these installed first, the package itself builds without an isolated environment, that is with
the pinned build tools, and a change of a C++ file costs one build and no resolution.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the requirement lines of the base, of some extras and of the build.

    Raises:
        SystemExit: an extra that pyproject.toml does not have.
    """
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    known = data["project"].get("optional-dependencies", {})
    unknown = sorted(set(extras) - set(known))
    if unknown:
        sys.exit(f"got extras {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    lines = [*data["build-system"]["requires"], *data["project"]["dependencies"]]
    for extra in extras:
        lines += known[extra]
    return lines


if __name__ == "__main__":
    wanted = [name for name in "".join(sys.argv[1:]).split(",") if name]
    print("\n".join(requirements(Path(__file__).parents[1] / "pyproject.toml", wanted)))
