"""Load the policy that a name stands for: champion, challenger, a version, random, a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mario.config.evaluation import FRAME_SKIP
from mario.errors import RegistryError
from mario.game.smb.actions import Action, action_set
from mario.jobs.context import JobContext
from mario.jobs.versions import fetch_version
from mario.policy.artefact import Artefact, load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.policy.policy import Policy, RandomPolicy
from mario.tracking.mlflow_client import CHALLENGER, CHAMPION


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with its identity.

    Attributes:
        policy: the policy.
        digest: its identity in records: the artefact's digest, or ``random:<actions>``.
        label: its name in messages.
        version: its registry version; None if it has none.
        artefact: the artefact that it was loaded from; None for the random policy.
    """

    policy: Policy
    digest: str
    label: str
    version: int | None = None
    artefact: Artefact | None = None


def random_policy(actions: tuple[Action, ...], frame_skip: int) -> LoadedPolicy:
    """Make the random policy over some actions: the baseline that a first champion must beat."""
    buttons = "".join(f"{action.buttons:02x}" for action in actions)
    return LoadedPolicy(
        RandomPolicy(actions, frame_skip), f"random:{buttons}:{frame_skip}", "random policy"
    )


def policy_from_artefact(
    folder: Path | str,
    *,
    label: str | None = None,
    version: int | None = None,
    threads: int = 1,
    check_golden: bool = True,
) -> LoadedPolicy:
    """Load and verify an artefact folder.

    Args:
        folder: the artefact.
        label: its name in messages; None is the folder.
        version: its registry version.
        threads: threads of one inference.
        check_golden: also compare the network's answers with the recorded ones.

    Raises:
        ArtefactError: the artefact is missing or broken.
    """
    artefact = load_artefact(folder)
    policy = OnnxPolicy(artefact, threads=threads)
    if check_golden:
        policy.check_golden()
    return LoadedPolicy(policy, artefact.digest, label or str(folder), version, artefact)


def load_policy(
    reference: str, task: str, context: JobContext, *, threads: int = 1, check_golden: bool = True
) -> LoadedPolicy:
    """Load the policy that a name stands for.

    Args:
        reference: ``champion``, ``challenger``, a version number, ``random`` (uniform over the
            action set `simple`), or an artefact folder.
        task: the task whose registered model is meant.
        context: settings and registry.
        threads: threads of one inference.
        check_golden: refuse a network whose answers differ from the recorded ones.

    Raises:
        RegistryError: there is no such version, or the alias has no version.
        ArtefactError: the version's artefact is missing or broken.
    """
    if reference == "random":
        return random_policy(action_set("simple"), frame_skip=FRAME_SKIP)
    folder = Path(reference)
    if folder.is_dir() or "/" in reference:
        return policy_from_artefact(folder, threads=threads, check_golden=check_golden)
    if reference not in (CHAMPION, CHALLENGER) and not reference.isdigit():
        raise RegistryError(
            f"got policy {reference!r}; expected champion, challenger, a version number, random "
            "or an artefact folder; `mario registry list` shows the versions"
        )
    fetched = fetch_version(reference, task, context)
    return policy_from_artefact(
        fetched.folder,
        label=f"{fetched.model} v{fetched.version}",
        version=fetched.version,
        threads=threads,
        check_golden=check_golden,
    )
