"""Find and read the cartridge image of Super Mario Bros."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mario.errors import RomError


@cache
def rom_path() -> Path:
    """Find the cartridge image of Super Mario Bros that gym-super-mario-bros installs.

    Raises:
        RomError: the package or its file is not there.
    """
    from importlib.util import find_spec

    spec = find_spec("gym_super_mario_bros")
    if spec is None or spec.origin is None:
        raise RomError(
            "package gym-super-mario-bros not found: expected it installed, since its cartridge "
            "image is what the console plays; run `make setup`"
        )
    path = Path(spec.origin).parent / "_roms" / "super-mario-bros.nes"
    if not path.is_file():
        raise RomError(
            f"cartridge image {path} not found: expected the file of gym-super-mario-bros 7.4.0; "
            "reinstall that package"
        )
    return path


@cache
def rom_bytes() -> bytes:
    """Read the cartridge image of Super Mario Bros.

    Raises:
        RomError: gym-super-mario-bros or its file is not there.
    """
    return rom_path().read_bytes()
