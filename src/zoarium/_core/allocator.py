"""Memory a process frees: kept for its next tensors, or returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, and say whether its allocator understood.

    The GNU allocator returns large blocks to the system at once and gets them back page by page, zeroed. A training
    step of convolutions over activations of one to three megabytes made 1,200 to 3,600 page faults, 4 to 13 per cent of
    its processor time; kept, it makes next to none. It is a setting of the whole process, so it is made in workers of
    our own only.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        large = mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 32 << 20)  # older versions stop at 32 MiB
        return bool(large and mallopt(TRIM_THRESHOLD, (1 << 31) - 1))
    return False
