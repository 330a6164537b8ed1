"""Call a Prefect server's API, with errors that say what to do and repeat no secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError

from mario.errors import FlowError

#: A JSON object of Prefect's API.
Document = dict[str, Any]

#: The tag of all deployments of this project; those of others are left alone.
TAG = "mario"
#: The folder of the project's flows, as deployments of another project may have the tag, too.
_FLOWS_FOLDER = "flows/"

_PAGE = 100
_REASON_LENGTH = 500
#: Fields of a request that hold words of a schema, no values.
_SCHEMA_FIELDS = frozenset({"description", "parameter_openapi_schema", "title", "type"})
_SHORTEST_VALUE = 4
#: How pydantic quotes the value that it refused; a long value is cut in its middle.
_QUOTED_VALUE = re.compile(r"input_value=.*?, input_type=\w+", re.DOTALL)


class Server:
    """A connection to a Prefect server."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def connect(cls) -> Iterator[Server]:
        """Open a connection to the server of PREFECT_API_URL.

        Raises:
            FlowError: PREFECT_API_URL is not set, or the server does not answer.
        """
        if not os.environ.get("PREFECT_API_URL"):
            raise FlowError(
                "got no PREFECT_API_URL; expected the address of a Prefect server, such as "
                "http://127.0.0.1:4200/api; start one with `prefect server start`"
            )
        with get_client(sync_client=True) as client:
            yield cls(client)

    def call(self, method: Any, path: str, body: Any = None) -> Any:
        """Send a request and return the answer's JSON; None if a GET finds nothing.

        Raises:
            FlowError: the server refuses the request, or is unreachable.
        """
        route: Any = path
        try:
            answer = self._client.request(method, route, json=body)
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND and method == "GET":
                return None
            raise FlowError(
                f"the Prefect server refused {method} {path} with {error.response.status_code}: "
                f"{refusal(error.response, body)}; expected it to accept; check "
                "that it has the version of this client"
            ) from None
        except httpx.HTTPError as error:
            raise FlowError(
                f"the Prefect server at {os.environ.get('PREFECT_API_URL')} does not answer "
                f"({error}); expected it to be up; start it, or correct PREFECT_API_URL"
            ) from None
        return answer.json() if answer.content else None

    def all(self, path: str, body: Mapping[str, Any] | None = None) -> list[Document]:
        """Read all pages of what a filter finds.

        Raises:
            FlowError: see `call`.
        """
        found: list[Document] = []
        while page := self.call("POST", path, {**(body or {}), "limit": _PAGE,
                                               "offset": len(found)}):  # fmt: skip
            found += page
            if len(page) < _PAGE:
                break
        return found


def our_deployments(server: Server) -> dict[str, Document]:
    """Find this project's deployments on a server that others may use, too, by `flow/name`.

    Raises:
        FlowError: see `Server`.
    """
    found = [
        each
        for each in server.all("/deployments/filter", {"deployments": {"tags": {"all_": [TAG]}}})
        if is_ours(each)
    ]
    ids = sorted({each["flow_id"] for each in found})
    flows = server.all("/flows/filter", {"flows": {"id": {"any_": ids}}}) if ids else []
    names = {each["id"]: each["name"] for each in flows}
    return {f"{names[each['flow_id']]}/{each['name']}": each for each in found}


def is_ours(deployment: Mapping[str, Any]) -> bool:
    """Whether a deployment is this project's: by its tag and by the folder of its flow."""
    return TAG in deployment["tags"] and (deployment.get("entrypoint") or "").startswith(
        _FLOWS_FOLDER
    )


def refusal(answer: httpx.Response, sent: Any = None) -> str:
    """Say why a server refused a request, without the values that were sent.

    Prefect's answer repeats the request, and that of a block holds a password, which must not
    reach a terminal or a log.

    Args:
        answer: the server's answer.
        sent: the request's body.
    """
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return answer.reason_phrase or "no reason given"
    reason = said.get("exception_detail") or said.get("detail") or said.get("exception_message")
    if isinstance(reason, list):
        text = "; ".join(_place(each) for each in reason)
    else:
        text = str(reason or answer.reason_phrase)
    return _redacted(text, sent)[:_REASON_LENGTH]


def _place(error: Any) -> str:
    if not isinstance(error, dict):
        return "no reason given"
    place = ".".join(str(part) for part in error.get("loc") or ())
    return f"{place}: {error.get('msg') or error.get('type')}"


def _redacted(text: str, sent: Any) -> str:
    """Remove the sent values from a reason, which may quote them in any form."""
    text = _QUOTED_VALUE.sub("input_value=…", text)
    for value in sorted(set(_values(sent)), key=len, reverse=True):
        for written in (value, repr(value)[1:-1], json.dumps(value)[1:-1]):
            text = text.replace(written, "…")
    return text


def _values(sent: Any, *, inside: bool = False) -> Iterator[str]:
    """Yield the strings nested in a body; those at its top level are names, which may be shown."""
    if isinstance(sent, str):
        if inside and len(sent) >= _SHORTEST_VALUE:
            yield sent
    elif isinstance(sent, Mapping):
        for name, value in sent.items():
            if name not in _SCHEMA_FIELDS:
                yield from _values(value, inside=inside or not isinstance(value, str))
    elif isinstance(sent, list | tuple):
        for value in sent:
            yield from _values(value, inside=True)
