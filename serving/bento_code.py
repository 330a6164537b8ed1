"""Ensure that a Bento runs the code it was built from and no other package `mario`.

`bentoml serve mario:latest` first tries its argument as an import path. If a package `mario` can be
imported, from the current folder or an editable install, BentoML loads it before it finds the Bento
by its tag, and the Bento's `serving` would then use that `mario`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bentoml.exceptions import BentoMLException

#: The packages in a Bento; they must be imported from it.
_PACKAGES = ("mario", "serving")
_ROOT = Path(__file__).resolve().parents[1]


def unload_other_code() -> None:
    """Unload a package `mario` from elsewhere, so that the next import finds the one beside us.

    It is the bare package: BentoML looked for an attribute in it and found none.
    """
    other = sys.modules.get("mario")
    if other is None:
        return
    # A namespace package, without __init__.py, has no file.
    file = getattr(other, "__file__", None)
    if file is not None and Path(file).resolve().parents[1] == _ROOT:
        return
    for name in [n for n in sys.modules if n.partition(".")[0] == "mario"]:
        del sys.modules[name]


def require_own_code(folder: Path, tag: str) -> None:
    """Refuse to serve a Bento with code from elsewhere.

    Args:
        folder: the Bento's code.
        tag: the Bento's tag, for the message.

    Raises:
        BentoMLException: an imported module comes from elsewhere.
    """
    expected = folder.resolve()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _PACKAGES or getattr(module, "__file__", None) is None:
            continue
        got = Path(str(module.__file__)).resolve()
        if not got.is_relative_to(expected):
            raise BentoMLException(
                f"{tag}: got {name} from {got}; expected the Bento's own code in {expected}; an "
                "editable install of the project takes precedence: serve the Bento in an "
                "environment without one, or serve the working tree with `mario serve`"
            )
