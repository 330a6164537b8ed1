"""Prints what pyproject.toml asks for: `requirements.py GROUP,GROUP`, to be given to pip.

A group is `base` (what every role needs), `build` (what builds the package and its native console)
or an extra. With the build tools installed first, the package builds without an isolated
environment, that is with pinned tools, and a change of a C++ file costs one build only.
"""

import sys
import tomllib
from pathlib import Path

#: Beside what pyproject.toml names for every builder; a machine that has them in Debian's version
#: builds the same.
BUILD_TOOLS = ["cmake>=3.18", "ninja>=1.10"]


def requirements(pyproject: Path, groups: list[str]) -> list[str]:
    """Return the requirement lines of some groups.

    Raises:
        SystemExit: a group that pyproject.toml does not have.
    """
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    known = {
        "base": data["project"]["dependencies"],
        "build": [*data["build-system"]["requires"], *BUILD_TOOLS],
        **data["project"].get("optional-dependencies", {}),
    }
    unknown = sorted(set(groups) - set(known))
    if unknown or not groups:
        sys.exit(f"got groups {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    return [line for group in groups for line in known[group]]


if __name__ == "__main__":
    wanted = [name for name in "".join(sys.argv[1:]).split(",") if name]
    print("\n".join(requirements(Path(__file__).parents[1] / "pyproject.toml", wanted)))
