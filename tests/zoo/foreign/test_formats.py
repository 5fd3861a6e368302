"""Every format gives back the tensors that were written."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoarium._core.errors import StoreError
from zoarium.zoo.foreign import read_model


def assert_same(model, expected):
    assert list(model.tensors) and set(model.tensors) == set(expected)
    for name, tensor in model:
        info = model.tensors[name]
        assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{info.dtype}", info.shape)
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["safetensors", "torch", "deflated", "legacy"])
def test_a_file_gives_back_the_tensors_that_were_written(small_files, tensors, kind):
    assert_same(read_model(small_files[kind]), tensors)


def test_a_checkpoint_says_where_its_weights_stood_and_what_was_left_out(small_files):
    for kind in ("torch", "legacy"):
        facts = read_model(small_files[kind]).metadata
        assert facts["wrapper"] == "state_dict" and facts["left_out"] == {"optimizer": 1}


def test_prefixes_of_parallel_training_are_kept_and_told(tmp_path):
    torch.save({"module.a": torch.ones(1), "module.b": torch.ones(2)}, tmp_path / "a.pth")
    model = read_model(tmp_path / "a.pth")
    assert list(model.tensors) == ["module.a", "module.b"] and model.metadata["prefix"] == "module."


def test_the_sources_carry_size_and_sha256(small_files):
    import hashlib

    path = small_files["safetensors"]
    (source,) = read_model(path).sources
    assert source.size == path.stat().st_size and source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_of_every_type_are_read(tmp_path):
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]  # fmt: skip
    wanted = {str(kind): torch.tensor([[0.0, 1.0, 2.0]]).to(kind) for kind in kinds} | {"none": torch.empty(0, 3)}
    save_file(wanted, tmp_path / "all.safetensors")
    model = read_model(tmp_path / "all.safetensors")
    assert set(model.tensors) == set(wanted)
    for name, tensor in model:
        assert tensor.dtype == wanted[name].dtype and tensor.shape == wanted[name].shape
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), wanted[name].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("zipped", [True, False])
def test_views_strides_and_shared_storages_are_followed(tmp_path, zipped):
    base = torch.arange(24.0)
    wanted = {"slice": base[4:10], "turned": base.reshape(4, 6).t(), "thin": base[::5], "none": base[:0],
              "repeated": torch.ones(1).expand(7), "complex": torch.tensor([1 + 2j]),
              "half": base.bfloat16()}  # fmt: skip
    torch.save(wanted, tmp_path / "views.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_model(tmp_path / "views.pt"), wanted)
    assert all(tensor.is_contiguous() for _, tensor in read_model(tmp_path / "views.pt"))


def test_a_whole_pickled_module_gives_the_names_of_its_state_dict(tmp_path):
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Sequential(torch.nn.Linear(4, 2))
    )
    torch.save(net, tmp_path / "module.pt")
    model = read_model(tmp_path / "module.pt")
    assert_same(model, net.state_dict())
    assert "torch.nn.modules.linear.Linear" in model.metadata["stubs"]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, tensors, protocol):
    odd = {"none": None, "text": "ä", "floats": [1.5, -2, 2**70, True], "bytes": b"\x00\xff", "sets": {1, 2}}
    torch.save({"state_dict": tensors, "extra": odd}, tmp_path / "p.pt", pickle_protocol=protocol)
    assert_same(read_model(tmp_path / "p.pt"), tensors)


def test_torchscript_gives_parameters_under_their_names_and_constants(small_files):
    model = read_model(small_files["torchscript"])
    torch.manual_seed(0)
    state = torch.jit.load(small_files["torchscript"]).state_dict()
    for name, value in state.items():
        assert torch.equal(model.tensor(name), value)
    constants = [t for name, t in model if name.startswith("CONSTANTS.")]
    assert any(torch.equal(t, torch.tensor([1.0, 2.0, 3.0])) for t in constants)


def test_onnx_initialisers_and_constants_are_read(small_files, tensors):
    assert_same(read_model(small_files["onnx"]), {**tensors, "made": torch.ones(2)})


def test_onnx_numbers_in_lists_outside_and_in_branches_are_read(tmp_path, write):
    outside = torch.arange(6.0)
    (tmp_path / "data.bin").write_bytes(b"\0" * 8 + outside.numpy().tobytes())
    place = [
        write.message((1, k), (2, v)) for k, v in ((b"location", b"data.bin"), (b"offset", b"8"), (b"length", b"24"))
    ]
    listed = write.onnx_tensor("packed", torch.tensor([1.5, 2.5]), (4, struct.pack("<2f", 1.5, 2.5)))
    single = write.onnx_tensor("single", torch.tensor([-3, 4]), (7, -3), (7, 4))
    far = write.onnx_tensor("far", outside, *((13, p) for p in place), (14, 1))
    half = write.onnx_tensor("half", torch.zeros(1, dtype=torch.float16), (5, 0x3C00))
    branch = write.message((5, write.onnx_tensor("deep", torch.ones(3))))
    node = write.message((2, b"out"), (5, write.message((6, branch))))
    path = tmp_path / "m.onnx"
    path.write_bytes(write.onnx_model(listed, single, far, half, nodes=[node]))
    model = read_model(path)
    assert_same(model, {
        "packed": torch.tensor([1.5, 2.5]), "single": torch.tensor([-3, 4]), "far": outside, "deep": torch.ones(3),
        "half": torch.ones(1, dtype=torch.float16),
    })  # fmt: skip
    assert [s.path.name for s in model.sources] == ["m.onnx", "data.bin"]


def test_onnx_sparse_tensors_functions_and_lists_of_tensors_are_read(tmp_path, write):
    m = write.message
    values = write.onnx_tensor("linear", torch.tensor([1.5, 2.5]))
    linear = m((1, values), (2, write.onnx_tensor("", torch.tensor([1, 5]))), (3, 2), (3, 3))
    pairs = m((1, write.onnx_tensor("pairs", torch.tensor([4, 5]))), (2, write.onnx_tensor("", torch.tensor(
        [[0, 1], [1, 2]]))), (3, 2), (3, 3))  # fmt: skip
    node = m((2, b"held"), (5, m((22, linear))))
    two = m(
        (2, b"two"), (5, m((10, write.onnx_tensor("a", torch.ones(1))), (10, write.onnx_tensor("b", torch.ones(2)))))
    )
    function = m((1, b"f"), (7, m((2, b"inner"), (5, m((5, write.onnx_tensor("", torch.tensor([7]))))))))
    graph = m((1, node), (1, two), (15, linear), (15, pairs))
    path = tmp_path / "m.onnx"
    path.write_bytes(m((1, 10), (7, graph), (25, function)))
    dense = torch.tensor([[0, 1.5, 0], [0, 0, 2.5]])
    assert_same(read_model(path), {
        "linear": dense, "held": dense, "pairs": torch.tensor([[0, 4, 0], [0, 0, 5]]), "two": torch.ones(1),
        "two~2": torch.ones(2), "inner": torch.tensor([7]),
    })  # fmt: skip
    assert read_model(path).tensors["linear"].stored == "sparse float32"


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("kind", "stored", "numbers", "packed"),
    [
        (21, "uint4", torch.tensor([1, 15, 8], dtype=torch.uint8), b"\xf1\x08"),
        (22, "int4", torch.tensor([1, -1, -8, 7], dtype=torch.int8), b"\xf1\x78"),
        (23, "float4e2m1", torch.tensor([0.5, -6.0, 1.5]), b"\xf1\x03"),
        (25, "uint2", torch.tensor([1, 0, 3, 2, 1], dtype=torch.uint8), b"\xb1\x01"),
        (26, "int2", torch.tensor([1, 0, -1, -2, 1], dtype=torch.int8), b"\xb1\x01"),
    ],
)
def test_onnx_numbers_of_less_than_a_byte_are_unpacked(tmp_path, write, kind, stored, numbers, packed, listed):
    data = [(5, byte) for byte in packed] if listed else [(9, packed)]
    path = tmp_path / "m.onnx"
    path.write_bytes(write.onnx_model(write.message((1, len(numbers)), (2, kind), (8, b"w"), *data)))
    assert_same(read_model(path), {"w": numbers})
    assert read_model(path).tensors["w"].stored == stored


def test_onnx_lists_of_every_type_are_read_packed_or_one_by_one(tmp_path, write):
    m = write.message
    bits = {torch.float16: 10, torch.bfloat16: 16, torch.float8_e4m3fn: 17, torch.float8_e5m2: 19}
    wanted, protos = {}, []

    def varint(value):
        return m((1, value))[1:]

    for dtype, kind in bits.items():  # as whole numbers in int32_data
        tensor = torch.tensor([1.5, -2.0, 0.25]).to(dtype)
        size = torch.uint8 if tensor.element_size() == 1 else torch.uint16
        numbers = [int(v) for v in tensor.view(size)]
        for way, data in (
            ("packed", [(5, b"".join(varint(v) for v in numbers))]),
            ("single", [(5, v) for v in numbers]),
        ):
            wanted[f"{dtype} {way}"] = tensor
            protos.append(m((1, 3), (2, kind), (8, f"{dtype} {way}".encode()), *data))
    whole = {torch.bool: (9, 5), torch.int8: (3, 5), torch.uint8: (2, 5), torch.int16: (5, 5), torch.uint16: (4, 5),
             torch.int32: (6, 5), torch.int64: (7, 7), torch.uint32: (12, 11), torch.uint64: (13, 11)}  # fmt: skip
    for dtype, (kind, number) in whole.items():
        numbers = [1, 0, 1] if dtype == torch.bool else [3, -4 if dtype.is_signed else 4, 100]
        wanted[str(dtype)] = torch.tensor(numbers, dtype=dtype)
        protos.append(m((1, 3), (2, kind), (8, str(dtype).encode()), (number, b"".join(varint(v) for v in numbers))))
    for dtype, kind, number in ((torch.float64, 11, 10), (torch.complex64, 14, 4), (torch.complex128, 15, 10)):
        wanted[str(dtype)] = torch.tensor([1.5, -2.5], dtype=dtype)
        raw = wanted[str(dtype)].view(torch.uint8).numpy().tobytes()
        protos.append(m((1, 2), (2, kind), (8, str(dtype).encode()), (number, raw)))
    path = tmp_path / "m.onnx"
    path.write_bytes(write.onnx_model(*protos))
    assert_same(read_model(path), wanted)


def test_an_lstm_of_onnx_is_that_of_torch_with_its_gates_in_another_order(tmp_path, write):
    cell = torch.nn.LSTMCell(3, 2)
    i, f, g, o = cell.weight_ih.detach().chunk(4)
    path = tmp_path / "lstm.onnx"  # as exporters write it: values are those of the file, in the order of the file
    path.write_bytes(write.onnx_model(write.onnx_tensor("W", torch.cat([i, o, f, g])[None])))
    i, o, f, g = read_model(path).tensor("W")[0].chunk(4)
    assert torch.equal(torch.cat([i, f, g, o]), cell.weight_ih)


def slow_block(kind, b):
    """One block, number by number, as the format describes it."""
    d, second = (float(np.frombuffer(b, "<f2", 1, at)[0]) for at in (0, 2))
    bits = int.from_bytes(b[2:6] if kind == 6 else b[4:8], "little")
    nibble = lambda at, n: b[at + n % 16] >> (4 * (n // 16)) & 15  # noqa: E731
    if kind == 8:
        return [d * (v - 256 if v > 127 else v) for v in b[2:]]
    if kind == 2:
        return [d * (nibble(2, n) - 8) for n in range(32)]
    if kind == 3:
        return [d * nibble(4, n) + second for n in range(32)]
    if kind == 6:
        return [d * ((nibble(6, n) | (bits >> n & 1) << 4) - 16) for n in range(32)]
    if kind == 7:
        return [d * (nibble(8, n) | (bits >> n & 1) << 4) + second for n in range(32)]
    levels = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    fours = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    if kind == 20:
        return [d * levels[nibble(2, n)] for n in range(32)]
    if kind == 39:
        return [2.0 ** (b[0] - 128) * fours[nibble(1, n)] for n in range(32)]
    out = []
    if kind == 23:
        for n in range(256):
            j = n // 32
            s = (b[4 + j // 2] >> (4 * (j % 2)) & 15) | (int.from_bytes(b[2:4], "little") >> (2 * j) & 3) << 4
            out.append(d * (s - 32) * levels[b[8 + 16 * j + n % 16] >> (4 * (n % 32 // 16)) & 15])
        return out
    if kind in (10, 11):
        d, least = (float(np.frombuffer(b, "<f2", 1, at)[0]) for at in ((80, 82) if kind == 10 else (108, 108)))
        for n in range(256):
            half, shift, at, j = n // 128, n % 128 // 32, n % 32, n // 16
            low = b[(16 if kind == 10 else 32) + 32 * half + at] >> (2 * shift) & 3
            if kind == 10:
                out.append(d * (b[j] & 15) * low - least * (b[j] >> 4))
                continue
            s = (b[96 + j % 8] >> (4 * (j // 8)) & 15) | (b[104 + j % 4] >> (2 * (j // 4)) & 3) << 4
            out.append(d * (s - 32) * (low - (0 if b[at] >> (4 * half + shift) & 1 else 4)))
        return out
    if kind in (12, 13):
        q = b[4:16]
        for n in range(256):
            j = n // 32
            if j < 4:
                s, m = q[j] & 63, q[j + 4] & 63
            else:
                s, m = (q[j + 4] & 15) | (q[j - 4] >> 6) << 4, (q[j + 4] >> 4) | (q[j] >> 6) << 4
            v = b[(16 if kind == 12 else 48) + 32 * (n // 64) + n % 32] >> (4 * (n // 32 % 2)) & 15
            v |= (b[16 + n % 32] >> j & 1) << 4 if kind == 13 else 0
            out.append(d * s * v - second * m)
        return out
    d = float(np.frombuffer(b, "<f2", 1, 208)[0])
    for n in range(256):
        half, quarter, at = n // 128, n % 128 // 32, n % 32
        low = b[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
        high = b[128 + 32 * half + at] >> (2 * quarter) & 3
        s = b[192 + n // 16]
        out.append(d * (s - 256 if s > 127 else s) * ((low | high << 4) - 32))
    return out


@pytest.mark.parametrize(
    ("kind", "size", "numbers"),
    [
        (2, 18, 32), (3, 20, 32), (6, 22, 32), (7, 24, 32), (8, 34, 32), (10, 84, 256), (11, 110, 256), (12, 144, 256),
        (13, 176, 256), (14, 210, 256), (20, 18, 32), (23, 136, 256), (39, 17, 32),
    ],
)  # fmt: skip
def test_gguf_blocks_are_dequantised_as_the_format_describes(tmp_path, write, kind, size, numbers):
    rng = np.random.default_rng(kind)
    content = bytearray(rng.integers(0, 256, 6 * size, dtype=np.uint8).tobytes())
    for block in range(6):
        places = {14: (208,), 3: (0, 2), 7: (0, 2), 12: (0, 2), 13: (0, 2), 10: (80, 82), 11: (108,), 39: ()}
        for at in places.get(kind, (0,)):  # finite scales
            content[block * size + at : block * size + at + 2] = np.float16(rng.normal()).tobytes()
    path = tmp_path / "q.gguf"
    path.write_bytes(write.gguf([("w", (3, 2 * numbers), kind, bytes(content))]))
    got = read_model(path).tensor("w")
    wanted = [v for n in range(6) for v in slow_block(kind, bytes(content[n * size : (n + 1) * size]))]
    torch.testing.assert_close(got, torch.tensor(wanted).reshape(3, 2 * numbers), rtol=1e-6, atol=1e-6)


def test_gguf_plain_types_and_keys_are_read(tmp_path, write, small_files):
    base = torch.arange(6.0).reshape(2, 3)
    kinds = {0: torch.float32, 1: torch.float16, 24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64,
             28: torch.float64, 30: torch.bfloat16}  # fmt: skip
    entries = [(f"t{k}", (2, 3), k, base.to(d).view(torch.uint8).numpy().tobytes()) for k, d in kinds.items()]
    (tmp_path / "plain.gguf").write_bytes(write.gguf(entries))
    assert_same(read_model(tmp_path / "plain.gguf"), {f"t{k}": base.to(d) for k, d in kinds.items()})
    header = read_model(small_files["gguf"]).metadata["header"]
    assert header == {"general.architecture": "test", "list": [1, 2, 3]}


def test_a_folder_is_read_over_its_shards_with_its_configuration(folder, tensors):
    model = read_model(folder)
    assert_same(model, tensors)
    assert (model.name, model.format, len(model.sources)) == ("org-model", "safetensors", 2)
    assert model.metadata["config"] == {"model_type": "tiny"}
    assert_same(read_model(folder / "model.safetensors.index.json"), tensors)


def test_a_folder_of_pickled_shards_is_read(tmp_path, tensors):
    torch.save(tensors, tmp_path / "pytorch_model-1.bin")
    index = {"weight_map": dict.fromkeys(tensors, "pytorch_model-1.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(read_model(tmp_path), tensors)


def test_files_linked_from_a_hub_cache_are_read(tmp_path, tensors):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(tensors, blobs / "0a1b")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0a1b")
    assert_same(read_model(snapshot), tensors)


def test_a_tensor_that_is_not_there_lists_some_that_are(small_files):
    with pytest.raises(StoreError, match=r"unknown tensor 'layer\.wieght'.*Did you mean 'layer\.weight'"):
        read_model(small_files["safetensors"]).tensor("layer.wieght")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "deflated", "legacy", "torchscript", "onnx", "gguf"])
def test_parts_of_a_tensor_are_those_of_the_whole(small_files, kind):
    model = read_model(small_files[kind])
    for name, tensor in model:
        flat, n = tensor.flatten(), tensor.numel()
        for start, stop in {(0, n), (0, 0), (n, n), (n // 3, n), (n // 3, n - n // 4), (min(n, 1), min(n, 40))}:
            part = model.part(name, start, stop)
            assert part.dtype == flat.dtype and torch.equal(part, flat[start:stop]), (name, start, stop)


def test_parts_of_views_and_of_shards_are_those_of_the_whole(tmp_path, folder):
    base = torch.arange(24.0)
    views = {"slice": base[4:10], "turned": base.reshape(4, 6).t(), "thin": base[::5], "one": base[7:8].reshape(1, 1)}
    torch.save(views, tmp_path / "views.pt")
    for model in (read_model(tmp_path / "views.pt"), read_model(folder)):
        for name, tensor in model:
            assert torch.equal(model.part(name, 1, tensor.numel()), tensor.flatten()[1:]) or tensor.numel() < 1


def test_a_part_reads_only_itself_and_must_lie_inside(small_files):
    model = read_model(small_files["safetensors"])
    read, (source,) = [], model.sources
    original = source.read
    source.read = lambda offset, length, what="": read.append(length) or original(offset, length, what)
    model.part("layer.weight", 2, 5)
    assert read == [12]
    for start, stop in [(-1, 2), (3, 2), (0, 13)]:
        with pytest.raises(StoreError, match=f"'layer.weight' has 12 numbers, so none at {start} to {stop}"):
            model.part("layer.weight", start, stop)
    with pytest.raises(StoreError, match="unknown tensor"):
        model.part("layer.wieght", 0, 1)


def test_reading_the_table_reads_no_tensor_and_a_tensor_reads_only_itself(tmp_path):
    save_file({"a": torch.zeros(1000), "b": torch.ones(1000)}, tmp_path / "m.safetensors")
    model = read_model(tmp_path / "m.safetensors")
    read, (source,) = [], model.sources
    original = source.read
    source.read = lambda offset, length, what="": read.append(length) or original(offset, length, what)
    assert model.numel == 2000 and not read
    model.tensor("b")
    assert read == [4000]
