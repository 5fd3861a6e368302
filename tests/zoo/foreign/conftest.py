"""Small files of every format, written from scratch."""

import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

TENSORS = {
    "layer.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "layer.bias": torch.tensor([1.5, -2.0, 0.25], dtype=torch.float16),
    "steps": torch.tensor(41),
    "mask": torch.tensor([True, False, True]),
}


def varint(value):
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(*fields):
    """Protobuf: pairs of field number and an int (varint) or bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def onnx_tensor(name, tensor, *more):
    kinds = {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.float64: 11, torch.bfloat16: 16}
    raw = () if more else ((9, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()),)
    return message(*((1, d) for d in tensor.shape), (2, kinds[tensor.dtype]), (8, name.encode()), *raw, *more)


def onnx_model(*tensors, nodes=()):
    graph = message(*((1, n) for n in nodes), (2, b"graph"), *((5, t) for t in tensors))
    return message((1, 8), (2, b"tests"), (7, graph))


def gguf(entries, keys=(), version=3, alignment=32):
    """`entries`: (name, shape, type, bytes); shapes as torch writes them."""

    def text(said):
        return struct.pack("<Q", len(said.encode())) + said.encode()

    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(keys))
    head += b"".join(text(name) + struct.pack("<I", kind) + value for name, kind, value in keys)
    body = b""
    for name, shape, kind, content in entries:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += content + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + body


def torch_zip(path, pickle, members=(), deflate=False, root="archive/"):
    """A zip as torch writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}data.pkl", pickle)
        for name, content in members:
            archive.writestr(name, content)
    return path


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return self.inner(x) * self.scale + torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(scope="session")
def tensors():
    return TENSORS


@pytest.fixture(scope="session")
def write():
    """The writers above, for tests that need an odd file."""
    from types import SimpleNamespace

    return SimpleNamespace(
        message=message, onnx_tensor=onnx_tensor, onnx_model=onnx_model, gguf=gguf, torch_zip=torch_zip,
        scripted=Scripted,
    )  # fmt: skip


@pytest.fixture
def small_files(tmp_path) -> dict[str, Path]:
    """One small file of each format."""
    files = {kind: tmp_path / f"small{suffix}" for kind, suffix in (
        ("safetensors", ".safetensors"), ("torch", ".pt"), ("deflated", ".zip.pt"), ("legacy", ".pth"),
        ("torchscript", ".jit"), ("onnx", ".onnx"), ("gguf", ".gguf"),
    )}  # fmt: skip
    save_file(TENSORS, files["safetensors"], metadata={"format": "pt"})
    checkpoint = {"state_dict": TENSORS, "optimizer": {"state": [torch.zeros(3, 4)]}, "epoch": 3}
    torch.save(checkpoint, files["torch"])
    torch.save(checkpoint, files["legacy"], _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(files["torch"]) as old, zipfile.ZipFile(files["deflated"], "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of its age and of the constant we want in the archive
        torch.jit.trace(Scripted(), torch.zeros(1, 4)).save(files["torchscript"])
    constant = message((2, b"made"), (5, message((1, b"value"), (5, onnx_tensor("", torch.ones(2))))))
    files["onnx"].write_bytes(onnx_model(*(onnx_tensor(k, v) for k, v in TENSORS.items()), nodes=[constant]))
    rng = np.random.default_rng(0)
    blocks = [
        (2, 18, 32), (3, 20, 32), (6, 22, 32), (7, 24, 32), (8, 34, 32), (10, 84, 256), (11, 110, 256), (12, 144, 256),
        (13, 176, 256), (14, 210, 256), (20, 18, 32), (23, 136, 256), (39, 17, 32),
    ]  # fmt: skip
    entries = [
        (f"q{kind}", (2, numbers), kind, rng.integers(0, 48, 2 * size, dtype=np.uint8).tobytes())
        for kind, size, numbers in blocks
    ]
    entries.append(("plain", (3, 4), 0, TENSORS["layer.weight"].numpy().tobytes()))
    keys = [
        ("general.architecture", 8, struct.pack("<Q", 4) + b"test"),
        ("list", 9, struct.pack("<IQ3B", 0, 3, 1, 2, 3)),
    ]
    files["gguf"].write_bytes(gguf(entries, keys))
    return files


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Hugging Face folder of two shards."""
    home = tmp_path / "org-model"
    home.mkdir()
    names = list(TENSORS)
    for n, part in enumerate((names[:2], names[2:]), 1):
        save_file({k: TENSORS[k] for k in part}, home / f"model-0000{n}-of-00002.safetensors")
    where = {k: f"model-0000{1 + (n >= 2)}-of-00002.safetensors" for n, k in enumerate(names)}
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total": 1}, "weight_map": where}))
    (home / "config.json").write_text('{"model_type": "tiny"}')
    return home
