"""The contract of a source of versions, and the source that reads a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mario.errors import ServingError
from mario.policy.artefact import MANIFEST_FILE, sha256_hex

Role = Literal["champion", "challenger"]


@dataclass(frozen=True)
class VersionRef:
    """Identifies one version.

    Attributes:
        model: registered model, such as ``mario-1-1``.
        version: the version's name in the registry.
        digest: SHA-256 of its ``policy.json``, the identity of the policy (docs/adr/0003).
    """

    model: str
    version: str
    digest: str


@dataclass(frozen=True)
class VersionCard:
    """What the page shows about a version besides its name.

    Attributes:
        promoted_at: when it became champion, ISO 8601 with time zone, or None.
        reason: why it was promoted, one line, or None.
        clear_rates: clear rate of each level with its interval; keys ``level``, ``episodes``,
            ``cleared``, ``rate``, ``low``, ``high``.
        details: further lines, label → text.
    """

    promoted_at: str | None = None
    reason: str | None = None
    clear_rates: tuple[dict[str, Any], ...] = ()
    details: dict[str, str] = field(default_factory=dict)


class PolicySource(Protocol):
    """Resolves champion and challenger, and fetches their artefacts.

    Called from one background thread; a call may take seconds.
    """

    def resolve(self, role: Role) -> VersionRef | None:
        """Return the current version of ``role``; None if there is none.

        Raises:
            MarioError: the source is unreachable, or its answer is not valid.
        """
        ...

    def fetch(self, ref: VersionRef) -> Path:
        """Fetch the artefact of a version and return its folder.

        Raises:
            MarioError: it does not exist, or the download is incomplete.
        """
        ...

    def card(self, ref: VersionRef) -> VersionCard:
        """Return what is known about a version."""
        ...


class FolderSource:
    """A source that reads a folder.

    The folder is a policy artefact itself, or holds links (or folders) named ``champion`` and,
    optionally, ``challenger``. Every poll follows the link, so replacing the link swaps the
    version; the name of its target is the version's name.
    """

    def __init__(self, folder: Path, model: str = "mario-folder") -> None:
        """Serve from ``folder`` under the name ``model``."""
        self._folder = folder
        self._model = model
        # The folder of each role at the last poll; two folders may have the same name.
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
            f"version {ref.version}: got one that {self._folder} does not link to; expected the "
            "target of champion or challenger; resolve the role again"
        )

    def card(self, ref: VersionRef) -> VersionCard:
        """See :class:`PolicySource`."""
        return VersionCard(details={"source": "folder"})

    def _path(self, role: Role) -> Path | None:
        if (self._folder / MANIFEST_FILE).is_file():
            return self._folder.resolve() if role == "champion" else None
        link = self._folder / role
        if role == "champion" and not link.exists() and not link.is_symlink():
            raise ServingError(
                f"{self._folder}: got neither {MANIFEST_FILE} nor an entry named champion; "
                "expected a policy artefact or a folder that links to one; correct the path"
            )
        return link.resolve() if link.exists() or link.is_symlink() else None
