"""Makes sure that a Bento runs the code it was built from, and no other `mario` that lies about.

`bentoml serve mario:latest` first tries its argument as an import path. Where a package `mario`
can be imported, from the current folder or an editable install, that one is then loaded before
the Bento is found by its tag, and the Bento's own `serving` would go on with the other's `mario`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bentoml.exceptions import BentoMLException

#: What a Bento brings along and what must therefore come from it.
_PACKAGES = ("mario", "serving")
_ROOT = Path(__file__).resolve().parents[1]


def forget_other_code() -> None:
    """Let go of a package `mario` from elsewhere, so that the next import finds the one beside us.

    Only the bare package can be there: BentoML looked for an attribute in it and found none.
    """
    other = sys.modules.get("mario")
    if other is None:
        return
    # A folder without an __init__.py is a package, too, and has no file.
    file = getattr(other, "__file__", None)
    if file is not None and Path(file).resolve().parents[1] == _ROOT:
        return
    for name in [n for n in sys.modules if n.partition(".")[0] == "mario"]:
        del sys.modules[name]


def check_code(folder: Path, tag: str) -> None:
    """Refuse to serve a Bento with code that is not the Bento's.

    Args:
        folder: where the Bento's code is.
        tag: the Bento's name.

    Raises:
        BentoMLException: what is imported comes from elsewhere.
    """
    expected = folder.resolve()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _PACKAGES or getattr(module, "__file__", None) is None:
            continue
        got = Path(str(module.__file__)).resolve()
        if not got.is_relative_to(expected):
            raise BentoMLException(
                f"{tag}: got {name} from {got}; expected the Bento's own code in {expected}; an "
                "editable install of the project goes before it: serve the Bento in an "
                "environment without one, or serve the working tree with `mario serve`"
            )
