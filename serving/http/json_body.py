"""Parses JSON bodies strictly, and in a time that is bounded whatever they hold.

The parser keeps the interpreter's lock from a body's first byte to its last: while it reads, no
other client is answered. 16 MiB of ``{},{},…`` take half a second of that, and three times as much
to look through. So what no right body needs is counted in its bytes and refused before they are
parsed; what is long all the same is parsed in one thread beside the event loop, one by one.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import orjson

from serving.http.errors import Refusal, bad_request

#: Bodies up to this size are parsed in the event loop: two observations as lists, 2 ms.
INLINE_BYTES = 256 << 10
#: Bodies up to this size are parsed without a look at what they hold: 0.2 ms at most.
_UNCOUNTED_BYTES = 4 << 10
#: Objects of the largest right body: an inference request that names all its outputs has 14.
_MAX_OBJECTS = 64
#: Lists and numbers of one observation as nested lists.
VALUES_PER_OBSERVATION = 1 + 4 + 4 * 84 + 4 * 84 * 84
#: Room for whatever else a body may hold: names, base64, parameters.
_OTHER_VALUES = 4096

P = ParamSpec("P")
T = TypeVar("T")
_thread = ThreadPoolExecutor(1, "parse")


async def parse_beside(size: int, parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``parse``: here for JSON of few bytes, else in the thread for long ones.

    Args:
        size: length of the JSON, bytes.
        parse: parses it, and raises a refusal where it is wrong.
        args: its arguments.
        kwargs: its named arguments.
    """
    if size <= INLINE_BYTES:
        return parse(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread, lambda: parse(*args, **kwargs))


def parse_object(body: bytes, allowed: Iterable[str], *, max_lists: int = 0) -> dict[str, Any]:
    """Parse a JSON object that has no other keys than ``allowed``, and no key twice.

    Args:
        body: the JSON text.
        allowed: the object's own keys.
        max_lists: observations that it may hold as nested lists.

    Raises:
        Refusal: 400; 413, it holds far more values than those observations have.
    """
    _refuse_many_values(body, max_lists)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request("json", f"the body is not JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(document, dict):
        raise bad_request("json", f"got a JSON {kind(document)}; expected an object")
    unknown = [key for key in document if key not in allowed]
    if unknown:
        raise bad_request(
            "unknown_key",
            f"got the unknown key {unknown[0][:60]!r}; expected {', '.join(sorted(allowed))}",
        )
    _refuse_repeated_keys(body, document)
    return cast(dict[str, Any], document)


def kind(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def show(value: object, length: int = 40) -> str:
    """A value for a message: a list or an object, which may be long and deep, only by its kind."""
    if isinstance(value, list | dict):
        return f"a JSON {kind(value)}"
    if isinstance(value, str):
        return repr(value[:length])
    return str(value)[:length]


def _refuse_many_values(body: bytes, max_lists: int) -> None:
    """Refuse a body whose commas and brackets are more than a right one has.

    Those in strings count, too, and mean nothing there; no string that is right has many.
    """
    if len(body) <= _UNCOUNTED_BYTES:
        return
    text = np.frombuffer(body, dtype=np.uint8)

    def count(character: str) -> int:
        return int(np.count_nonzero(text == ord(character)))

    objects = count("{")
    if objects > _MAX_OBJECTS:
        raise bad_request("json", f"got {objects} objects; expected at most {_MAX_OBJECTS}")
    values, most = count(",") + count("["), _OTHER_VALUES + max_lists * VALUES_PER_OBSERVATION
    if values > most:
        raise Refusal(
            413,
            "count",
            f"got about {values} numbers and lists; expected those of at most {max_lists} "
            "observations; send base64, bytes to /predict/raw, or several requests",
        )


def _refuse_repeated_keys(body: bytes, document: dict[str, Any]) -> None:
    """Refuse an object that says something twice: the parser keeps the last without a word.

    What was dropped had quotes. The slow parser, which sees all keys, is asked only where there
    are more of them than the document accounts for, and only about a short body.
    """
    # Runs of backslashes begin outside an escape, so pairs of them, then quotes with one, go.
    bare = body
    if b"\\" in body:
        bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') == 2 * _texts(document):
        return
    if len(body) > INLINE_BYTES:
        raise bad_request(
            "repeated_key", "got a key twice, or a string among numbers; expected neither"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise bad_request("repeated_key", f"got the key {twice[:60]!r} twice; expected it once")
        return found

    try:
        json.loads(body, object_pairs_hook=unique)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise bad_request("json", "the body is not JSON: not all parsers agree on it") from None


def _texts(document: dict[str, Any]) -> int:
    """Count keys and strings; in lists that begin with a number or a list none is looked for.

    Nesting may be as deep as the parser allows, 1,024 levels, deeper than functions may call
    each other.
    """
    total, waiting = 0, [cast(Any, document)]
    while waiting:
        value = waiting.pop()
        if type(value) is str:
            total += 1
        elif type(value) is dict:
            total += len(value)
            waiting.extend(value.values())
        elif type(value) is list and value and type(value[0]) in (str, dict):
            waiting.extend(value)
    return total


def _too_deep() -> Refusal:
    return bad_request("json", "the body is not JSON: it is nested too deeply")
