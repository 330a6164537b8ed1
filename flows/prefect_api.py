"""The few calls of a Prefect server's API that are needed here, with errors that say what to do."""

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

Document = dict[str, Any]

#: The tag that `prefect.yaml` gives every deployment: other people's are left alone.
TAG = "mario"
#: Where the code of our flows lies: a deployment of another project may have the tag, too.
_OUR_CODE = "flows/"

_PAGE = 100
_REASON_LENGTH = 500
#: Of what was sent, these hold words of a schema, no values.
_NO_VALUES = frozenset({"description", "parameter_openapi_schema", "title", "type"})
_SHORTEST_VALUE = 4
#: How pydantic shows what it got, cut in the middle where it is long.
_SHOWN_VALUE = re.compile(r"input_value=.*?, input_type=\w+", re.DOTALL)


class Server:
    """A connection to a Prefect server."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def connect(cls) -> Iterator[Server]:
        """Open a connection to the server of PREFECT_API_URL.

        Raises:
            FlowError: none is named, or it does not answer.
        """
        if not os.environ.get("PREFECT_API_URL"):
            raise FlowError(
                "got no PREFECT_API_URL; expected the address of a Prefect server, such as "
                "http://127.0.0.1:4200/api; start one with `prefect server start`"
            )
        with get_client(sync_client=True) as client:
            yield cls(client)

    def call(self, method: Any, path: str, body: Any = None) -> Any:
        """Ask, and return the answer's JSON; None where there is no such thing.

        Raises:
            FlowError: the server refuses, or is away.
        """
        route: Any = path
        try:
            answer = self._client.request(method, route, json=body)
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND and method == "GET":
                return None
            raise FlowError(
                f"the Prefect server refused {method} {path} with {error.response.status_code}: "
                f"{refusal(error.response, body)}; expected it to take it; is it of this version?"
            ) from None
        except httpx.HTTPError as error:
            raise FlowError(
                f"the Prefect server at {os.environ.get('PREFECT_API_URL')} does not answer "
                f"({error}); expected it to be up; start it, or correct PREFECT_API_URL"
            ) from None
        return answer.json() if answer.content else None

    def all(self, path: str, body: Mapping[str, Any] | None = None) -> list[Document]:
        """Everything that a filter finds, page by page.

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
    """The project's deployments on a server, which others may use as well, by `flow/name`.

    Ours has the project's tag, and its flow is in the project's folder of flows.

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
    """Whether a deployment on the server is the project's."""
    return TAG in deployment["tags"] and (deployment.get("entrypoint") or "").startswith(_OUR_CODE)


def refusal(answer: httpx.Response, sent: Any = None) -> str:
    """Why a server refused: places and reasons, and nothing of what was sent.

    Prefect's answer repeats the request. That of a block holds a password, which is not to be in a
    terminal or in a log.

    Args:
        answer: what came back.
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
    return _concealed(text, sent)[:_REASON_LENGTH]


def _place(error: Any) -> str:
    if not isinstance(error, dict):
        return "no reason given"
    place = ".".join(str(part) for part in error.get("loc") or ())
    return f"{place}: {error.get('msg') or error.get('type')}"


def _concealed(text: str, sent: Any) -> str:
    """A reason without the values that it may quote: reasons are sentences that others write."""
    text = _SHOWN_VALUE.sub("input_value=…", text)
    for value in sorted(set(_values(sent)), key=len, reverse=True):
        for written in (value, repr(value)[1:-1], json.dumps(value)[1:-1]):
            text = text.replace(written, "…")
    return text


def _values(sent: Any, *, inside: bool = False) -> Iterator[str]:
    """Strings within the parts of a body; those beside them are names, which help to understand."""
    if isinstance(sent, str):
        if inside and len(sent) >= _SHORTEST_VALUE:
            yield sent
    elif isinstance(sent, Mapping):
        for name, value in sent.items():
            if name not in _NO_VALUES:
                yield from _values(value, inside=inside or not isinstance(value, str))
    elif isinstance(sent, list | tuple):
        for value in sent:
            yield from _values(value, inside=True)
