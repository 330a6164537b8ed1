"""The threads and the memory of torch on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from mario.config.experiment import ExperimentConfig


def set_threads(config: ExperimentConfig, threads: int = 0) -> int:
    """Set the number of torch's threads; results on a CPU can depend on it in the last bit.

    Args:
        config: the experiment; `network.threads` 0 = one for each core this process may use.
        threads: overrides the configuration unless 0 (a resumed run keeps its number).

    Returns:
        The number of threads.
    """
    count = threads or config.network.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    _keep_freed_memory()
    return count


def _keep_freed_memory() -> None:
    """Let glibc keep the tens of megabytes that each minibatch frees.

    By default it gives blocks above 32 MiB back to the kernel, which has to zero them page by page
    for the next minibatch: a quarter of the update's time (mallopt(3), M_MMAP_THRESHOLD = −3,
    M_TRIM_THRESHOLD = −1).
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library (musl): slower, not wrong
    libc.mallopt(-3, 1 << 30)
    libc.mallopt(-1, 1 << 30)
