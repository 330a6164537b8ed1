"""Read videos back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


def moving_share(path: Path) -> float:
    """Compute the share of a video's pictures that differ from the one before, in [0, 1].

    Where views of the emulator's memory were kept and not copies, all frames are equal: 0.
    """
    import av

    before: npt.NDArray[np.int16] | None = None
    moved = total = 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="gray").astype(np.int16)
            if before is not None:
                # Compression noise changes grey levels a little, movement a lot.
                change = np.abs(picture - before).max()
                moved += int(change > 16)
                total += 1
            before = picture
    return moved / total if total else 0.0
