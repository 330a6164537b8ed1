"""`python -m mario.alerting [--check]`: write all rendered files, or check them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mario.alerting.render import DASHBOARDS_FOLDER, RULES_FOLDER, rendered_files
from mario.errors import MarioError

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write all files below ``root``, or with ``--check`` name those that differ.

    Returns:
        0; 1 if ``--check`` found a file that differs; 2 if a declaration is not valid.
    """
    parser = argparse.ArgumentParser(prog="python -m mario.alerting", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if stale")
    check = parser.parse_args(arguments).check
    try:
        files = rendered_files()
    except MarioError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    stale = [name for name, text in files.items() if not _is_current(root / name, text)]
    leftover = [
        name
        for folder in (RULES_FOLDER, DASHBOARDS_FOLDER)
        for path in sorted((root / folder).iterdir())
        if (name := f"{folder}/{path.name}") not in files
    ]
    if check:
        for name in stale + leftover:
            sys.stdout.write(f"not current: {name}; run `make dashboards`\n")
        return 1 if stale or leftover else 0
    for name in stale:
        (root / name).write_text(files[name], encoding="utf-8")
        sys.stdout.write(f"wrote {name}\n")
    for name in leftover:
        (root / name).unlink()
        sys.stdout.write(f"removed {name}\n")
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
