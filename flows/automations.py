"""Automations as documents: what Prefect's server does by itself when something happens.

They are applied by `mario flows setup` and `mario flows deploy` (`flows/setup.py`).
"""

from __future__ import annotations

from typing import Any

from flows.decisions import MAX_ATTEMPTS
from flows.pools import HEARTBEAT_SECONDS
from flows.stages import DRIFTED_EVENT, PROMOTED_EVENT

Document = dict[str, Any]

#: A flow run that gives no sign of life for so long is dead. Two may be lost on the way.
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
#: The tag that `prefect.yaml` gives every deployment; automations leave other people's runs alone.
TAG = "mario"
#: Attempts that die before they begin are counted over this time: they follow in minutes.
LOOP_SECONDS = 86_400.0

#: Tells what is scheduled again here from what a person starts again.
_GOES_ON = "crashed; goes on from its checkpoint"
_FLOW_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}


def automations(
    *,
    webhook_id: str | None,
    nightly_id: str | None,
    silence_seconds: float = SILENCE_SECONDS,
) -> tuple[Document, ...]:
    """All automations that can be made with what is there.

    Args:
        webhook_id: the block that notifications go to; None: nobody is told.
        nightly_id: the deployment that re-evaluates the champion; None: not deployed yet.
        silence_seconds: how long a flow run may be silent, ≥ 10.
    """
    found = [
        _document(
            "mario: a silent run has crashed",
            f"A flow run that gave no sign of life for {silence_seconds:.0f} s is marked Crashed: "
            "its worker or machine is gone.",
            {
                "type": "event",
                "posture": "Proactive",
                "after": ["prefect.flow-run.heartbeat"],
                # Anything that the run does or that is done to it counts as a sign.
                "expect": ["prefect.flow-run.*"],
                "match": _FLOW_RUNS,
                "match_related": _OURS,
                "for_each": ["prefect.resource.id"],
                "threshold": 1,
                "within": silence_seconds,
            },
            [
                {
                    "type": "change-flow-run-state",
                    "state": "CRASHED",
                    "name": "Crashed",
                    "message": f"no sign of life for {silence_seconds:.0f} s",
                }
            ],
        ),
        _document(
            "mario: a crashed run goes on",
            f"A crashed flow run is scheduled again, up to {MAX_ATTEMPTS} attempts; it resumes "
            "from its checkpoint.",
            _on_state(
                "Crashed",
                # A run that never began has no checkpoint and no fault of its own: a person looks.
                **{"prefect.run-count": [str(count) for count in range(1, MAX_ATTEMPTS)]},
            ),
            [
                {
                    "type": "change-flow-run-state",
                    "state": "SCHEDULED",
                    "name": "AwaitingRetry",
                    "message": _GOES_ON,
                }
            ],
        ),
        _document(
            "mario: a run that crashes before it begins has failed",
            f"A flow run that was scheduled again {MAX_ATTEMPTS} times is marked Failed.",
            # `run-count` rises only as an attempt begins, so that the rule above would have a run
            # whose attempts die earlier go on for ever. It stops by itself after one time fewer.
            {
                **_on_state("AwaitingRetry", **{"prefect.state-message": _GOES_ON}),
                "threshold": MAX_ATTEMPTS,
                "within": LOOP_SECONDS,
            },
            [
                {
                    "type": "change-flow-run-state",
                    "state": "FAILED",
                    "name": "Failed",
                    "message": f"crashed {MAX_ATTEMPTS} times, at least once before it began; look "
                    "at the worker's log, and ask for a new run",
                }
            ],
        ),
        _document(
            "mario: a collapse pauses its schedule",
            "The deployment whose run collapsed is paused until a person resumes it.",
            _on_state("Collapsed"),
            [
                {"type": "pause-deployment", "source": "inferred"},
                *_notify(webhook_id, "Collapsed", _STATE_MESSAGE),
            ],
        ),
    ]
    if nightly_id is not None:
        found.append(
            _document(
                "mario: a promotion is looked at again",
                "A new champion is re-evaluated on fresh seeds, without waiting for the night.",
                _on_event(PROMOTED_EVENT),
                [
                    {
                        "type": "run-deployment",
                        "source": "selected",
                        "deployment_id": nightly_id,
                        "parameters": {
                            "parameters": {
                                "task": {
                                    "__prefect_kind": "jinja",
                                    "template": "{{ event.resource['mario.task'] }}",
                                }
                            }
                        },
                    }
                ],
            )
        )
    if webhook_id is not None:
        found += [
            _document(
                "mario: a person is told of a failure",
                "A flow run that failed is a message.",
                _on_state("Failed"),
                _notify(webhook_id, "Failed", _STATE_MESSAGE),
            ),
            _document(
                "mario: a person is told of a crash for good",
                "A flow run that crashed and is not tried again is a message.",
                _on_state("Crashed", **{"prefect.run-count": ["0", str(MAX_ATTEMPTS)]}),
                _notify(webhook_id, "Crashed for good", _STATE_MESSAGE),
            ),
            _document(
                "mario: a person is told of drift",
                "A champion that plays unlike when it was promoted is a message.",
                _on_event(DRIFTED_EVENT),
                _notify(webhook_id, "Drifted", "event.payload['reasons'] | join('; ')"),
            ),
            _document(
                "mario: a person is told of a promotion",
                "A new champion is a message.",
                _on_event(PROMOTED_EVENT),
                _notify(webhook_id, "Promoted", "'version ' ~ event.resource['mario.version']"),
            ),
        ]
    return tuple(found)


_STATE_MESSAGE = "event.resource['prefect.state-message']"


def _document(name: str, description: str, trigger: Document, actions: list[Document]) -> Document:
    return {
        "name": name,
        "description": description,
        "enabled": True,
        "trigger": trigger,
        "actions": actions,
    }


def _on_state(name: str, **match: Any) -> Document:
    return {
        "type": "event",
        "posture": "Reactive",
        "expect": [f"prefect.flow-run.{name}"],
        "match": {**_FLOW_RUNS, **match},
        "match_related": _OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": 0,
    }


def _on_event(name: str) -> Document:
    return {
        "type": "event",
        "posture": "Reactive",
        "expect": [name],
        "match": {"prefect.resource.id": "mario.model.*"},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": 0,
    }


def _notify(webhook_id: str | None, what: str, message: str) -> list[Document]:
    """Post `{"text": …}`, which Slack, Mattermost and the like understand."""
    if webhook_id is None:
        return []
    name = "event.resource['prefect.resource.name']"
    text = f"{{{{ ('{what}: ' ~ {name} ~ ': ' ~ ({message})) | tojson }}}}"
    return [
        {
            "type": "call-webhook",
            "block_document_id": webhook_id,
            "payload": f'{{"text": {text}}}',
        }
    ]
