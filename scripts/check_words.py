"""Check the words of code and documentation: phrases that a newcomer stumbles over.

`python scripts/check_words.py` prints each place with what to write instead and exits 1, or
exits 0. The list is the project's own: a phrase enters it when a reader misunderstood it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("*.py", "*.md", "*.cpp", "*.hpp", "*.yaml", "*.yml", "*.toml", "*.sh", "*.html", "*.js")
#: The lists themselves quote what they forbid.
EXEMPT = ("scripts/check_words.py", "tests/unit/scripts/test_check_words.py")

#: Phrases by what to write instead.
PHRASES = {
    r"[Tt]ake it when": "use when",
    r"\bit went\b(?! on)": "it exited, it ended",
    r"\bhowever it (went|goes)\b": "whether it succeeds or fails",
    r"what it is paid from": "α budget",
    r"\bpays? no (α|alpha) again\b": "spends no further α",
    r"\b(is|are|was|were|be|been|being) away\b": "is unreachable",
    r"[Ff]or want of memory": "out of memory",
    r"\bWhether this process is still the one\b": "Detect that …",
    r"\bis gone, however\b": "exits when its parent dies",
}
#: Names that charm but do not tell, as words of identifiers and file names.
NAMES = {
    "Doorkeeper": "Authenticator",
    "storekeeping": "store_maintenance",
    "tenure": "newer_attempt",
    "attended": "child_process",
    "keeping.py": "checkpoint_retention.py",
    "single.py": "one file a flow, such as train.py",
    "fan_out.py": "distributed_evaluation.py",
}
FORBIDDEN = {
    **{re.compile(phrase): instead for phrase, instead in PHRASES.items()},
    **{
        re.compile(rf"(?<![A-Za-z]){re.escape(name)}(?![a-z])"): instead
        for name, instead in NAMES.items()
    },
}


def findings(name: str, text: str) -> Iterator[str]:
    """Yield one line for each forbidden phrase in a text.

    Args:
        name: what the text is called in the findings.
        text: code or prose; a phrase is found across a line break as well.
    """
    # A comment's or docstring's line break is a space to its reader.
    flat = re.sub(r"\n[ \t]*(#:?|//|>)?[ \t]*", lambda m: " " * len(m.group()), text)
    for pattern, instead in FORBIDDEN.items():
        for match in re.finditer(pattern.pattern.replace(" ", r"\s+"), flat):
            line = text.count("\n", 0, match.start()) + 1
            found = " ".join(match.group().split())
            yield f"{name}:{line}: {found!r}; write: {instead}"


def main() -> int:
    """Check every tracked file; return the exit code."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *FILES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    found = [
        line
        for name in listed
        if name and name not in EXEMPT and (ROOT / name).is_file()
        for line in findings(name, (ROOT / name).read_text(encoding="utf-8"))
    ]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
