"""Read the deployments from `prefect.yaml`: which flow runs where, when and with what.

`prefect.yaml` has the form that `prefect deploy` reads. Added here is what only the code or the
checkout knows: version and tags from Git, the schema of the parameters, the working tree, and the
resources that a container's experiment needs.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema

from flows.decisions import job_variables, resources_for
from flows.prefect_api import TAG, Document
from flows.work_pools import IMAGE_HOME
from mario.config.experiment import load_config
from mario.errors import ConfigError, FlowError

_VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")
_SCHEDULE = frozenset({"active", "cron", "day_or", "slug", "timezone"})


def load_deployments(
    file: Path, *, root: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Document, ...]:
    """Read the deployments in the form of Prefect's API, with the flow's name as `flow_name`.

    Args:
        file: `prefect.yaml`.
        root: the working tree in which process workers run flows; None: MARIO_HOME, else the
            folder of `file`.
        environment: values of ``{{ $NAME }}``; None: this process's environment.

    Raises:
        FlowError: the file is missing or malformed.
        ConfigError: a deployment names an invalid experiment.
    """
    known = dict(os.environ if environment is None else environment)
    home = root or Path(known.get("MARIO_HOME") or file.resolve().parent)
    known.setdefault("MARIO_HOME", str(home))
    described = describe_checkout(home)
    # Images and builds set MARIO_GIT_COMMIT; in a checkout, Git is asked.
    if not known.get("MARIO_GIT_COMMIT"):
        known["MARIO_GIT_COMMIT"] = described["version"] if described else "unknown"
    content = _read(file)
    tags = [f"git:{described['branch']}"] if described and described.get("branch") else []
    return tuple(
        _document(_substituted(entry, known), _substituted(content["pull"], known), home, tags)
        for entry in content["deployments"]
    )


def deployment_names(file: Path) -> frozenset[str]:
    """List the deployments of `prefect.yaml` as `flow/name`.

    Raises:
        FlowError: the file is missing or malformed.
    """
    return frozenset(
        f"{load_flow(entry['entrypoint']).name}/{entry['name']}"
        for entry in _read(file)["deployments"]
    )


def _read(file: Path) -> Document:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {"pull": content.get("pull"), "deployments": content["deployments"]}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise FlowError(
            f"got {type(error).__name__} from {file}: {error}; expected Prefect's deployments; run "
            "it in the folder of prefect.yaml, or name the file (--file)"
        ) from None


def describe_checkout(folder: Path) -> dict[str, str] | None:
    """Ask Git for the checkout's version (tag, commits since, commit, dirty) and its branch.

    Returns:
        Both by these names; None outside a Git checkout.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "version": git("describe", "--always", "--tags", "--dirty"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def load_flow(entrypoint: str) -> Flow[Any, Any]:
    """Import the flow of an entry point, ``flows/file.py:name``.

    Raises:
        FlowError: there is none.
    """
    path, _, name = entrypoint.partition(":")
    try:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        found = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise FlowError(
            f"got entrypoint {entrypoint!r} ({error}); expected flows/FILE.py:FLOW; correct "
            "prefect.yaml"
        ) from None
    if not isinstance(found, Flow):
        raise FlowError(f"got entrypoint {entrypoint!r}, which is no flow; correct prefect.yaml")
    return found


def _document(entry: Document, pull: Any, home: Path, git_tags: list[str]) -> Document:
    flow = load_flow(entry["entrypoint"])
    parameters = entry.get("parameters") or {}
    try:
        flow.validate_parameters(dict(parameters))
    except Exception as error:  # Prefect raises its own kinds
        raise FlowError(
            f"deployment {entry['name']}: got parameters that the flow refuses ({error}); expected "
            f"those of {entry['entrypoint']}; correct prefect.yaml"
        ) from None
    work_pool = entry.get("work_pool") or {}
    kind = work_pool.get("name", "process")
    needs = job_variables(kind, resources_for(_experiment(parameters, home, work_pool)))
    return {
        "flow_name": flow.name,
        "name": entry["name"],
        "description": entry.get("description"),
        "version": entry.get("version"),
        # Automations apply only to flow runs with this tag.
        "tags": sorted({TAG, *entry.get("tags", ()), *git_tags}),
        "entrypoint": entry["entrypoint"],
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": bool(entry.get("enforce_parameter_schema", True)),
        "work_pool_name": kind,
        "work_queue_name": work_pool.get("work_queue_name", "default"),
        # The job variables of prefect.yaml win over those derived here.
        "job_variables": {
            **needs,
            **(_start_command(home) if kind == "process" else {}),
            **(work_pool.get("job_variables") or {}),
        },
        "pull_steps": _pull_steps(entry.get("pull", pull), kind),
        "schedules": _schedules(entry),
    }


def _start_command(home: Path) -> Document:
    """The job variable `command`: start flow runs with the working tree's own interpreter.

    Without it Prefect's worker starts a process that executes the pull steps and then replaces
    itself by the flow run's process; both import Prefect, which takes a second or more.

    Returns:
        Nothing, if this process's interpreter is not in the working tree.
    """
    if not Path(sys.executable).is_relative_to(home.resolve()):
        return {}
    return {"command": shlex.join([sys.executable, "-m", "prefect.engine"])}


def _experiment(parameters: Document, home: Path, work_pool: Document) -> Any:
    """The experiment that a deployment on a GPU queue trains; None for other deployments."""
    name = (parameters.get("parameters") or {}).get("config")
    if work_pool.get("work_queue_name") != "gpu" or name is None:
        return None
    path = Path(name) if Path(name).is_absolute() else home / name
    try:
        return load_config(path)
    except ConfigError:
        if not path.exists():
            return None  # the file exists in the image only
        raise


def _pull_steps(steps: Any, kind: str) -> Any:
    """Replace the working directory by the image's in the pull steps of containers."""
    if kind == "process" or not steps:
        return steps
    step = "prefect.deployments.steps.set_working_directory"
    return [{step: {"directory": IMAGE_HOME}} if step in each else each for each in steps]


def _schedules(entry: Document) -> list[Document]:
    """The schedules of a deployment, each of which must have a slug.

    The server identifies a schedule by its slug. A slug derived from the cron or from the place in
    the list would change with it, and a schedule that a person had switched off would come back as
    a new one.
    """
    made: list[Document] = []
    for given in entry.get("schedules") or ():
        if (
            not isinstance(given, dict)
            or not {"slug", "cron"} <= given.keys() <= _SCHEDULE
            or not isinstance(given.get("active", True), bool)
        ):
            raise FlowError(
                f"deployment {entry['name']}: got schedule {given}; expected slug, cron and, as "
                "needed, timezone, day_or and active (true or false); correct prefect.yaml"
            )
        if given["slug"] in [each["slug"] for each in made]:
            raise FlowError(
                f"deployment {entry['name']}: got two schedules with the slug {given['slug']!r}; "
                "expected one; correct prefect.yaml"
            )
        made.append(
            {
                "slug": given["slug"],
                "active": given.get("active", True),
                "schedule": {
                    "cron": given["cron"],
                    "timezone": given.get("timezone", "UTC"),
                    "day_or": bool(given.get("day_or", True)),
                },
            }
        )
    return made


def _substituted(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: known.get(found[1], ""), value)
    if isinstance(value, list):
        return [_substituted(each, known) for each in value]
    if isinstance(value, dict):
        return {name: _substituted(each, known) for name, each in value.items()}
    return value
