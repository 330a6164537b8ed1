"""Read the limits of this process's container, and whether it has a GPU.

Linux keeps the limits in the process's control group and its ancestors: `memory.max` and `cpu.max`
in version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html), `memory.limit_in_bytes` and
`cpu.cfs_quota_us` in version 1. A limit that does not exist or cannot be read counts as none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flows.decisions import Machine

#: Version 1 writes "no limit" as the greatest possible number of whole pages.
_NO_LIMIT_BYTES = 2**60


def this_machine(
    proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> Machine:
    """Read the limits of this process: the smallest of all its control groups.

    Args:
        proc: lists the process's control groups; see proc(5).
        groups: where control groups are mounted.
    """
    from mario.jobs.provenance import hardware

    memory = [
        limit
        for folder in _folders(proc, groups, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for limit in _numbers(folder / name)
        if limit < _NO_LIMIT_BYTES
    ]
    cpus = []
    for folder in _folders(proc, groups, "cpu"):
        quota = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"),
            *_numbers(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and min(quota) > 0:
            cpus.append(quota[0] / quota[1])
    return Machine(
        memory_gib=min(memory) / 2**30 if memory else None,
        cpus=min(cpus, default=None),
        cuda="accelerator" in hardware(),
    )


def _folders(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of a controller's group and of its ancestors, which need not exist.

    A container sees its own group as the root, though in version 1 `proc` may name its path on the
    host.
    """
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = groups / controller if controllers else groups
        yield top
        parts = Path(path.lstrip("/")).parts
        for length in range(1, len(parts) + 1 if ".." not in parts else 1):
            yield top.joinpath(*parts[:length])


def _numbers(file: Path) -> list[int]:
    """Read the numbers in a file; none if it does not exist or says ``max``."""
    try:
        return [int(word) for word in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []
