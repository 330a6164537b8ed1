"""Turns request bodies into observations, refusing whatever is not exactly right.

Nothing is reshaped, cast, clipped or truncated here: a body is right or it is a 400 with a
sentence that says where it is wrong.
"""

from __future__ import annotations

import binascii
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np

from mario.policy.manifest import OBSERVATION_SHAPE, ActionSelection, Uint8Array
from serving.http.errors import Refusal, bad_request
from serving.http.json_body import kind, parse_object, show

OBSERVATION_BYTES = 4 * 84 * 84
_BASE64_LENGTH = OBSERVATION_BYTES // 3 * 4
MAX_SEED = 2**63 - 1
_LEVEL_NAMES = ("frames", "rows", "columns")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants.

    Attributes:
        observations: uint8 (N, 4, 84, 84), N ≥ 1.
        mode: greedy or sample, or None for the policy's own.
        seed: seed for sampling, or None for a random one.
    """

    observations: Uint8Array
    mode: ActionSelection | None
    seed: int | None


def parse_predict(body: bytes, max_observations: int, max_lists: int) -> Ask:
    """Parse the JSON of ``POST /predict``.

    Args:
        body: the JSON text.
        max_observations: largest number of observations.
        max_lists: largest number of those that are nested lists.

    Raises:
        Refusal: 400 with what is wrong, or 413 for too many observations.
    """
    max_lists = min(max_lists, max_observations)
    document = parse_object(
        body, ("observation", "observations", "mode", "seed"), max_lists=max_lists
    )
    mode, seed = parse_mode(document.get("mode")), parse_seed(document.get("seed"))
    if ("observation" in document) == ("observations" in document):
        raise bad_request(
            "observations", "expected either observation (one) or observations (a list of them)"
        )
    # Python's bytes() takes True for 1; the slow look for it is only made where it can be.
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
    return Ask(observations, mode, seed)


def parse_raw(body: bytes, query: bytes, max_observations: int) -> Ask:
    """Parse the bytes of ``POST /predict/raw``: N × 4 × 84 × 84, row by row, newest frame last.

    Raises:
        Refusal: 400 or 413.
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
    return Ask(
        observations, parse_mode(parameters.get("mode")), parse_seed_text(parameters.get("seed"))
    )


def check_count(count: int, max_observations: int) -> None:
    """Refuse no observations (400) and too many (413)."""
    if count == 0:
        raise bad_request("count", "got no observations; expected at least one")
    if count > max_observations:
        raise Refusal(
            413,
            "count",
            f"got {count} observations; expected at most {max_observations}; send several requests",
        )


def check_lists(count: int, max_lists: int) -> None:
    """Refuse too many observations as lists of numbers (413)."""
    if count > max_lists:
        raise Refusal(
            413,
            "count",
            f"got {count} observations as lists of numbers; expected at most {max_lists}; send "
            "base64, bytes to /predict/raw, or several requests",
        )


def parse_mode(value: object) -> ActionSelection | None:
    """Check a mode; None where it is absent.

    Raises:
        Refusal: 400.
    """
    if value is None:
        return None
    if value == "greedy":
        return "greedy"
    if value == "sample":
        return "sample"
    raise bad_request("mode", f"mode: got {show(value)}; expected greedy or sample")


def parse_seed(value: object) -> int | None:
    """Check a seed; None where it is absent.

    Raises:
        Refusal: 400.
    """
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise bad_request(
            "seed", f"seed: got {show(value)}; expected a whole number from 0 to {MAX_SEED}"
        )
    return value


def parse_seed_text(text: str | None) -> int | None:
    """Check a seed that came in a query string; None where it is absent.

    Raises:
        Refusal: 400.
    """
    if text is None:
        return None
    # int() would take spaces, underscores, signs and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise bad_request("seed", f"seed: got {text[:40]!r}; expected a whole number")
    return parse_seed(int(text))


def parse_query(query: bytes, allowed: Iterable[str]) -> dict[str, str]:
    """Parse a query string that has no other names than ``allowed``, each at most once.

    Raises:
        Refusal: 400.
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
        where: what a message calls it.
        length: number of bytes it must give, or None for any.

    Raises:
        Refusal: 400.
    """
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise bad_request("base64", f"{where}: this is not base64 ({error})") from None
    if length is not None and len(data) != length:
        raise bad_request("size", f"{where}: got {len(data)} bytes; expected {length}")
    return data


def _observation(value: object, where: str, suspicious: bool) -> Uint8Array:
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


def _wrong_number(flat: list[Any], where: str) -> Refusal:
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
