import subprocess
import sys

PROGRAM = """
import resource
import torch
from zoarium._core.allocator import keep_freed_memory

print(keep_freed_memory() if {kept} else True)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(16 << 20)  # 64 MiB: 16,384 pages
    del tensor
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool) -> int:
    """Page faults of a third large tensor in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True, check=True)
    understood, count = done.stdout.split()
    assert understood == "True"
    return int(count)


def test_memory_that_is_kept_is_not_fetched_from_the_system_again():
    assert faults(kept=True) < 100 < faults(kept=False)
