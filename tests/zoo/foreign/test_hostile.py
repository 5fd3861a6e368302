"""Files made to harm: nothing runs, nothing large is taken, and each gives one sentence that names the file."""

import builtins
import io
import json
import os
import pickle
import posix
import resource
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from zoarium._core.errors import DamagedError, StoreError
from zoarium.zoo.foreign import read_model

LEGACY = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}]


def read_all(path):
    model = read_model(path)
    return dict(model), model


def refused(path, match, error=(DamagedError, StoreError)):
    with pytest.raises(error, match=match) as found:
        read_all(path)
    assert str(path.name) in str(found.value) and str(found.value).count("\n") == 0
    return found.value


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(canary):
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    yield "os.system", Calls(os.system, touch)
    yield "posix.system", Calls(posix.system, touch)
    yield "builtins.eval", Calls(builtins.eval, code)
    yield "builtins.exec", Calls(builtins.exec, code)
    yield "builtins.open", Calls(builtins.open, str(canary), "w")
    yield "subprocess.Popen", Calls(subprocess.Popen, ["touch", str(canary)])
    yield "subprocess.check_output", Calls(subprocess.check_output, ["touch", str(canary)])
    yield "os.mkdir", Calls(os.mkdir, str(canary))
    yield "builtins.getattr", Calls(Calls(getattr, os, "system") and getattr, "", "join")
    yield "torch.load", Calls(torch.load, str(canary))
    yield "nested", Calls(dict, [("a", Calls(os.system, touch))])
    yield "import", Calls(__import__, "antigravity")
    yield "breakpoint", Calls(builtins.breakpoint)
    yield "pickle.loads", Calls(pickle.loads, pickle.dumps(Calls(os.system, touch)))


RAW = {  # pickles no pickler writes
    "GLOBAL and REDUCE": lambda c: b"cos\nsystem\n(X" + struct.pack("<I", len(c)) + c + b"tR.",
    "INST": lambda c: b"(S'" + c + b"'\nios\nsystem\n.",
    "OBJ": lambda c: b"(cos\nsystem\nX" + struct.pack("<I", len(c)) + c + b"o.",
    "NEWOBJ": lambda c: b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(c)) + c + b"\x85\x81.",
    "STACK_GLOBAL": lambda c: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(c)]) + c + b"\x85R.",
    "BUILD": lambda c: b"\x80\x02cos\n_Environ\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbX"
    + struct.pack("<I", len(c)) + c + b"b.",
    "dotted name": lambda c: b"\x80\x04\x8c\x02os\x8c\x0csys.settrace\x93)R.",
    "rebuilder as a gadget": lambda c: b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNX"
    + struct.pack("<I", len(c)) + c + b"\x85}tR.",
}  # fmt: skip


def attack_names(tmp="/nonexistent"):
    return [name for name, _ in attacks(tmp)]


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("attack", attack_names())
def test_a_pickle_that_would_run_code_runs_none_and_its_tensors_are_read(tmp_path, attack, container):
    canary = tmp_path / "canary"
    bomb = dict(attacks(canary))[attack]
    modules = set(sys.modules)
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": bomb}, path,
               _use_new_zipfile_serialization=container == "zip")  # fmt: skip
    tensors, model = read_all(path)
    assert torch.equal(tensors["w"], torch.ones(2))
    assert not canary.exists() and not {"antigravity"} & (set(sys.modules) - modules)
    assert model.metadata["stubs"]


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("attack", RAW)
def test_opcodes_that_would_run_code_run_none(tmp_path, write, attack, container):
    canary = tmp_path / "c"
    content = RAW[attack](f"touch {canary}".encode())
    path = tmp_path / "evil.pt"
    if container == "zip":
        write.torch_zip(path, content)
    else:
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in LEGACY) + content + pickle.dumps([], 2))
    refused(path, "no tensor that can be read safely|cannot be read")
    assert not canary.exists()


PICKLES = {
    "a huge memo index": b"\x80\x02Nr\xff\xff\xff\xff0(lp4294967290\n.",
    "a huge text": b"\x80\x02X\xff\xff\xff\xff.",
    "a huge text of 2^63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "a huge byte array": b"\x80\x05\x96" + b"\xff" * 8 + b".",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a decimal number of 50,000 digits": b"L" + b"9" * 50_000 + b"L\n.",
    "an unset memo": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02NNt.",
    "no stop": b"\x80\x02N",
    "an unknown opcode": b"\x80\x02\xfe.",
    "an extension registry": b"\x80\x02\x82\x01.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "tuples 200,000 deep": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "lists 200,000 deep": b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "a list as a key": b"\x80\x02}]Ns.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a billion laughs": b"\x80\x02]q\x00"
    + b"".join(b"](" + b"h%c" % n * 9 + b"eq%c" % (n + 1) for n in range(40))
    + b".",
    "laughs unfolded": b"\x80\x02](" + b"K\x01" * 5000 + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 5000 + b".",
    "a storage of a billion numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
    b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7ftQK\x00K\x01\x85K\x01\x85\x89NtR.",
    "a storage of text numbers": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NNtQ.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a storage of an unknown type": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000NNtQ.",
    "text that is no unicode": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "appends to a number": b"\x80\x02K\x01K\x01a.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "arguments that are none": b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_gives_a_sentence_and_takes_little_memory(tmp_path, write, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(write.torch_zip(tmp_path / "evil.pt", PICKLES[name]), "evil.pt")
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 200 * 1024, f"{taken} KiB more"


SIZE = 1 << 18  # bytes of each pickle below
NOISE = 4 << 20  # bytes that a process may take for reasons of its own
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtR"
)
NAME = b"cos\nsystem\nq\x000"
SWOLLEN = {  # pickles whose opcodes make as much as they can of a byte
    "empty lists": lambda: b"]" * SIZE,
    "empty dictionaries": lambda: b"}" * SIZE,
    "dictionaries of one key": lambda: b"}NNs" * (SIZE // 4),
    "stubs": lambda: NAME + b"h\x00)R" * (SIZE // 4),
    "stubs with lists and keys": lambda: NAME + b"h\x00)RNaNNs" * (SIZE // 10),
    "marks": lambda: b"(" * SIZE,
    "nothings": lambda: b"N" * SIZE,
    "tuples in tuples": lambda: b")" + b"\x85" * SIZE,
    "short texts": lambda: b"\x8c\x01a" * (SIZE // 3),
    "two-byte numbers": lambda: b"M\xff\xff" * (SIZE // 3),
    "decimal numbers": lambda: b"F1\n" * (SIZE // 3),
    "a sparse memo": lambda: b"N" + b"".join(b"r" + struct.pack("<I", 2 * n + 1) for n in range(SIZE // 5)),
    "a full memo": lambda: b"N" + b"\x94" * SIZE,
    "names": lambda: b"ca\nb\n" * (SIZE // 5),
    "names of their own": lambda: b"".join(b"ca\n%x\n" % n for n in range(SIZE // 9)),
    "lists copied": lambda: b"](" + b"N" * (SIZE // 2) + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 5_000,
    "keys that are no keys": lambda: b"}(" + b")N" * (SIZE // 2) + b"u",
    "one tensor under long names": lambda: b"}X\xe8\x03\x00\x00" + b"k" * 1000 + b"](" + TENSOR + b"q\x07"
    + b"h\x07" * (SIZE // 2) + b"es",
}  # fmt: skip

MEMORY = """
import json, sys
from pathlib import Path
import torch
from zoarium._core.errors import ZoariumError
from zoarium.zoo.foreign import read_model

def peak():  # of this program alone
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def said(path):
    try:
        read_model(path)
    except ZoariumError as error:
        return str(error)
    return ""

paths = sorted(Path(sys.argv[1]).iterdir())
said(paths[0])
before, found = peak(), {}
for path in paths:
    text = said(path)
    found[path.name] = [text, peak() - before]
print(json.dumps(found))
"""


def memory_of(folder):
    """What reading each file of a folder said, and what it took at most, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pickle_takes_little_more_than_its_budget_of_memory_whatever_it_makes(tmp_path, write):
    from zoarium.zoo.foreign.unpickler import MEMORY_FACTOR

    for name, make in SWOLLEN.items():
        write.torch_zip(tmp_path / f"{name}.pt", b"\x80\x02" + make() + b".", [("archive/data/0", bytes(16))])
    found = memory_of(tmp_path)
    assert len(found) == len(SWOLLEN)
    for name, (said, taken) in found.items():
        assert name in said and said.count("\n") == 0, (name, said)
        assert taken < 2 * MEMORY_FACTOR * SIZE + NOISE, (name, taken / SIZE)


def test_real_pickles_with_many_names_pass_the_budget(tmp_path):
    net = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(100)])
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimiser.step()
    extra = {"history": [n / 7 for n in range(5000)], "empty": [[] for _ in range(500)], "config": {"a": {"b": {}}}}
    torch.save(net, tmp_path / "module.pt")
    torch.save({"model": net.state_dict(), "optimizer": optimiser.state_dict(), **extra}, tmp_path / "checkpoint.pt")
    for protocol in (2, 4, 5):
        torch.save({f"{n}": torch.ones(1) for n in range(3000)}, tmp_path / f"p{protocol}.pt", pickle_protocol=protocol)
    counts = [len(read_model(path)) for path in sorted(tmp_path.iterdir())]
    assert counts == [200, 200, 3000, 3000, 3000]


def test_headers_of_every_format_take_memory_in_proportion_to_their_file(tmp_path, write):
    lists = b'{"a": [' + b",".join([b"[]"] * (SIZE // 3)) + b"]}"
    safetensors(tmp_path / "lists.safetensors", lists)
    tiny = b"".join(
        b'"%x":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]},' % (n, n, n + 1) for n in range(SIZE // 50)
    )
    safetensors(tmp_path / "tiny.safetensors", b"{" + tiny[:-1] + b"}", bytes(SIZE // 50))
    small = write.message((2, 2), (9, b"\0"))  # a number of one byte, without a name
    (tmp_path / "many.onnx").write_bytes(write.onnx_model(*[small] * (SIZE // len(small))))
    nodes = [write.message((5, write.message((5, small))))] * (SIZE // 14)
    (tmp_path / "nodes.onnx").write_bytes(write.onnx_model(nodes=nodes))
    (tmp_path / "many.gguf").write_bytes(
        write.gguf([(f"{n:x}", (), 24, b"\0") for n in range(SIZE // 40)], alignment=1)
    )
    empty = struct.pack("<IQ", 9, SIZE // 12) + struct.pack("<IQ", 0, 0) * (SIZE // 12)
    (tmp_path / "lists.gguf").write_bytes(write.gguf([], [("k", 9, empty)]))
    with zipfile.ZipFile(tmp_path / "members.pt", "w") as archive:
        for n in range(SIZE // 100):
            archive.writestr(f"{n:x}", b"")
    for name, (said, taken) in memory_of(tmp_path).items():
        assert said == "" or (name in said and said.count("\n") == 0), (name, said)
        assert taken < 48 * SIZE + NOISE, (name, taken / SIZE)


def test_a_large_object_under_many_keys_is_walked_once(tmp_path, write, monkeypatch):
    from zoarium.zoo.foreign import torch_pickle

    weights = tensor_pickle(4, 0, (4,), (1,))[2:-1]  # without PROTO and STOP
    keys = b"".join(b"X\x04\x00\x00\x00k%03dj\x00\x10\x00\x00" % n for n in range(200))
    shared = b"\x80\x02](" + b"]" * 1000 + b"er\x00\x10\x00\x000"
    content = shared + b"}(X\x05\x00\x00\x00model" + weights + keys + b"u."
    walked, original = [], torch_pickle.children
    monkeypatch.setattr(torch_pickle, "children", lambda value: walked.append(1) or original(value))
    read_model(write.torch_zip(tmp_path / "many.pt", content, [("archive/data/0", bytes(16))]))
    assert len(walked) < 3000


def tensor_pickle(items, offset, shape, stride, key="0"):
    """A tensor over a float32 storage, described as we like."""

    class Storage:
        pass

    storage = Storage()

    class Writer(pickle._Pickler):  # the one in Python lets us write names of our choice
        def persistent_id(self, given):
            return ("storage", torch.FloatStorage, key, "cpu", items) if given is storage else None

    out = io.BytesIO()
    writer = Writer(out, 2)
    writer.dump({"w": Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, {})})
    return out.getvalue()


@pytest.mark.parametrize(
    ("items", "offset", "shape", "stride", "match"),
    [
        (4, 0, (5,), (1,), "ends at byte 20 of storage '0', which has 16"),
        (4, 3, (2,), (1,), "ends at byte 20"),
        (4, -1, (2,), (1,), "begins at -1"),
        (4, 0, (2,), (-1,), r"strides \[-1\]"),
        (4, 0, (-2,), (1,), "which no tensor has"),
        (4, 0, (2**62, 2**62), (0, 0), "which no tensor has"),
        (4, 0, (10**9,), (0,), "repeats its storage"),
        (4, 0, (2, 2), (1,), "no usable shape and strides"),
        (4, 0, (2.0,), (1,), "which no tensor has"),
        (4, 0, (1,) * 100, (1,) * 100, "100 axes"),
        (5, 0, (4,), (1,), "should have 20 bytes and has 16 bytes"),
        (2**61, 0, (4,), (1,), "claims"),
        (-1, 0, (0,), (1,), "claims -1 numbers"),
    ],
)
def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path, write, items, offset, shape, stride, match):
    content = tensor_pickle(items, offset, shape, stride)
    path = write.torch_zip(tmp_path / "lie.pt", content, [("archive/data/0", bytes(16))])
    refused(path, match, DamagedError)


def test_a_storage_is_looked_up_by_name_only_inside_the_archive(tmp_path, write):
    (tmp_path / "secret").write_bytes(bytes(16))
    content = tensor_pickle(4, 0, (4,), (1,), key="../../../secret")
    refused(write.torch_zip(tmp_path / "up.pt", content, [("archive/data/0", bytes(16))]), "has nothing")


@pytest.mark.parametrize("member", ["../../evil", "/etc/evil", "archive/../../evil", "a\\..\\evil", "C:/evil"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, write, member):
    path = write.torch_zip(tmp_path / "slip.pt", tensor_pickle(4, 0, (4,), (1,)), [(member, b"x")])
    refused(path, "leads out of the archive", DamagedError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slip.pt"]


def deflated_storages(path, write, sizes):
    """A zip of deflated storages of zeros, one tensor each."""
    names = [f"archive/data/{n}" for n in range(len(sizes))]
    content = tensor_pickle(sizes[0] // 4, 0, (4,), (1,))
    return write.torch_zip(path, content, [(n, bytes(s)) for n, s in zip(names, sizes, strict=True)], deflate=True)


def test_storages_of_zeros_may_be_deflated_a_thousandfold_but_not_to_far_more_than_the_file(tmp_path, write):
    tensors, _ = read_all(deflated_storages(tmp_path / "zeros.pt", write, [10**7]))
    assert torch.equal(tensors["w"], torch.zeros(4))
    many = deflated_storages(tmp_path / "bomb.pt", write, [10**7] * 8)
    refused(many, "80000000|more than weights ever compress", DamagedError)


def test_a_deflated_storage_of_many_views_is_inflated_once(tmp_path, write, monkeypatch):
    from zoarium.zoo.foreign.archive import Archive

    base = torch.arange(4000.0)
    torch.save({f"v{n}": base[n : n + 4] for n in range(50)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, zipfile.ZipFile(tmp_path / "views.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    inflated, original = [], Archive._inflate
    monkeypatch.setattr(Archive, "_inflate", lambda self, name, *a: inflated.append(name) or original(self, name, *a))
    tensors, _ = read_all(tmp_path / "views.pt")
    assert torch.equal(tensors["v7"], base[7:11]) and sum(name.endswith("data/0") for name in inflated) == 1


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path, write):
    content = tensor_pickle(25_000_000, 0, (4,), (1,))
    path = write.torch_zip(tmp_path / "bomb.pt", content, [("archive/data/0", bytes(10**8))], deflate=True)
    refused(path, "more than weights ever compress", DamagedError)


def directory_edit(path, offset, content, member=b"archive/data/0"):
    """Overwrite bytes in the central directory's entry of a member."""
    raw = bytearray(path.read_bytes())
    at = raw.rindex(member) - 46 + offset
    raw[at : at + len(content)] = content
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("offset", "content", "match"),
    [
        (24, struct.pack("<I", 2**31), "more than weights ever compress"),  # size
        (20, struct.pack("<I", 2**31), "more than weights ever compress|beyond the file"),  # compressed size
        (20, struct.pack("<II", 2**20, 2**20), "beyond the file"),
        (42, struct.pack("<I", 0), "claim the same bytes"),  # offset
        (42, struct.pack("<I", 2**31), "beyond the file|zip archive"),
        (16, b"abcd", "checksum"),
        (10, struct.pack("<H", 12), "compressed in a way"),
        (8, struct.pack("<H", 1), "encrypted"),
    ],
)
def test_a_directory_that_lies_about_a_member_is_refused(tmp_path, write, offset, content, match):
    path = write.torch_zip(tmp_path / "lie.pt", tensor_pickle(4, 0, (4,), (1,)), [("archive/data/0", bytes(16))])
    directory_edit(path, offset, content)
    refused(path, match)


def test_a_member_listed_twice_and_an_archive_of_something_else_are_refused(tmp_path, write):
    with pytest.warns(UserWarning, match="Duplicate"):
        write.torch_zip(tmp_path / "two.pt", tensor_pickle(4, 0, (4,), (1,)), [("archive/data/0", bytes(16))] * 2)
    refused(tmp_path / "two.pt", "stands twice")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.pt", "not one of torch.save")


def safetensors(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(start, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry(0, 16), "b": entry(8, 24)}, "claim the same bytes"),
        ({"a": entry(0, 16), "b": entry(0, 16)}, "claim the same bytes"),
        ({"a": entry(0, 400, (100,))}, "claims 0 to 400"),
        ({"a": entry(0, 16, (5,))}, "needs 20 bytes"),
        ({"a": entry(-16, 0)}, "claims -16 to 0"),
        ({"a": entry(16, 0)}, "claims 16 to 0"),
        ({"a": entry(0, 16)}, "32 follow the header"),
        ({"a": entry(16, 32)}, "take 16 bytes"),
        ({"a": entry(0, 32, (2**40, 2**40))}, "which no tensor has"),
        ({"a": entry(0, 32, (2**80,))}, "which no tensor has"),
        ({"a": entry(0, 32, (-8,))}, "which no tensor has"),
        ({"a": entry(0, 32, (8.0,))}, "which no tensor has"),
        ({"a": entry(0, 32, (True,) * 8)}, "which no tensor has"),
        ({"a": entry(0, 32, (1,) * 1000)}, "1000 axes"),
        ({"a": entry("0", 32)}, "no usable"),
        ({"a": entry(0, 32, dtype="F4")}, "of type 'F4'; convert"),
        ({"a": entry(0, 32, dtype=["F32"])}, "no usable"),
        ({"a": 3}, "lacks dtype"),
        ({"a": {"dtype": "F32"}}, "lacks dtype"),
        ({"a" * 5000: entry(0, 32, (8,))}, "not text of at most"),
        ({"\ud800": entry(0, 32, (8,))}, "not text of at most"),
        ([1, 2], "not a table of tensors"),
        ({"__metadata__": [1]}, "__metadata__ is not a table"),
        (b"[" * 100_000, "opens 100000 lists in 100000 bytes"),
        (b'{"a": ' * 100_000, "opens 100000 lists"),
        (b'{"aaaaaaaa": ' * 20_000, "nests too deep|not JSON"),
        (b'{"a": {}, "a": {}}', "stands twice"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b"{\xff}", "not JSON"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, match):
    refused(safetensors(tmp_path / "lie.safetensors", header, bytes(32)), match)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9, 101])
def test_a_safetensors_header_longer_than_its_file_is_refused(tmp_path, length):
    refused(safetensors(tmp_path / "long.safetensors", b"{}", bytes(32), length), "claims|not JSON", DamagedError)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda w: w.gguf([("a", (4,), 0, bytes(16))])[:-20], "ends at byte"),
        (lambda w: w.gguf([("a", (2**50,), 0, bytes(16))]), "ends at byte"),
        (lambda w: w.gguf([("a", (2**40, 2**40), 0, bytes(16))]), "which no tensor has"),
        (lambda w: w.gguf([("a", (33,), 2, bytes(36))]), "no whole number of Q4_0 blocks"),
        (lambda w: w.gguf([("a", (4,), 99, bytes(16))]), "GGUF type 99; convert"),
        (lambda w: w.gguf([("a", (1,) * 9, 0, bytes(16))]), "9 axes"),
        (lambda w: w.gguf([("a", (4,), 0, bytes(16))] * 2), "stands twice"),
        (lambda w: w.gguf([], version=1), "version 1; convert"),
        (lambda w: b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (lambda w: b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "keys"),
        (lambda w: b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "text of 1152921504606846976 bytes"),
        (lambda w: w.gguf([], [("k", 9, struct.pack("<IQ", 0, 2**50))]), "list of 1125899906842624 values"),
        (lambda w: w.gguf([], [("k", 9, struct.pack("<IQ", 10, 20) + bytes(40))]), "asks for|ends beyond"),
        (lambda w: w.gguf([], [("k", 9, struct.pack("<IQ", 9, 1) * 50)]), "value of type 9"),
        (lambda w: w.gguf([], [("k", 77, b"")]), "value of type 77"),
        (lambda w: w.gguf([], [("general.alignment", 4, struct.pack("<I", 0))]), "alignment is 0"),
        (lambda w: b"GGUF", "asks for"),
        (lambda w: b"GARBAGE", "does not begin with GGUF"),
    ],
)
def test_a_gguf_header_that_lies_is_refused(tmp_path, write, edit, match):
    path = tmp_path / "lie.gguf"
    path.write_bytes(edit(write))
    refused(path, match)


def test_gguf_tensors_that_overlap_are_refused(tmp_path, write):
    path = tmp_path / "lie.gguf"
    content = write.gguf([("a", (8,), 0, bytes(32)), ("b", (8,), 0, bytes(32))])
    place = content.index(b"b", content.index(b"a", 24)) + 1 + 4 + 8 + 4
    path.write_bytes(content[:place] + struct.pack("<Q", 0) + content[place + 8 :])
    refused(path, "claim the same bytes", DamagedError)


def sparse(w, indices, shape):
    """A model of one sparse initialiser with the values 1.5 and 2.5."""
    values = w.onnx_tensor("t", torch.tensor([1.5, 2.5]))
    dims = [(3, size) for size in shape]
    return w.message((7, w.message((15, w.message((1, values), (2, w.onnx_tensor("", torch.tensor(indices))), *dims)))))


def nested_graphs(w, depth):
    graph = w.message((5, w.onnx_tensor("t", torch.ones(1))))
    for _ in range(depth):
        graph = w.message((1, w.message((5, w.message((6, graph))))))
    return w.message((7, graph))


def external(w, location, offset=b"0"):
    pairs = [w.message((1, k), (2, v)) for k, v in ((b"location", location), (b"offset", offset))]
    return w.onnx_model(w.onnx_tensor("t", torch.ones(2), *((13, p) for p in pairs), (14, 1)))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda w: w.onnx_model(w.onnx_tensor("t", torch.ones(4), (9, bytes(8)))), "needs 16 bytes and has 8"),
        (lambda w: w.onnx_model(w.message((1, 2**50), (2, 1))), "without the numbers"),
        (lambda w: w.onnx_model(w.message((1, -1), (2, 1))), "which no tensor has"),
        (lambda w: w.onnx_model(w.message((1, 2**40), (1, 2**40), (2, 1), (9, b""))), "which no tensor has"),
        (lambda w: w.onnx_model(w.message(*[(1, 1)] * 100, (2, 1))), "more than 64 axes"),
        (lambda w: w.onnx_model(w.message((1, b"\x01" * 100_000), (2, 1))), "more than 64 axes"),
        (lambda w: w.onnx_model(w.message((2, 77))), "ONNX type 77"),
        (lambda w: w.onnx_model(w.message((1, 4))), "ONNX type 0"),
        (lambda w: w.onnx_model(*[w.message((2, 2), (9, b"x"))] * 3000), "more than [0-9]+ tensors, too many"),
        (lambda w: w.onnx_model(w.message((1, 5), (2, 22), (9, bytes(2)))), "needs 3 bytes and has 2"),
        (lambda w: sparse(w, [0, 6], (2, 3)), "indices outside its shape"),
        (lambda w: sparse(w, [-1, 0], (2, 3)), "indices outside its shape"),
        (lambda w: sparse(w, [[0, 3], [0, 0]], (2, 3)), "indices outside its shape"),
        (lambda w: sparse(w, [[0], [0]], (2, 3)), r"indices of shape \(2, 1\)"),
        (lambda w: sparse(w, [0, 1, 2], (2, 3)), "needs 12 bytes and has 8"),
        (lambda w: sparse(w, [0, 1], (2**20, 2**20)), "would take 4398046511104 bytes"),
        (lambda w: sparse(w, [0, 1], (-1,)), "which no tensor has"),
        (lambda w: w.message((7, w.message((15, w.message((3, 4)))))), "lacks values or indices"),
        (lambda w: w.onnx_model(w.onnx_tensor("t", torch.ones(4), (4, bytes(8)))), "lists 8 bytes"),
        (lambda w: w.onnx_model(w.message((2, 1), (8, b"n" * 3000), (9, bytes(4)))), "not text of at most"),
        (
            lambda w: w.message((7, w.message((5, w.message((2, 1)))))) + b"\x3a\xff\xff\xff\xff\x0f",
            "more than its message has",
        ),
        (lambda w: b"\x3a" + b"\xff" * 20, "has no end"),
        (lambda w: b"\x0f", "wire type 7"),
        (lambda w: nested_graphs(w, 40), "nest more than 32 deep"),
        (lambda w: b"", "no initialisers"),
        (lambda w: external(w, b"../secret"), "not in its own folder"),
        (lambda w: external(w, b"/etc/passwd"), "not in its own folder"),
        (lambda w: external(w, b"a/../../secret"), "not in its own folder"),
        (lambda w: external(w, b""), "not in its own folder"),
        (lambda w: external(w, b"link"), "not in its own folder"),
        (lambda w: external(w, b"absent"), "absent"),
        (lambda w: external(w, b"near", b"999"), "reaches beyond"),
        (lambda w: external(w, b"near", b"-8"), "lies at '-8'"),
        (lambda w: external(w, b"near", b"9" * 5000), "lies at"),
    ],
)
def test_an_onnx_file_that_lies_is_refused(tmp_path, write, edit, match):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    (home / "near").write_bytes(bytes(64))
    (home / "link").symlink_to("../secret")
    path = home / "lie.onnx"
    path.write_bytes(edit(write))
    with pytest.raises((DamagedError, StoreError), match=match):
        read_all(path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "link.safetensors", "", ".", "a\0b"])
def test_an_index_whose_shards_lie_elsewhere_is_refused(tmp_path, folder, shard):
    safetensors(tmp_path / "secret.safetensors", {"w": entry(0, 16)}, bytes(16))
    (folder / "link.safetensors").symlink_to("../secret.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(path, "not in its own folder|is missing", StoreError)


def test_an_index_that_does_not_fit_its_shards_is_refused(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    told = index["weight_map"]
    for weights, match in [
        ({}, "no weight_map"),
        ([1], "no weight_map"),
        ({"w": 3}, "no weight_map"),
        (told | {"ghost": "model-00001-of-00002.safetensors"}, "'ghost' should be in"),
        (told | {"steps": "absent.safetensors"}, "is missing; download"),
    ]:
        path.write_text(json.dumps({"weight_map": weights}))
        refused(path, match)


def test_pipes_devices_absent_and_empty_files_and_crowded_folders_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not a regular file", StoreError)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    refused(tmp_path / "zero.pt", "not a regular file", StoreError)
    refused(tmp_path / "absent.pt", "there is no file", StoreError)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    refused(tmp_path / "loop.pt", "there is no file", StoreError)
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "is none of safetensors", StoreError)
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "convert it to safetensors", StoreError)
    with pytest.raises(StoreError, match=r"holds 5 files of weights \(empty.pt, .*give the path of one"):
        read_model(tmp_path)


def test_a_file_that_changed_since_it_was_opened_is_not_read(small_files):
    path = small_files["safetensors"]
    model = read_model(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StoreError, match="has changed since it was opened"):
        model.tensor("steps")
