"""The published image sets, from small files of our own in exactly the published layout."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from zoarium._core.errors import DataError, MissingExtraError
from zoarium.data import cifar, load, svhn, tiny_imagenet
from zoarium.data import registry as data_registry
from zoarium.data.archives import Members, read_tar

SMALL = {"data_batch": 12, "test_batch": 20, "train": 200, "test": 100}


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOARIUM_OFFLINE", "1")
    monkeypatch.setenv("ZOARIUM_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "RECORDS", SMALL)
    data_registry._load.cache_clear()


def offer(monkeypatch, module, name, path):
    """Let the file at `path` be what was published."""
    content = path.read_bytes()
    known = getattr(module, name)
    facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(module, name, dataclasses.replace(known, **facts))


def records(n, labels, classes, seed):
    draw = np.random.default_rng(seed)
    label = np.stack([draw.permutation(n) % (classes if last else 20) for last in [False] * (labels - 1) + [True]], 1)
    return label.astype(np.uint8), draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def packed(label, images):
    return np.concatenate([label, images.reshape(len(images), -1)], 1).tobytes()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar10_members():
    parts = {f"data_batch_{n}.bin": records(12, 1, 10, n) for n in range(1, 6)}
    parts["test_batch.bin"] = records(20, 1, 10, 6)
    files = {f"cifar-10-batches-bin/{name}": packed(*part) for name, part in parts.items()}
    return parts, {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n", **files}


def cifar100_members():
    parts = {"train.bin": records(200, 2, 100, 0), "test.bin": records(100, 2, 100, 1)}
    files = {f"cifar-100-binary/{name}": packed(*part) for name, part in parts.items()}
    names = "".join(f"kind{n}\n" for n in range(100)).encode()
    return parts, {**files, "cifar-100-binary/fine_label_names.txt": names}


def test_cifar10_has_the_pixels_labels_and_names_of_its_archive(tmp_path, monkeypatch):
    parts, members = cifar10_members()
    offer(monkeypatch, cifar, "CIFAR10", tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members))
    data = load("cifar10", n_train=60, n_test=20, normalize=False)
    label, images = parts["data_batch_2.bin"]
    torch.testing.assert_close(data.train.x[12:24], torch.from_numpy(images).float() / 255)
    assert data.train.y[12:24].tolist() == label[:, 0].tolist()
    assert data.test.y.tolist() == parts["test_batch.bin"][0][:, 0].tolist()
    assert data.classes[3] == "cat"
    assert (data.train.x.dtype, data.train.y.dtype, data.in_shape) == (torch.float32, torch.int64, (3, 32, 32))


def test_normalised_channels_are_shifted_and_scaled_by_the_published_statistics(tmp_path, monkeypatch):
    _, members = cifar10_members()
    offer(monkeypatch, cifar, "CIFAR10", tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members))
    plain, scaled = (cifar.cifar10(n_train=60, n_test=20, normalize=n) for n in (False, True))
    mean, sd = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    torch.testing.assert_close(scaled.test.x, (plain.test.x - mean) / sd)


def test_a_share_of_images_keeps_classes_in_proportion_and_is_drawn_by_the_seed(tmp_path, monkeypatch):
    _, members = cifar100_members()
    offer(monkeypatch, cifar, "CIFAR100", tar(tmp_path / "cifar-100-binary.tar.gz", members))  # in the root itself
    whole, one, two = (cifar.cifar100(n_train=n, n_test=100, seed=s) for n, s in ((200, 0), (100, 0), (100, 1)))
    assert one.train.y.bincount().tolist() == [1] * 100
    assert one.fingerprint != two.fingerprint
    assert {tuple(x.flatten()[:9].tolist()) for x in one.train.x} < {
        tuple(x.flatten()[:9].tolist()) for x in whole.train.x
    }


def test_cifar100_takes_fine_labels_and_their_names(tmp_path, monkeypatch):
    parts, members = cifar100_members()
    offer(monkeypatch, cifar, "CIFAR100", tar(tmp_path / "cifar100" / "cifar-100-binary.tar.gz", members))
    data = cifar.cifar100(n_train=200, n_test=100)
    assert data.train.y.tolist() == parts["train.bin"][0][:, 1].tolist()
    assert data.classes[7] == "kind7"


def test_an_unpacked_folder_serves_as_well_and_the_root_is_no_part_of_the_name(tmp_path):
    _, members = cifar10_members()
    for name, content in members.items():
        path = tmp_path / "mine" / "cifar10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    data = load("cifar10", n_train=60, n_test=20, root=str(tmp_path / "mine"))
    assert data.name == "cifar10(n_test=20, n_train=60)"
    with pytest.raises(DataError, match=r"'cifar10' needs cifar-10-binary.tar.gz"):
        load(data.name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar10", r"needs cifar-10-binary.tar.gz \(170 MB, sha256 c4a38c50.*md5 c32a1d4a.*ZOARIUM_OFFLINE is set"),
        ("cifar100", r"needs cifar-100-binary.tar.gz \(169 MB, sha256 58a81ae1"),
        ("svhn", r"needs train_32x32.mat \(182 MB, sha256 435e94d6"),
        ("tiny_imagenet", r"needs tiny-imagenet-200.zip \(248 MB, sha256 6198c8ae"),
        ("cifar10(n_train=0)", "needs cifar-10-binary"),
        ("tiny_imagenet(size=30)", "size must be 64, 32 or 16"),
    ],
)
def test_without_files_and_network_each_says_what_to_put_where(tmp_path, name, says):
    with pytest.raises(DataError, match=says):
        load(name)


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


LAST = "cifar-10-batches-bin/test_batch.bin"
BLANK = bytes(3073)
HOSTILE = {
    "a symbolic link": ({LAST: link(LAST, tarfile.SYMTYPE, "/etc/passwd")}, "must be a plain file.*a link or device"),
    "a hard link": ({LAST: link(LAST, tarfile.LNKTYPE, "/etc/passwd")}, "must be a plain file.*a link or device"),
    "a device": ({LAST: link(LAST, tarfile.CHRTYPE, "")}, "a link or device"),
    "a longer member": ({LAST: BLANK * 20 + b"x"}, "at most 61,460 bytes, found 61,461"),
    "a shorter member": ({LAST: BLANK * 19}, "must have 61,460 bytes.*found 58,387"),
    "a label too high": ({LAST: BLANK + b"\x0a" + BLANK[1:] + BLANK * 18}, "record 1 of test_batch.bin has label 10"),
    "a missing member": ({LAST: None}, f"holds no {LAST}"),
    "a member that would escape": ({LAST: None, f"../{LAST}": BLANK * 20}, f"holds no {LAST}"),
    "a huge member": ({LAST: None, "zeros": bytes(4_000_000)}, "holds far more than"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_is_not_as_it_should_be_is_refused_and_writes_nothing(tmp_path, monkeypatch, kind):
    change, says = HOSTILE[kind]
    members = {name: content for name, content in {**cifar10_members()[1], **change}.items() if content is not None}
    offer(monkeypatch, cifar, "CIFAR10", tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members))
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(DataError, match=says):
        cifar.cifar10(n_train=60, n_test=20)
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("cut", [0, 10, 5000])
def test_a_truncated_archive_is_called_damaged(tmp_path, monkeypatch, cut):
    path = tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", cifar10_members()[1])
    path.write_bytes(path.read_bytes()[:cut])
    offer(monkeypatch, cifar, "CIFAR10", path)
    with pytest.raises(DataError, match="is damaged"):
        cifar.cifar10(n_train=60, n_test=20)


def flips(whole, count):
    draw = np.random.default_rng(0)
    for _ in range(count):
        flipped = bytearray(whole)
        flipped[draw.integers(len(whole))] ^= int(draw.integers(1, 256))
        yield bytes(flipped)


def test_a_flipped_byte_anywhere_in_an_archive_is_refused(tmp_path, monkeypatch):
    path = tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", cifar10_members()[1])
    offer(monkeypatch, cifar, "CIFAR10", path)
    for content in flips(path.read_bytes(), 20):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"has sha256 .* was published with"):
            cifar.cifar10(n_train=60, n_test=20)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_reader_of_archives_gives_bounded_content_or_a_data_error_whatever_the_bytes(tmp_path, kind):
    members = {f"part{n}": bytes(range(256)) * n for n in range(1, 5)}
    path = tar(tmp_path / "archive", members) if kind == "tar" else tmp_path / "archive"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    refused = []
    for content in flips(path.read_bytes(), 200):
        path.write_bytes(content)
        try:
            if kind == "tar":
                found = read_tar(path, {name: len(content) for name, content in members.items()})
            else:
                with Members(path, 1024, 10) as zipped:
                    found = {name: zipped.read(name) for name in members}
            assert all(len(content) <= 1024 for content in found.values())
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert all(str(path) in message for message in refused)


def test_more_images_than_there_are_is_an_error(tmp_path, monkeypatch):
    offer(monkeypatch, cifar, "CIFAR10", tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", cifar10_members()[1]))
    for n in (0, 61):
        with pytest.raises(DataError, match=f"n_train must lie between 1 and 60, found {n}"):
            cifar.cifar10(n_train=n, n_test=20)


def test_cifar100_with_too_few_names_is_refused(tmp_path, monkeypatch):
    members = {**cifar100_members()[1], "cifar-100-binary/fine_label_names.txt": b"one\ntwo\n"}
    offer(monkeypatch, cifar, "CIFAR100", tar(tmp_path / "cifar100" / "cifar-100-binary.tar.gz", members))
    with pytest.raises(DataError, match="must name 100 classes, found 2"):
        cifar.cifar100(n_train=200, n_test=100)


def mats(tmp_path, monkeypatch, train=None):
    draw = np.random.default_rng(0)
    out = []
    for name, file, n in (("TRAIN", "train_32x32.mat", 20), ("TEST", "test_32x32.mat", 10)):
        x = draw.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        content = {"X": x, "y": y} if train is None or name == "TEST" else train
        path = tmp_path / "svhn" / file
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            savemat(path, content, do_compression=True)
        offer(monkeypatch, svhn, name, path)
        out.append((x, y))
    return out


def test_svhn_has_its_pixels_upright_and_label_10_is_the_digit_0(tmp_path, monkeypatch):
    (x, _), _ = mats(tmp_path, monkeypatch)
    data = load("svhn", n_train=20, n_test=10, normalize=False)
    assert data.train.x[3, 1, 5, 7].item() == pytest.approx(x[5, 7, 1, 3] / 255)
    assert data.train.y.tolist() == [*range(1, 10), 0] * 2
    assert data.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "MATLAB file with X and y: 'y'"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "X must be bytes of shape.*found float64"),
        ({"X": np.zeros((2, 32, 32, 3), np.uint8), "y": np.ones((2, 1))}, r"found uint8 of shape \(2, 32, 32, 3\)"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]])}, "2 whole numbers from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]])}, "2 whole numbers from 1 to 10"),
        ({"X": {"a": 1}, "y": np.array([[1]])}, "X must be bytes"),
        ({"X": np.array([print, 1], dtype=object)[1:], "y": np.array([[1]])}, "X must be bytes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "cannot be read as a MATLAB file"),
        (b"no MATLAB file at all" * 20, "cannot be read as a MATLAB file"),
        (b"", "cannot be read as a MATLAB file"),
    ],
)  # fmt: skip
def test_a_matlab_file_that_is_not_as_it_should_be_is_refused(tmp_path, monkeypatch, content, says):
    mats(tmp_path, monkeypatch, content)
    with pytest.raises(DataError, match=says):
        svhn.svhn(n_train=2, n_test=2)


def jpeg(colour, mode="RGB", size=(64, 64)):
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "JPEG", quality=95)
    return out.getvalue()


WNIDS = ("n03", "n01", "n02")


def tiny_members():
    members = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish, Carassius\nn02\tcat\nn99\tother\n"}
    for n, wnid in enumerate(sorted(WNIDS)):
        for i in range(2):
            members[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg((80 * n, 100, 10 * i))
        members[f"train/{wnid}/{wnid}_boxes.txt"] = b"0 0 1 1\n"
    for n in range(4):
        members[f"val/images/val_{n}.JPEG"] = jpeg(200, "L") if n == 3 else jpeg((80 * (n % 3), 0, 0))
    members["val/val_annotations.txt"] = "".join(
        f"val_{n}.JPEG\t{sorted(WNIDS)[n % 3]}\t0\t0\t62\t62\n" for n in range(4)
    ).encode()
    return members


def tiny(tmp_path, monkeypatch, members=None, unpacked=False):
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", 2)
    monkeypatch.setattr(tiny_imagenet, "N_TEST", 4)
    home = tmp_path / "tiny_imagenet"
    home.mkdir(exist_ok=True)
    members = tiny_members() if members is None else members
    if unpacked:
        for name, content in members.items():
            path = home / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return home
    with zipfile.ZipFile(home / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    offer(monkeypatch, tiny_imagenet, "ARCHIVE", home / "tiny-imagenet-200.zip")
    return home


PARTS = {"n_train": 6, "n_test": 4}


@pytest.mark.parametrize("unpacked", [False, True])
def test_tiny_imagenet_has_the_pixels_and_labels_of_its_archive_or_folder(tmp_path, monkeypatch, unpacked):
    tiny(tmp_path, monkeypatch, unpacked=unpacked)
    data = load("tiny_imagenet", normalize=False, **PARTS)
    assert data.classes == ("goldfish (n01)", "cat (n02)", "n03 (n03)")
    assert data.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.y.tolist() == [0, 1, 2, 0]
    assert data.in_shape == (3, 64, 64)
    torch.testing.assert_close(data.train.x[:, 0, 9, 9] * 255, torch.tensor([0.0, 0, 80, 80, 160, 160]), atol=3, rtol=0)
    assert data.test.x[3].unique().tolist() == pytest.approx([200 / 255])  # grey: three equal channels
    small = tiny_imagenet.tiny_imagenet(normalize=False, size=32, **PARTS)
    torch.testing.assert_close(small.test.x, data.test.x.reshape(4, 3, 32, 2, 32, 2).mean((3, 5)))


def test_images_are_decoded_once_and_a_flipped_bit_or_another_source_decodes_them_again(tmp_path, monkeypatch):
    home = tiny(tmp_path, monkeypatch)
    first = tiny_imagenet.tiny_imagenet(**PARTS)
    times = []
    decode = tiny_imagenet._decode
    monkeypatch.setattr(tiny_imagenet, "_decode", lambda source: times.append(1) or decode(source))
    assert tiny_imagenet.tiny_imagenet(**PARTS).fingerprint == first.fingerprint
    assert not times
    cache = home / tiny_imagenet.CACHE
    content = bytearray(cache.read_bytes())
    content[-100] ^= 1
    cache.write_bytes(content)
    assert tiny_imagenet.tiny_imagenet(**PARTS).fingerprint == first.fingerprint
    assert len(times) == 1
    tiny(tmp_path, monkeypatch, {**tiny_members(), "val/images/val_0.JPEG": jpeg((255, 255, 255))})
    assert tiny_imagenet.tiny_imagenet(**PARTS).fingerprint != first.fingerprint
    assert len(times) == 2
    assert sorted(p.name for p in home.iterdir()) == [tiny_imagenet.CACHE, "tiny-imagenet-200.zip"]


def test_where_nothing_can_be_kept_images_are_decoded_all_the_same(tmp_path, monkeypatch):
    home = tiny(tmp_path, monkeypatch)
    (home / tiny_imagenet.CACHE).mkdir()
    assert len(tiny_imagenet.tiny_imagenet(**PARTS).train) == 6
    assert sorted(p.name for p in home.iterdir()) == [tiny_imagenet.CACHE, "tiny-imagenet-200.zip"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train/n01/images/n01_1.JPEG": None}, "train/n01 must hold 2 JPEG images, found 1"),
        ({"train/n01/images/n01_0.JPEG": b"no picture"}, "n01_0.JPEG is no image that can be used"),
        ({"train/n01/images/n01_0.JPEG": jpeg(0, "L", (65, 64))}, "it has 65 x 64 pixels, not 64 x 64"),
        ({"train/n01/images/n01_0.JPEG": jpeg((1, 2, 3))[:300]}, "n01_0.JPEG is no image that can be used"),
        ({"train/n01/images/n01_0.JPEG": bytes(8 << 20)}, "n01_0.JPEG has more than 4,194,304 bytes"),
        ({"wnids.txt": b"n01\nn02\n"}, "wnids.txt must name 3 classes, found 2"),
        ({"wnids.txt": b"n01\nn02\n../../n03\n"}, "wnids.txt must name 3 classes"),
        ({"wnids.txt": None}, "holds no tiny-imagenet-200/wnids.txt"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn01\n"}, "a known class to 4 images, found 1 lines"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn77\n" * 4}, "a known class to 4 images"),
        ({"val/val_annotations.txt": b"../../secret\tn01\n" * 4}, "holds no tiny-imagenet-200/val/images/../../secret"),
    ],
)  # fmt: skip
def test_a_tiny_imagenet_that_is_not_as_it_should_be_is_refused(tmp_path, monkeypatch, change, says):
    members = {name: content for name, content in {**tiny_members(), **change}.items() if content is not None}
    home = tiny(tmp_path, monkeypatch, members)
    with pytest.raises(DataError, match=says):
        tiny_imagenet.tiny_imagenet(**PARTS)
    assert [path.name for path in home.iterdir()] == ["tiny-imagenet-200.zip"]


def test_no_name_in_a_folder_leads_out_of_it(tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(jpeg((1, 2, 3)))
    escaping = b"../../../../secret\tn01\n" * 4
    tiny(tmp_path, monkeypatch, {**tiny_members(), "val/val_annotations.txt": escaping}, unpacked=True)
    with pytest.raises(DataError, match=r"holds no val/images/../../../../secret"):
        tiny_imagenet.tiny_imagenet(**PARTS)


def test_a_file_that_is_no_archive_is_called_so(tmp_path, monkeypatch):
    home = tiny(tmp_path, monkeypatch)
    (home / "tiny-imagenet-200.zip").write_bytes(b"PK\x03\x04 but no more")
    offer(monkeypatch, tiny_imagenet, "ARCHIVE", home / "tiny-imagenet-200.zip")
    with pytest.raises(DataError, match="is no zip archive"):
        tiny_imagenet.tiny_imagenet(**PARTS)


def test_tiny_imagenet_without_pillow_names_the_install_line(tmp_path, monkeypatch):
    tiny(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'zoarium\[data\]'"):
        tiny_imagenet.tiny_imagenet(**PARTS)
