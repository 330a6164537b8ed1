"""Define the automations: what Prefect's server does by itself after an event.

`mario flows setup` and `mario flows deploy` apply them (`flows/setup.py`).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any

from flows.decisions import MAX_ATTEMPTS
from flows.deployments import load_flow
from flows.parameters import TrainParameters, experiment_name, experiment_run_name
from flows.prefect_api import TAG, Document
from flows.stages import DRIFTED_EVENT, PROMOTED_EVENT
from flows.work_pools import HEARTBEAT_SECONDS
from mario.errors import FlowError

#: Prefix of the automations' names. A name identifies an automation on the server: one with this
#: prefix that is not defined here is removed, and a renamed one is created and enabled again.
PREFIX = "mario: "
#: The deployment that a promotion starts, and the automation that starts it.
NIGHTLY = "nightly/nightly"
SECOND_LOOK = "a promotion is looked at again"

#: A flow run without a heartbeat for so long has crashed; two heartbeats may get lost.
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
#: Time from a worker's claim to the flow's first line: Python's imports, and before them, for a
#: container, a node with room and the pull of an image of some GB.
BEGIN_SECONDS = 900.0
#: The shortest time that Prefect accepts.
SHORTEST_SECONDS = 10.0
#: Time over which attempts that crash before they begin are counted; they follow within minutes.
LOOP_SECONDS = 86_400.0

#: State messages that distinguish the retries of these automations from those of a person.
_RESUMED = "crashed; resumes from its checkpoint"
_RESTARTED = "crashed before it began; is retried"
#: Distinguishes a lost worker from a crash that a worker reports, such as a missing image.
_NEVER_BEGAN = "did not begin within"
#: The states of a flow run between a worker's claim and its beginning, in order.
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
        *_crash_detection(silence_seconds, begin_seconds),
        *_retries(),
        *_collapses(webhook_id, deployments),
        *(() if nightly is None else (_nightly_after_promotion(nightly),)),
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


def _crash_detection(silence_seconds: float, begin_seconds: float) -> list[Document]:
    """Mark flow runs as crashed that send no heartbeat or do not begin."""
    return [
        _document(
            "a silent run has crashed",
            f"A flow run without a heartbeat for {silence_seconds:.0f} s is marked Crashed: its "
            "worker or machine is lost.",
            _on_silence(("heartbeat",), silence_seconds),
            _set_state("CRASHED", "Crashed", f"no heartbeat for {silence_seconds:.0f} s"),
        ),
        _document(
            "a run that does not begin has crashed",
            f"A flow run that did not begin within {begin_seconds:.0f} s of a worker's claim is "
            "marked Crashed: only runs that have begun send heartbeats, and a claimed one keeps "
            "its place in the queue.",
            _on_silence(_CLAIMED, begin_seconds),
            _set_state(
                "CRASHED",
                "Crashed",
                f"{_NEVER_BEGAN} {begin_seconds:.0f} s of a worker's claim: the worker or its "
                "machine is lost, or its image takes longer to pull (MARIO_BEGIN_SECONDS)",
            ),
        ),
    ]


def _retries() -> list[Document]:
    """Schedule crashed flow runs again, a limited number of times."""
    begun = {"prefect.run-count": [str(count) for count in range(1, MAX_ATTEMPTS)]}
    lost = {"prefect.run-count": "0", "prefect.state-message": f"{_NEVER_BEGAN}*"}
    again = {"prefect.state-message": [_RESUMED, _RESTARTED]}
    return [
        _document(
            "a crashed run goes on",
            f"A crashed flow run is scheduled again, up to {MAX_ATTEMPTS} attempts; it resumes "
            "from its checkpoint.",
            _on_state("Crashed", begun),
            _set_state("SCHEDULED", "AwaitingRetry", _RESUMED),
        ),
        # A crash that the worker reported of a run that never began (no such image, no such folder)
        # would recur: a person must act. A lost worker reports nothing.
        _document(
            "a run that was lost before it began is tried again",
            "A flow run whose worker was lost before its first attempt began is scheduled again.",
            _on_state("Crashed", lost),
            _set_state("SCHEDULED", "AwaitingRetry", _RESTARTED),
        ),
        # `run-count` rises only when an attempt begins, so the two rules above would retry a run
        # whose attempts crash earlier for ever.
        _document(
            "a run that crashes before it begins has failed",
            f"A flow run that was scheduled again {MAX_ATTEMPTS} times is marked Failed.",
            {**_on_state("AwaitingRetry", again), "threshold": MAX_ATTEMPTS,
             "within": LOOP_SECONDS},
            _set_state(
                "FAILED",
                "Failed",
                f"crashed {MAX_ATTEMPTS} times, at least once before it began; read the "
                "worker's log, and start a new run",
            ),
        ),
    ]  # fmt: skip


def _collapses(
    webhook_id: str | None, deployments: Mapping[str, Mapping[str, Any]]
) -> list[Document]:
    """Pause a collapsed run's deployment and all that train the experiment on schedule."""
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
                f"After a collapse of any run of {experiment}, the deployments that train it on "
                "schedule are paused until a person resumes them.",
                _on_state("Collapsed", {"prefect.resource.name": names}),
                *(
                    {"type": "pause-deployment", "source": "selected", "deployment_id": id_}
                    for id_ in ids
                ),
            )
        )
    return made


def _nightly_after_promotion(nightly: Mapping[str, Any]) -> Document:
    """Start the nightly deployment after a promotion, for the task of the new champion."""
    given = nightly["parameters"] or {}
    task = {"__prefect_kind": "jinja", "template": "{{ event.resource['mario.task'] }}"}
    return _document(
        SECOND_LOOK,
        "A new champion is re-evaluated on fresh seeds at once, before the next night.",
        _on_event(PROMOTED_EVENT),
        {
            "type": "run-deployment",
            "source": "selected",
            "deployment_id": nightly["id"],
            # Prefect replaces whole parameters, so the other fields are repeated.
            "parameters": {
                **given,
                "parameters": {**(given.get("parameters") or {}), "task": task},
            },
        },
    )


def _notifications(webhook_id: str) -> list[Document]:
    """Notify a person through the webhook."""
    reported = {"prefect.run-count": "0", "prefect.state-message": f"!{_NEVER_BEGAN}*"}
    return [
        _document(
            "a person is told of a failure",
            "Posts a message about each flow run that failed.",
            _on_state("Failed"),
            *_notify(webhook_id, "Failed", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of a crash for good",
            "Posts a message about each flow run that crashed in its last attempt.",
            _on_state("Crashed", {"prefect.run-count": str(MAX_ATTEMPTS)}),
            *_notify(webhook_id, "Crashed for good", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of a run that could not begin",
            "Posts a message about each flow run that never began and whose worker said why.",
            _on_state("Crashed", reported),
            *_notify(webhook_id, "Crashed for good", _STATE_MESSAGE),
        ),
        _document(
            "a person is told of drift",
            "Posts a message if the champion plays unlike its baseline.",
            _on_event(DRIFTED_EVENT),
            *_notify(webhook_id, "Drifted", "event.payload['reasons'] | join('; ')"),
        ),
        _document(
            "a person is told of a promotion",
            "Posts a message about each new champion.",
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


def _on_silence(after: Sequence[str], seconds: float) -> Document:
    """Trigger if no event of a flow run follows one of these events in time.

    Any event of the flow run counts, these included: each restarts the time
    (`prefect/server/events/triggers.py`, "special case of a proactive trigger"). All must be named
    in `after`, as one that is not named would end the wait.
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


def _set_state(state: str, name: str, message: str) -> Document:
    return {"type": "change-flow-run-state", "state": state, "name": name, "message": message}


def _notify(webhook_id: str | None, what: str, message: str) -> list[Document]:
    """Post `{"text": …}` to the webhook, which Slack and Mattermost understand."""
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
