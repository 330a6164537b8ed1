"""Screens from clients: which are decoded in the event loop, and that all formats agree."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.serving_sessions import png
from mario.game.smb.observations.pixels import frame_from_rgb
from serving.api import sessions as session_endpoints
from serving.api.sessions import SessionEndpoints
from serving.http.errors import HttpError
from serving.sessions.frames import MAX_PNG_BYTES, frame_from_bytes, frame_from_png, is_plain_png

SCREEN = np.random.default_rng(0).integers(0, 256, (240, 256, 3), dtype=np.uint8)


def _pillow(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_chunks(chunks: bytes) -> bytes:
    """A screen with extra chunks between the header (33 bytes) and the pixels."""
    whole = png(SCREEN)
    return whole[:33] + chunks + whole[33:]


def test_pictures_of_common_encoders_are_plain_and_give_the_same_frame() -> None:
    image = Image.fromarray(SCREEN)
    pictures = [png(SCREEN), _pillow(image), _pillow(image, compress_level=0)]
    pictures.append(cv2.imencode(".png", SCREEN[..., ::-1])[1].tobytes())
    for data in pictures:
        assert is_plain_png(data)
        np.testing.assert_array_equal(frame_from_png(data, "it"), frame_from_rgb(SCREEN))
    for mode in ("P", "L", "1"):
        other = image.convert(mode)
        data = _pillow(other)
        assert is_plain_png(data)
        expected = frame_from_rgb(np.asarray(other.convert("RGB")))
        np.testing.assert_array_equal(frame_from_png(data, "it"), expected)


def _text_that_unpacks() -> bytes:
    info = PngInfo()
    for number in range(50):
        info.add_text(f"t{number}", "a" * 1_000_000, zip=True)
    return _pillow(Image.fromarray(SCREEN), pnginfo=info)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png(SCREEN)[:-12],
        _with_chunks(_chunk(b"tIME", b"\x07\xea\x01\x01\0\0\0") * 40),
        _with_chunks(b"\xff\xff\xff\xff" + b"tIME"),
        _with_chunks(_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"a" * 1_000_000))),
        _text_that_unpacks(),
    ],
)
def test_pictures_that_may_decode_slowly_are_decoded_in_a_thread(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(data) < MAX_PNG_BYTES
    assert not is_plain_png(data)
    threads = []

    def decode(data: bytes, where: str) -> object:
        threads.append(threading.current_thread())
        return frame_from_png(data, where)

    monkeypatch.setattr(session_endpoints, "frame_from_png", decode)
    for body in (data, png(SCREEN)):
        with suppress(HttpError):
            asyncio.run(SessionEndpoints._frame(b"image/png", body))
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()


def test_bytes_are_a_screen_or_a_ready_frame() -> None:
    np.testing.assert_array_equal(frame_from_bytes(SCREEN.tobytes(), "it"), frame_from_rgb(SCREEN))
    ready = frame_from_rgb(SCREEN)
    np.testing.assert_array_equal(frame_from_bytes(ready.tobytes(), "it"), ready)
    with pytest.raises(HttpError, match="expected 184320"):
        frame_from_bytes(bytes(7055), "it")
