"""Test the limits that are read from the control groups of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.container_limits import this_machine
from flows.decisions import Machine

GIB = 2**30


def groups(folder: Path, membership: str, files: dict[str, str]) -> Machine:
    """Read the limits of a process in these groups, whose folders have these files."""
    (folder / "cgroup").write_text(membership)
    for name, content in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return this_machine(folder / "cgroup", folder / "mounted")


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    nothing = groups(tmp_path, "0::/user.slice/session-1.scope\n", {"cgroup.controllers": "memory"})
    assert (nothing.memory_gib, nothing.cpus) == (None, None)
    elsewhere = this_machine(tmp_path / "no-proc", tmp_path / "nothing-mounted")
    assert (elsewhere.memory_gib, elsewhere.cpus) == (None, None)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "max", "cpu.max": "max 100000"},
        {"memory/memory.limit_in_bytes": "9223372036854771712", "cpu/cpu.cfs_quota_us": "-1",
         "cpu/cpu.cfs_period_us": "100000"},
        {"memory.max": "", "cpu.max": "what?"},
    ],
)  # fmt: skip
def test_unlimited_and_unreadable_values_are_no_limits(
    tmp_path: Path, files: dict[str, str]
) -> None:
    found = groups(tmp_path, "4:memory:/\n3:cpu:/\n0::/\n", files)
    assert (found.memory_gib, found.cpus) == (None, None)


def test_version_2_reads_the_root_group_of_a_container(tmp_path: Path) -> None:
    found = groups(
        tmp_path, "0::/\n", {"memory.max": str(5 * GIB), "cpu.max": "150000 100000"}
    )  # fmt: skip
    assert (found.memory_gib, found.cpus) == (5.0, 1.5)


def test_the_smallest_limit_of_all_ancestors_wins(tmp_path: Path) -> None:
    found = groups(
        tmp_path,
        "0::/kubepods/pod-1/container\n",
        {
            "kubepods/memory.max": str(64 * GIB),
            "kubepods/pod-1/memory.max": str(8 * GIB),
            "kubepods/pod-1/container/memory.max": "max",
            "kubepods/pod-1/cpu.max": "400000 100000",
            "kubepods/pod-1/container/cpu.max": "200000 100000",
            "kubepods/pod-2/memory.max": str(GIB),
        },
    )
    assert (found.memory_gib, found.cpus) == (8.0, 2.0)


def test_version_1_ignores_a_host_path_that_does_not_exist(tmp_path: Path) -> None:
    found = groups(
        tmp_path,
        "9:name=systemd:/docker/0a1b\n4:memory:/docker/0a1b\n1:cpu,cpuacct:/docker/0a1b\n0::/\n",
        {
            "memory/memory.limit_in_bytes": str(3 * GIB),
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (found.memory_gib, found.cpus) == (3.0, 0.5)


def test_a_path_outside_the_root_group_is_not_followed(tmp_path: Path) -> None:
    found = groups(tmp_path, "0::/../../other\n", {"memory.max": str(2 * GIB)})
    assert found.memory_gib == 2.0
