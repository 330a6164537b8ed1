"""Write pictures as an MP4."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from mario.errors import ConsoleError
from mario.game.console.contract import FRAMES_PER_SECOND, UInt8Array

#: Pictures are enlarged by this factor without smoothing.
SCALE = 2


def write_mp4(path: Path, frames: Iterable[UInt8Array], frame_skip: int = 4) -> int:
    """Write pictures as an H.264 video that browsers can play; the file is complete or absent.

    Args:
        path: the file; its folder is created.
        frames: uint8 (240, 256, 3) each.
        frame_skip: console frames between two pictures, for playback at the console's speed.

    Returns:
        The number of pictures written.

    Raises:
        ConsoleError: no pictures, or PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConsoleError(
            "PyAV is not installed: expected it for videos; pip install 'mario-mlops[train]'"
        ) from None

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    rate = Fraction(FRAMES_PER_SECOND / frame_skip).limit_denominator(1000)
    count = 0
    try:
        with av.open(str(aside), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "23", "preset": "veryfast"}
            for picture in frames:
                large = np.repeat(np.repeat(picture, SCALE, axis=0), SCALE, axis=1)
                if not count:  # the codec takes its size from the first picture
                    stream.height, stream.width = large.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
                count += 1
            if count:
                container.mux(stream.encode())
        if not count:
            raise ConsoleError(f"{path}: got no pictures; expected at least one; play an episode")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count
