"""Where versions come from: a folder, or the registry with its promotion ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mario.errors import ServingError
from mario.policy.artefact import MANIFEST_FILE, sha256_hex

Role = Literal["champion", "challenger"]


@dataclass(frozen=True)
class VersionRef:
    """Names one version.

    Attributes:
        model: registered model, such as ``mario-1-1``.
        version: the version's name in the registry.
        digest: SHA-256 of its ``policy.json``, which is the policy's identity (docs/adr/0003).
    """

    model: str
    version: str
    digest: str


@dataclass(frozen=True)
class Card:
    """What the page tells about a version besides its name.

    Attributes:
        promoted_at: when it became champion, ISO 8601 with zone, or None.
        reason: why it was promoted, one line.
        clear_rates: for each level the rate with its interval, as dicts with keys ``level``,
            ``episodes``, ``cleared``, ``rate``, ``low``, ``high``.
        details: anything else worth showing, label → text.
    """

    promoted_at: str | None = None
    reason: str | None = None
    clear_rates: tuple[dict[str, Any], ...] = ()
    details: dict[str, str] = field(default_factory=dict)


class PolicySource(Protocol):
    """Says which versions are champion and challenger, and brings them here.

    Called from one background thread; calls may take seconds.
    """

    def resolve(self, role: Role) -> VersionRef | None:
        """Say which version has ``role`` now; None where there is none.

        Raises:
            MarioError: the source cannot be asked, or what it names cannot be trusted.
        """
        ...

    def fetch(self, ref: VersionRef) -> Path:
        """Bring the version's artefact here and return its folder.

        Raises:
            MarioError: it is not there or does not arrive whole.
        """
        ...

    def card(self, ref: VersionRef) -> Card:
        """Tell what is known about the version."""
        ...


class FolderSource:
    """Serves from the file system.

    The folder is either a policy artefact itself, or holds links (or folders) named ``champion``
    and, optionally, ``challenger``. A link is followed at every look, so that renaming a new link
    over it swaps the version; its target's name is the version's name.
    """

    def __init__(self, folder: Path, model: str = "mario-folder") -> None:
        """Serve from ``folder`` under the name ``model``."""
        self._folder = folder
        self._model = model
        # Where each role led to last. A name would not do: x/policy and y/policy share theirs.
        self._seen: dict[Role, tuple[VersionRef, Path]] = {}

    def resolve(self, role: Role) -> VersionRef | None:
        """See :class:`PolicySource`."""
        folder = self._path(role)
        if folder is None:
            return None
        try:
            digest = sha256_hex((folder / MANIFEST_FILE).read_bytes())
        except OSError as error:
            raise ServingError(
                f"{folder / MANIFEST_FILE}: got no readable file ({error.strerror}); expected a "
                "policy artefact; correct the folder or the link"
            ) from error
        ref = VersionRef(self._model, folder.name, digest)
        self._seen[role] = ref, folder
        return ref

    def fetch(self, ref: VersionRef) -> Path:
        """See :class:`PolicySource`."""
        for seen, folder in list(self._seen.values()):
            if seen == ref:
                return folder
        raise ServingError(
            f"version {ref.version}: got one that {self._folder} did not lead to at the last look; "
            "expected what champion or challenger leads to; look again"
        )

    def card(self, ref: VersionRef) -> Card:
        """See :class:`PolicySource`."""
        return Card(details={"source": "folder"})

    def _path(self, role: Role) -> Path | None:
        if (self._folder / MANIFEST_FILE).is_file():
            return self._folder.resolve() if role == "champion" else None
        link = self._folder / role
        if role == "champion" and not link.exists() and not link.is_symlink():
            raise ServingError(
                f"{self._folder}: got neither {MANIFEST_FILE} nor an entry named champion; "
                "expected a policy artefact or a folder that leads to one; correct the path"
            )
        return link.resolve() if link.exists() or link.is_symlink() else None
