"""Turns screens that clients send into frames of the observation, with training's own code."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, area_resize, frame_from_rgb, grey
from mario.policy.manifest import Uint8Array
from serving.api.request_parsing import Ask, check_count, decode_base64, parse_mode, parse_seed
from serving.http.errors import bad_request
from serving.http.json_body import parse_object

SCREEN_SHAPE = (240, 256, 3)
SCREEN_BYTES = 240 * 256 * 3
FRAME_BYTES = 84 * 84
#: The largest picture of an NES screen is far below this, even without compression.
MAX_PNG_BYTES = 512 << 10
PNG_BASE64_LENGTH = (MAX_PNG_BYTES + 2) // 3 * 4
STACK = OBSERVATION_SHAPE[0]
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_KINDS = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"tIME")
)
#: Pixels come in chunks of 8 KiB (libpng) or 64 KiB (Pillow); a screen has at most 181 KiB.
_PLAIN_CHUNKS = 32


def frame_from_png(data: bytes, where: str) -> Uint8Array:
    """Decode one screen.

    Args:
        data: a PNG of 256 × 240 pixels: colours, a palette, or grey, eight bits, no transparency.
        where: what a message calls it.

    Returns:
        uint8 (84, 84).

    Raises:
        Refusal: 400, it is anything else.
    """
    if len(data) > MAX_PNG_BYTES:
        raise bad_request(
            "size", f"{where}: got {len(data)} bytes; expected at most {MAX_PNG_BYTES}"
        )
    try:
        # The header is read first: nothing is decompressed before the size is known to be right.
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
    except Exception:  # Pillow raises a dozen unrelated types for a picture that is broken
        raise bad_request("png", f"{where}: got bytes that are not a whole PNG picture") from None
    if not right:
        raise bad_request(
            "picture",
            f"{where}: got a picture of {width} × {height} pixels, mode {image.mode}; expected "
            "one of 256 × 240, RGB, palette or grey, without transparency",
        )
    if image.mode == "P":
        # The grey of each colour once, instead of each pixel's: the same integers, sooner.
        palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indices = np.asarray(image)
        if int(indices.max()) >= len(palette):
            raise bad_request("picture", f"{where}: got a pixel without a colour in the palette")
        return area_resize(np.take(grey(palette), indices))
    return frame_from_rgb(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def is_plain_png(data: bytes) -> bool:
    """Whether a PNG consists of few chunks and none but pixels and their colours.

    Such a picture is decoded in well under a millisecond. What else a PNG may hold (texts and
    profiles that unpack to megabytes, chunks by the thousand) takes as long as its sender likes.
    """
    position = len(_PNG_SIGNATURE)
    for _ in range(_PLAIN_CHUNKS):
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            return True
        if kind not in _PLAIN_KINDS:
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def frame_from_bytes(data: bytes, where: str) -> Uint8Array:
    """Read one screen (240 × 256 × 3, red first) or one ready frame (84 × 84).

    Returns:
        uint8 (84, 84).

    Raises:
        Refusal: 400, the length is neither.
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


def parse_frames_json(body: bytes) -> Ask:
    """Parse ``{"frames": [PNG, PNG, PNG, PNG]}``, base64, oldest first.

    Raises:
        Refusal: 400.
    """
    document = parse_object(body, ("frames", "mode", "seed"))
    mode, seed = parse_mode(document.get("mode")), parse_seed(document.get("seed"))
    items = document.get("frames")
    if not isinstance(items, list) or len(items) != STACK:
        raise bad_request("frames", "frames: expected a list of four PNG pictures as base64")
    frames = []
    for i, item in enumerate(items):
        where = f"frames[{i}]"
        if not isinstance(item, str) or len(item) > PNG_BASE64_LENGTH:
            raise bad_request("frames", f"{where}: expected a PNG picture as base64")
        frames.append(frame_from_png(decode_base64(item, where), where))
    return Ask(np.stack(frames)[None], mode, seed)


def parse_frames_bytes(body: bytes, parameters: dict[str, str], seed: int | None) -> Ask:
    """Parse four screens as bytes, 4 × 240 × 256 × 3, oldest first.

    Raises:
        Refusal: 400.
    """
    if len(body) != STACK * SCREEN_BYTES:
        raise bad_request(
            "size",
            f"got {len(body)} bytes; expected {STACK * SCREEN_BYTES}, four screens of "
            "240 × 256 × 3 bytes",
        )
    check_count(1, 1)
    screens = np.frombuffer(body, dtype=np.uint8).reshape(STACK, *SCREEN_SHAPE)
    frames = np.stack([frame_from_rgb(screen) for screen in screens])
    return Ask(frames[None], parse_mode(parameters.get("mode")), seed)
