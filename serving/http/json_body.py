"""Parse JSON bodies strictly, in bounded time whatever they hold.

The parser holds the interpreter lock from the first byte of a body to the last, so no other client
is answered meanwhile. 16 MiB of ``{},{},…`` take half a second, and three times as much to walk
through. So objects and values are counted in the raw bytes, and a body with more of them than any
valid body is refused before it is parsed. A long valid body is parsed in a thread beside the event
loop, one at a time.
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

from serving.http.errors import HttpError, bad_request

#: Bodies up to this size are parsed in the event loop: two observations as lists, 2 ms.
INLINE_BYTES = 256 << 10
#: Bodies up to this size are parsed without counting their values: 0.2 ms at most.
_UNCOUNTED_BYTES = 4 << 10
#: Most objects in a body; an inference request that names all its outputs has 14.
_MAX_OBJECTS = 64
#: Lists and numbers of one observation as nested lists.
VALUES_PER_OBSERVATION = 1 + 4 + 4 * 84 + 4 * 84 * 84
#: Allowance for all other values: names, base64, parameters.
_OTHER_VALUES = 4096

P = ParamSpec("P")
T = TypeVar("T")
_thread = ThreadPoolExecutor(1, "parse")


async def parse_off_loop(size: int, parse: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``parse`` here if the JSON is short, else in the parser thread.

    Args:
        size: length of the JSON, bytes.
        parse: the function; it raises HttpError for a body that is not valid.
        args: its arguments.
        kwargs: its named arguments.
    """
    if size <= INLINE_BYTES:
        return parse(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread, lambda: parse(*args, **kwargs))


def parse_object(body: bytes, allowed: Iterable[str], *, max_lists: int = 0) -> dict[str, Any]:
    """Parse a JSON object with no keys but ``allowed`` and no repeated key.

    Args:
        body: the JSON text.
        allowed: the object's own keys.
        max_lists: most observations as nested lists.

    Raises:
        HttpError: 400, not valid; 413, far more values than ``max_lists`` observations have.
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
    """Name the JSON type of a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def show(value: object, length: int = 40) -> str:
    """Show a value in a message; of a list or an object only the type, as it may be long."""
    if isinstance(value, list | dict):
        return f"a JSON {kind(value)}"
    if isinstance(value, str):
        return repr(value[:length])
    return str(value)[:length]


def _refuse_many_values(body: bytes, max_lists: int) -> None:
    """Refuse a body with more commas and brackets than a valid one has.

    Those inside strings count too; no valid string holds many.
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
        raise HttpError(
            413,
            "count",
            f"got about {values} numbers and lists; expected those of at most {max_lists} "
            "observations; send base64, bytes to /predict/raw, or several requests",
        )


def _refuse_repeated_keys(body: bytes, document: dict[str, Any]) -> None:
    """Refuse a repeated key, of which the fast parser silently keeps only the last.

    A dropped key leaves quotes in the body. The standard library's slow parser, which sees every
    key, runs only if the body has more quotes than the parsed document, and only if it is short.
    """
    # Remove escaped quotes: first pairs of backslashes, then each backslash with its quote.
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
    """Count keys and strings; skip lists that begin with a number or a list.

    Not recursive: the parser allows 1,024 levels, more than Python's recursion limit.
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


def _too_deep() -> HttpError:
    return bad_request("json", "the body is not JSON: it is nested too deeply")
