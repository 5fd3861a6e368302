"""What measures of weights hold at most, on files: three times the largest tensor and a constant."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

ROWS, COLUMNS = 16, 1_664_000
LARGEST = 4 * ROWS * COLUMNS  # 102 MiB as float32
CONSTANT = 72 << 20  # less than the largest tensor, so that a fourth copy would be seen

CODE = """
import json, sys
import torch
torch.set_num_threads(1)
import zoarium as za
from zoarium.measure.weight_norms import weight_report

def peak():  # of this program alone: the peak that getrusage tells begins with that of the process that started it
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def report(paths):
    table = weight_report(za.read_model(paths[0]))
    assert table["kept"].any(), table
    return len(table)

def similarity(paths):
    table = za.weight_similarity(paths)
    assert table["identical"].eq(1).all(), table
    return len(table)

job, small, copies, *kinds = sys.argv[1:]
run = {"report": report, "similarity": similarity}[job]
run([small, small])  # libraries are loaded, their pools filled
before, found = peak(), {}
for kind in kinds:
    rows = run([f"{copies}/{n}/{kind}" for n in range(4)])
    found[kind] = rows, peak() - before
print(json.dumps(found))
"""


def q8(tensor: torch.Tensor) -> bytes:
    """Blocks of Q8_0: a half for the scale, 32 signed bytes."""
    blocks = tensor.reshape(-1, 32).numpy()
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
    numbers = np.round(blocks / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], axis=1).tobytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory, write):
    """A large tensor and small ones, in four formats; and a small file."""
    home = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    tensors = {"big": torch.randn(ROWS, COLUMNS), "small": torch.randn(32, 32), "bias": torch.randn(9)}
    save_file({k: v for k, v in tensors.items() if k != "big"}, home / "small.safetensors")
    shards = home / "sharded"
    shards.mkdir()
    save_file({"big": tensors["big"]}, shards / "model-1.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "big"}, shards / "model-2.safetensors")
    index = {
        "weight_map": {"big": "model-1.safetensors", "small": "model-2.safetensors", "bias": "model-2.safetensors"}
    }
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"state_dict": tensors}, home / "m.pt")
    entries = [
        ("big", (ROWS, COLUMNS), 8, q8(tensors["big"])),
        ("small", (32, 32), 0, tensors["small"].numpy().tobytes()),
    ]
    (home / "m.gguf").write_bytes(write.gguf(entries))
    return home


KINDS = ["sharded", "m.pt", "m.gguf"]


@pytest.mark.parametrize("job", ["report", "similarity"])
def test_no_more_is_held_than_three_times_the_largest_tensor_and_a_constant(large, job):
    for n in range(4):  # four names of one file are four models
        folder = large / "copies" / str(n)
        if not folder.exists():
            folder.mkdir(parents=True)
            for name in KINDS:
                (folder / name).symlink_to(large / name)
    words = [sys.executable, "-c", CODE, job, str(large / "small.safetensors"), str(large / "copies"), *KINDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, (rows, taken) in json.loads(done.stdout).items():
        assert rows == (6 if job == "similarity" else 3 - (name == "m.gguf"))
        assert LARGEST < taken <= 3 * LARGEST + CONSTANT, (name, taken / LARGEST)
        print(f"{job} {name}: {taken / LARGEST:.2f} times the largest tensor")
