import subprocess
import sys

PROGRAM = """
import resource
import torch
from zoarium._core.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(keep_freed_memory() if {kept} else True)
for round in range(20):
    if round == 10:  # by then the process holds what it needs
        before = faults()
    tensor = torch.ones(16 << 20)  # 64 MiB: 16,384 pages
    del tensor
print((faults() - before) // 10)
"""


def faults(kept: bool) -> int:
    """Page faults of a large tensor in a process that made the like before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True, check=True)
    understood, count = done.stdout.split()
    assert understood == "True"
    return int(count)


def test_memory_that_is_kept_is_not_fetched_from_the_system_again():
    assert 10 * faults(kept=True) < faults(kept=False)
