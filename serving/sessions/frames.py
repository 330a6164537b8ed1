"""Convert screens from clients into frames of the observation, with the code that training uses."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mario.game.console.contract import UInt8Array
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, area_resize, frame_from_rgb, grey
from serving.http.errors import bad_request

SCREEN_SHAPE = (240, 256, 3)
SCREEN_BYTES = 240 * 256 * 3
FRAME_BYTES = 84 * 84
#: More than the largest PNG of an NES screen, even without compression.
MAX_PNG_BYTES = 512 << 10
STACK = OBSERVATION_SHAPE[0]
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_CHUNK_TYPES = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"tIME")
)
#: Encoders write chunks of 8 KiB (libpng) or 64 KiB (Pillow); a screen has at most 181 KiB.
_PLAIN_CHUNKS = 32


def frame_from_png(data: bytes, where: str) -> UInt8Array:
    """Decode one screen.

    Args:
        data: a PNG of 256 × 240 pixels: colours, a palette, or grey, eight bits, no transparency.
        where: name of the picture in error messages.

    Returns:
        uint8 (84, 84).

    Raises:
        HttpError: 400, not such a picture.
    """
    if len(data) > MAX_PNG_BYTES:
        raise bad_request(
            "size", f"{where}: got {len(data)} bytes; expected at most {MAX_PNG_BYTES}"
        )
    try:
        # Pillow reads only the header here: check the size before anything is decompressed.
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        width, height = image.size
        right = (
            (width, height) == (256, 240)
            and image.mode in ("RGB", "P", "L", "1")
            and "transparency" not in image.info
            and not getattr(image, "is_animated", False)
        )
        if right:
            image.load()
    except Exception:  # Pillow raises a dozen unrelated types for a broken picture
        raise bad_request(
            "png", f"{where}: got bytes that are not a complete PNG picture"
        ) from None
    if not right:
        raise bad_request(
            "picture",
            f"{where}: got a picture of {width} × {height} pixels, mode {image.mode}; expected "
            "one of 256 × 240, RGB, palette or grey, without transparency",
        )
    if image.mode == "P":
        # Convert the palette to grey instead of every pixel: the same result, faster.
        palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indices = np.asarray(image)
        if int(indices.max()) >= len(palette):
            raise bad_request("picture", f"{where}: got a pixel without a colour in the palette")
        return area_resize(np.take(grey(palette), indices))
    return frame_from_rgb(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def is_plain_png(data: bytes) -> bool:
    """Whether a PNG holds few chunks, and only those for pixels and colours.

    Such a picture decodes in well under a millisecond. Other contents (compressed texts and
    profiles of megabytes, thousands of chunks) may take arbitrarily long.
    """
    position = len(_PNG_SIGNATURE)
    for _ in range(_PLAIN_CHUNKS):
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            return True
        if kind not in _PLAIN_CHUNK_TYPES:
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def frame_from_bytes(data: bytes, where: str) -> UInt8Array:
    """Read one screen (240 × 256 × 3, red first) or one ready frame (84 × 84).

    Returns:
        uint8 (84, 84).

    Raises:
        HttpError: 400, the length is that of neither.
    """
    if len(data) == SCREEN_BYTES:
        return frame_from_rgb(np.frombuffer(data, dtype=np.uint8).reshape(SCREEN_SHAPE))
    if len(data) == FRAME_BYTES:
        return np.frombuffer(data, dtype=np.uint8).reshape(84, 84)
    raise bad_request(
        "size",
        f"{where}: got {len(data)} bytes; expected {SCREEN_BYTES} (a screen, 240 × 256 × 3) or "
        f"{FRAME_BYTES} (a ready frame, 84 × 84)",
    )
