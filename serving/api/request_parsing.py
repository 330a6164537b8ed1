"""Parse request bodies into observations, strictly.

Nothing is reshaped, cast, clipped or truncated: a body that is not valid gets a 400 whose message
says where the error is.
"""

from __future__ import annotations

import binascii
import urllib.parse
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, cast

import numpy as np

from mario.config.evaluation import ACTION_SELECTIONS, ActionSelection
from mario.game.console.contract import UInt8Array
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, frame_from_rgb
from serving.http.errors import HttpError, bad_request
from serving.http.json_body import kind, parse_object, show
from serving.policies.prediction import PredictionInput
from serving.sessions.frames import (
    MAX_PNG_BYTES,
    SCREEN_BYTES,
    SCREEN_SHAPE,
    STACK,
    frame_from_png,
)

OBSERVATION_BYTES = 4 * 84 * 84
_BASE64_LENGTH = OBSERVATION_BYTES // 3 * 4
MAX_SEED = 2**63 - 1
_PNG_BASE64_LENGTH = (MAX_PNG_BYTES + 2) // 3 * 4
_LEVEL_NAMES = ("frames", "rows", "columns")


def parse_predict(body: bytes, max_observations: int, max_lists: int) -> PredictionInput:
    """Parse the JSON of ``POST /predict``.

    Args:
        body: the JSON text.
        max_observations: most observations.
        max_lists: most observations as nested lists.

    Raises:
        HttpError: 400, not valid; 413, too many observations.
    """
    max_lists = min(max_lists, max_observations)
    document = parse_object(
        body, ("observation", "observations", "mode", "seed"), max_lists=max_lists
    )
    mode, seed = parse_mode_and_seed(document)
    if ("observation" in document) == ("observations" in document):
        raise bad_request(
            "observations", "expected either observation (one) or observations (a list of them)"
        )
    # bytes() accepts True as 1; the slow check for booleans runs only if the body may hold one.
    suspicious = b"true" in body or b"false" in body
    if "observation" in document:
        observations = _observation(document["observation"], "observation", suspicious)[None]
    else:
        items = document["observations"]
        if not isinstance(items, list):
            raise bad_request(
                "observations",
                f"observations: got a JSON {kind(items)}; expected a list of observations",
            )
        check_count(len(items), max_observations)
        check_lists(sum(type(item) is list for item in items), max_lists)
        observations = np.stack(
            [_observation(item, f"observations[{i}]", suspicious) for i, item in enumerate(items)]
        )
    return PredictionInput(observations, mode, seed)


def parse_raw(body: bytes, query: bytes, max_observations: int) -> PredictionInput:
    """Parse the bytes of ``POST /predict/raw``: N × 4 × 84 × 84, row by row, newest frame last.

    Raises:
        HttpError: 400 or 413.
    """
    parameters = parse_query(query, ("mode", "seed"))
    count, rest = divmod(len(body), OBSERVATION_BYTES)
    if rest or count == 0:
        raise bad_request(
            "size",
            f"got {len(body)} bytes; expected a multiple of {OBSERVATION_BYTES} (4 × 84 × 84), "
            "at least one",
        )
    check_count(count, max_observations)
    observations = np.frombuffer(body, dtype=np.uint8).reshape(count, *OBSERVATION_SHAPE)
    return PredictionInput(observations, *_query_mode_and_seed(parameters))


def parse_frames_json(body: bytes) -> PredictionInput:
    """Parse ``{"frames": [PNG, PNG, PNG, PNG]}``, base64, oldest first.

    Raises:
        HttpError: 400.
    """
    document = parse_object(body, ("frames", "mode", "seed"))
    mode, seed = parse_mode_and_seed(document)
    items = document.get("frames")
    if not isinstance(items, list) or len(items) != STACK:
        raise bad_request("frames", "frames: expected a list of four PNG pictures as base64")
    frames = []
    for i, item in enumerate(items):
        where = f"frames[{i}]"
        if not isinstance(item, str) or len(item) > _PNG_BASE64_LENGTH:
            raise bad_request("frames", f"{where}: expected a PNG picture as base64")
        frames.append(frame_from_png(decode_base64(item, where), where))
    return PredictionInput(np.stack(frames)[None], mode, seed)


def parse_frames_bytes(body: bytes, query: bytes) -> PredictionInput:
    """Parse four screens as bytes, 4 × 240 × 256 × 3, oldest first.

    Raises:
        HttpError: 400.
    """
    parameters = parse_query(query, ("mode", "seed"))
    if len(body) != STACK * SCREEN_BYTES:
        raise bad_request(
            "size",
            f"got {len(body)} bytes; expected {STACK * SCREEN_BYTES}, four screens of "
            "240 × 256 × 3 bytes",
        )
    screens = np.frombuffer(body, dtype=np.uint8).reshape(STACK, *SCREEN_SHAPE)
    frames = np.stack([frame_from_rgb(screen) for screen in screens])
    return PredictionInput(frames[None], *_query_mode_and_seed(parameters))


def check_count(count: int, max_observations: int) -> None:
    """Refuse zero observations (400) and too many (413)."""
    if count == 0:
        raise bad_request("count", "got no observations; expected at least one")
    if count > max_observations:
        raise HttpError(
            413,
            "count",
            f"got {count} observations; expected at most {max_observations}; send several requests",
        )


def check_lists(count: int, max_lists: int) -> None:
    """Refuse too many observations as lists of numbers (413)."""
    if count > max_lists:
        raise HttpError(
            413,
            "count",
            f"got {count} observations as lists of numbers; expected at most {max_lists}; send "
            "base64, bytes to /predict/raw, or several requests",
        )


def parse_mode_and_seed(
    values: Mapping[str, object],
) -> tuple[ActionSelection | None, int | None]:
    """Check the options ``mode`` and ``seed``; each is None if absent.

    Raises:
        HttpError: 400.
    """
    mode, seed = values.get("mode"), values.get("seed")
    if mode is not None and mode not in ACTION_SELECTIONS:
        expected = " or ".join(ACTION_SELECTIONS)
        raise bad_request("mode", f"mode: got {show(mode)}; expected {expected}")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
        raise bad_request(
            "seed", f"seed: got {show(seed)}; expected a whole number from 0 to {MAX_SEED}"
        )
    return mode, seed


def parse_query(query: bytes, allowed: Iterable[str]) -> dict[str, str]:
    """Parse a query string with no names but ``allowed``, each at most once.

    Raises:
        HttpError: 400.
    """
    if not query:
        return {}
    try:
        pairs = urllib.parse.parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            max_num_fields=8,
            errors="strict",
        )
    except ValueError:
        raise bad_request("query", "the query string is not name=value pairs") from None
    result: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise bad_request(
                "query",
                f"got the unknown parameter {name[:60]!r}; expected {', '.join(allowed) or 'none'}",
            )
        if name in result:
            raise bad_request("query", f"got the parameter {name} twice; expected it once")
        result[name] = value
    return result


def decode_base64(text: str, where: str, length: int | None = None) -> bytes:
    """Decode standard base64 with padding, strictly.

    Args:
        text: the characters.
        where: name of the value in error messages.
        length: expected number of bytes; None allows any.

    Raises:
        HttpError: 400.
    """
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise bad_request("base64", f"{where}: this is not base64 ({error})") from None
    if length is not None and len(data) != length:
        raise bad_request("size", f"{where}: got {len(data)} bytes; expected {length}")
    return data


def _query_mode_and_seed(
    parameters: dict[str, str],
) -> tuple[ActionSelection | None, int | None]:
    """Parse the query parameters ``mode`` and ``seed``."""
    seed = parameters.get("seed")
    if seed is None:
        return parse_mode_and_seed(parameters)
    # int() would accept spaces, underscores, signs and the digits of other scripts.
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 19):
        raise bad_request("seed", f"seed: got {seed[:40]!r}; expected a whole number")
    return parse_mode_and_seed({**parameters, "seed": int(seed)})


def _observation(value: object, where: str, suspicious: bool) -> UInt8Array:
    if isinstance(value, str):
        if len(value) != _BASE64_LENGTH:
            raise bad_request(
                "size",
                f"{where}: got {len(value)} characters; expected {_BASE64_LENGTH}, the base64 of "
                f"{OBSERVATION_BYTES} bytes",
            )
        data = decode_base64(value, where, OBSERVATION_BYTES)
        return np.frombuffer(data, dtype=np.uint8).reshape(OBSERVATION_SHAPE)
    _check_nesting(value, where)
    rows = chain.from_iterable(cast(list[list[list[int]]], value))
    flat = list(chain.from_iterable(rows))
    if suspicious and any(type(item) is bool for item in flat):
        raise _wrong_number(flat, where)
    try:
        data = bytes(flat)
    except (TypeError, ValueError):
        raise _wrong_number(flat, where) from None
    return np.frombuffer(data, dtype=np.uint8).reshape(OBSERVATION_SHAPE)


def _check_nesting(value: object, where: str) -> None:
    """Check that lists are nested as 4 × 84 × 84."""
    current: list[object] = [value]
    for depth, length in enumerate(OBSERVATION_SHAPE):
        for item in current:
            if type(item) is not list:
                raise bad_request(
                    "shape",
                    f"{where}: got a JSON {kind(item)} at depth {depth}; expected lists nested "
                    "as 4 × 84 × 84, or base64",
                )
            if len(item) != length:
                raise bad_request(
                    "shape",
                    f"{where}: got {len(item)} {_LEVEL_NAMES[depth]}; expected {length} "
                    "(4 × 84 × 84)",
                )
        if depth < len(OBSERVATION_SHAPE) - 1:
            current = list(chain.from_iterable(cast(list[list[object]], current)))


def _wrong_number(flat: list[Any], where: str) -> HttpError:
    for position, item in enumerate(flat):
        if type(item) is not int or not 0 <= item <= 255:
            frame, rest = divmod(position, 84 * 84)
            row, column = divmod(rest, 84)
            return bad_request(
                "value",
                f"{where}[{frame}][{row}][{column}]: got {show(item)}; expected a whole "
                "number from 0 to 255",
            )
    return bad_request("value", f"{where}: expected whole numbers from 0 to 255")
