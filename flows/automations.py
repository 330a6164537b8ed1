"""Automations as documents: what Prefect's server does by itself when something happens.

They are applied by `mario flows setup` and `mario flows deploy` (`flows/setup.py`).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any

from flows.decisions import MAX_ATTEMPTS
from flows.deployments import load_flow
from flows.parameters import TrainParameters, experiment_name, experiment_run_name
from flows.prefect_api import TAG
from flows.stages import DRIFTED_EVENT, PROMOTED_EVENT
from flows.work_pools import HEARTBEAT_SECONDS
from mario.errors import FlowError

Document = dict[str, Any]

#: What all of their names begin with: what begins so and is not here is taken off the server.
PREFIX = "mario: "
#: The deployment that a promotion starts, and the automation that starts it.
NIGHTLY = "nightly/nightly"
SECOND_LOOK = "a promotion is looked at again"

#: A flow run that gives no sign of life for so long is dead. Two may be lost on the way.
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
#: From a worker's claim to the flow's first line: Python's imports, and for a container before them
#: a node that has room and an image of some GB.
BEGIN_SECONDS = 900.0
#: Prefect waits for nothing shorter than this.
SHORTEST_SECONDS = 10.0
#: Attempts that die before they begin are counted over this time: they follow in minutes.
LOOP_SECONDS = 86_400.0

#: Tells what is scheduled again here from what a person starts again.
_GOES_ON = "crashed; goes on from its checkpoint"
_BEGINS_ANEW = "crashed before it began; is tried again"
#: Tells a worker that is gone from what a worker reports, such as an image that is not there.
_NEVER_BEGAN = "did not begin within"
#: The states of a flow run that a worker has claimed and that has not begun, one after the other.
_CLAIMED = ("Pending", "Submitting", "InfrastructurePending")
_FLOW_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_STATE_MESSAGE = "event.resource['prefect.state-message']"


def automations(
    deployments: Mapping[str, Mapping[str, Any]],
    *,
    webhook_id: str | None,
    silence_seconds: float = SILENCE_SECONDS,
    begin_seconds: float = BEGIN_SECONDS,
) -> tuple[Document, ...]:
    """List the automations for a server that has these deployments.

    Args:
        deployments: as on the server, by `flow/name`.
        webhook_id: the block that notifications go to; None: nobody is notified.
        silence_seconds: how long a flow run may send no heartbeat, ≥ 10.
        begin_seconds: how long a flow run may take to begin after a worker claims it, ≥ 10.
    """
    nightly = deployments.get(NIGHTLY)
    return (
        *_deaths(silence_seconds, begin_seconds),
        *_further_attempts(),
        *_collapses(webhook_id, deployments),
        *(() if nightly is None else (_second_look(nightly),)),
        *(() if webhook_id is None else _notifications(webhook_id)),
    )


def scheduled_trainings(deployments: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Find the ids of the deployments that train an experiment on schedule, by experiment.

    Args:
        deployments: as on the server, by `flow/name`.
    """
    found: dict[str, list[str]] = {}
    for _, deployment in sorted(deployments.items()):
        if deployment["schedules"] and _trains(deployment):
            parameters = (deployment["parameters"] or {}).get("parameters") or {}
            config = parameters.get("config", TrainParameters().config)
            found.setdefault(experiment_name(config), []).append(deployment["id"])
    return found


def _trains(deployment: Mapping[str, Any]) -> bool:
    """Whether a deployment's flow trains an experiment; see `experiment_run_name`."""
    try:
        return load_flow(deployment["entrypoint"]).flow_run_name is experiment_run_name
    except FlowError:  # a deployment of another version of the code
        return False


def _deaths(silence_seconds: float, begin_seconds: float) -> list[Document]:
    """A flow run of which nothing is heard any more has crashed."""
    return [
        _document(
            "a silent run has crashed",
            f"A flow run that gave no sign of life for {silence_seconds:.0f} s is marked Crashed: "
            "its worker or machine is gone.",
            _in_vain(("heartbeat",), silence_seconds),
            _change("CRASHED", "Crashed", f"no sign of life for {silence_seconds:.0f} s"),
        ),
        _document(
            "a run that does not begin has crashed",
            f"A flow run that did not begin within {begin_seconds:.0f} s of a worker's claim is "
            "marked Crashed: only runs that have begun give signs of life, and a claimed one "
            "keeps its place in the queue.",
            _in_vain(_CLAIMED, begin_seconds),
            _change(
                "CRASHED",
                "Crashed",
                f"{_NEVER_BEGAN} {begin_seconds:.0f} s of a worker's claim: the worker or its "
                "machine is gone, or its image takes longer to pull (MARIO_BEGIN_SECONDS)",
            ),
        ),
    ]


def _further_attempts() -> list[Document]:
    """A flow run that has crashed is tried again, and not for ever."""
    begun = {"prefect.run-count": [str(count) for count in range(1, MAX_ATTEMPTS)]}
    lost = {"prefect.run-count": "0", "prefect.state-message": f"{_NEVER_BEGAN}*"}
    again = {"prefect.state-message": [_GOES_ON, _BEGINS_ANEW]}
    return [
        _document(
            "a crashed run goes on",
            f"A crashed flow run is scheduled again, up to {MAX_ATTEMPTS} attempts; it resumes "
            "from its checkpoint.",
            _on_state("Crashed", begun),
            _change("SCHEDULED", "AwaitingRetry", _GOES_ON),
        ),
        # What a worker could report of a run that never began (no such image, no such folder)
        # would only come again: a person looks at that. Of a worker that is gone, the run knows
        # nothing.
        _document(
            "a run that was lost before it began is tried again",
            "A flow run whose worker went before its first attempt began is scheduled again.",
            _on_state("Crashed", lost),
            _change("SCHEDULED", "AwaitingRetry", _BEGINS_ANEW),
        ),
        # `run-count` rises only as an attempt begins, so that the rules above would have a run
        # whose attempts die earlier go on for ever. The first stops by itself after one time fewer.
        _document(
            "a run that crashes before it begins has failed",
            f"A flow run that was scheduled again {MAX_ATTEMPTS} times is marked Failed.",
            {**_on_state("AwaitingRetry", again), "threshold": MAX_ATTEMPTS,
             "within": LOOP_SECONDS},
            _change(
                "FAILED",
                "Failed",
                f"crashed {MAX_ATTEMPTS} times, at least once before it began; look at the "
                "worker's log, and ask for a new run",
            ),
        ),
    ]  # fmt: skip


def _collapses(
    webhook_id: str | None, deployments: Mapping[str, Mapping[str, Any]]
) -> list[Document]:
    """A collapse pauses its run's deployment and all that train the experiment on schedule."""
    made = [
        _document(
            "a collapse pauses its schedule",
            "The deployment whose run collapsed is paused until a person resumes it.",
            _on_state("Collapsed"),
            {"type": "pause-deployment", "source": "inferred"},
            *_notify(webhook_id, "Collapsed", _STATE_MESSAGE),
        )
    ]
    flows = sorted({name.partition("/")[0] for name, each in deployments.items() if _trains(each)})
    for experiment, ids in sorted(scheduled_trainings(deployments).items()):
        # As `experiment_run_name` names them.
        names = [f"{flow} {glob.escape(experiment)}" for flow in flows]
        made.append(
            _document(
                f"a collapse of {experiment} pauses its schedules",
                f"Wherever a run of {experiment} came from that collapsed, the deployments that "
                "train it on schedule are paused until a person resumes them.",
                _on_state("Collapsed", {"prefect.resource.name": names}),
                *(
                    {"type": "pause-deployment", "source": "selected", "deployment_id": id_}
                    for id_ in ids
                ),
            )
        )
    return made


def _second_look(nightly: Mapping[str, Any]) -> Document:
    """A promotion starts a deployment as it is, but for the task that has the new champion."""
    given = nightly["parameters"] or {}
    task = {"__prefect_kind": "jinja", "template": "{{ event.resource['mario.task'] }}"}
    return _document(
        SECOND_LOOK,
        "A new champion is re-evaluated on fresh seeds, without waiting for the night.",
        _on_event(PROMOTED_EVENT),
        {
            "type": "run-deployment",
            "source": "selected",
            "deployment_id": nightly["id"],
            # Prefect puts a whole parameter in the place of another, not a field of it.
            "parameters": {
                **given,
                "parameters": {**(given.get("parameters") or {}), "task": task},
            },
        },
    )


def _notifications(webhook_id: str) -> list[Document]:
    """What a person is told."""
    reported = {"prefect.run-count": "0", "prefect.state-message": f"!{_NEVER_BEGAN}*"}
    return [
        _document(
            "a person is told of a failure",
            "A flow run that failed is a message.",
            _on_state("Failed"),
            *_notify(webhook_id, "Failed", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of a crash for good",
            "A flow run that crashed in its last attempt is a message.",
            _on_state("Crashed", {"prefect.run-count": str(MAX_ATTEMPTS)}),
            *_notify(webhook_id, "Crashed for good", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of a run that could not begin",
            "A flow run that never began, and whose worker said why, is a message.",
            _on_state("Crashed", reported),
            *_notify(webhook_id, "Crashed for good", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of drift",
            "A champion that plays unlike when it was promoted is a message.",
            _on_event(DRIFTED_EVENT),
            *_notify(webhook_id, "Drifted", "event.payload['reasons'] | join('; ')"),
        ),
        _document(
            "a person is told of a promotion",
            "A new champion is a message.",
            _on_event(PROMOTED_EVENT),
            *_notify(webhook_id, "Promoted", "'version ' ~ event.resource['mario.version']"),
        ),
    ]


def _document(name: str, description: str, trigger: Document, *actions: Document) -> Document:
    return {
        "name": f"{PREFIX}{name}",
        "description": description,
        "enabled": True,
        "trigger": trigger,
        "actions": list(actions),
    }


def _in_vain(after: Sequence[str], seconds: float) -> Document:
    """After one of these, nothing is heard of the flow run for so long.

    Anything that it does or that is done to it counts as a sign, these events too: each of them
    begins the time anew (`prefect/server/events/triggers.py`, "special case of a proactive
    trigger"). Each has to be named, as one that is not would be the sign that is waited for.
    """
    return {
        "type": "event",
        "posture": "Proactive",
        "after": [f"prefect.flow-run.{name}" for name in after],
        "expect": ["prefect.flow-run.*"],
        "match": _FLOW_RUNS,
        "match_related": _OURS,
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": seconds,
    }


def _on_state(name: str, match: Mapping[str, Any] | None = None) -> Document:
    return {
        "type": "event",
        "posture": "Reactive",
        "expect": [f"prefect.flow-run.{name}"],
        "match": {**_FLOW_RUNS, **(match or {})},
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


def _change(state: str, name: str, message: str) -> Document:
    return {"type": "change-flow-run-state", "state": state, "name": name, "message": message}


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
