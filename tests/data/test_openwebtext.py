from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import polars as pl
import pytest
import torch
import zstandard
from tokenizers import ByteLevelBPETokenizer

from zoarium._core.errors import DataError, MissingExtraError
from zoarium.data import load, openwebtext, tokenizer
from zoarium.data import registry as data_registry

END = "<|endoftext|>"
PAGES = [
    f"Page {n} tells of the {n * n} things, and of  spaces\n and ünïcode {chr(0x4E00 + n)} too." * 3 for n in range(200)
]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOARIUM_OFFLINE", "1")
    monkeypatch.setenv("ZOARIUM_DATA", str(tmp_path))
    data_registry._load.cache_clear()
    home = tmp_path / "openwebtext"
    home.mkdir()
    return home


def learn(folder, whole=False):
    """A small byte-level tokenizer as vocab.json and merges.txt, or as one tokenizer.json."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(PAGES, vocab_size=400, special_tokens=[END], show_progress=False)
    if whole:
        made.save(str(folder / "tokenizer.json"))
    else:
        made.save_model(str(folder))
    return made


def write(folder, kind, pages=PAGES):
    lines = "".join(json.dumps({"text": page, "url": "x"}) + "\n" for page in pages)
    if kind == "txt":
        for n, page in enumerate(pages):
            (folder / "deep").mkdir(exist_ok=True)
            (folder / "deep" / f"{n:04}.txt").write_text(page, encoding="utf-8")
    elif kind == "parquet":
        pl.DataFrame({"text": pages, "other": range(len(pages))}).write_parquet(folder / "part.parquet")
    else:
        pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}[kind]
        (folder / f"part.{kind}").write_bytes(pack(lines.encode()))


KINDS = ("txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet")


def test_every_form_of_the_same_text_gives_the_same_windows(tmp_path, folder):
    prints = set()
    for kind in KINDS:
        root = tmp_path / kind
        (root / "openwebtext").mkdir(parents=True)
        learn(root / "openwebtext")
        write(root / "openwebtext", kind)
        data = load("openwebtext", context=16, n_train=300, n_test=5, root=str(root))
        assert data.name == "openwebtext(context=16, n_test=5, n_train=300)"
        assert (data.task, data.in_shape, data.n_outputs) == ("language", (16,), 400)
        prints.add(data.fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_windows_are_the_tokens_of_documents_in_order_with_an_end_after_each(folder, whole):
    peer = learn(folder, whole)
    write(folder, "jsonl")
    data = load("openwebtext", context=8, n_train=40, n_test=3)
    tokens = tokenizer(data)
    assert tokens.size == peer.get_vocab_size() == data.n_outputs
    stream = [*data.train.x.flatten().tolist(), int(data.train.y[-1, -1])]
    assert torch.equal(data.train.x.flatten()[1:], data.train.y.flatten()[:-1])
    first = stream[: stream.index(tokens.end)]
    assert first == peer.encode(PAGES[0]).ids
    assert tokens.decode(first) == PAGES[0]
    assert tokens.decode(tokens.encode("Page ünseen €")) == "Page ünseen €"


def test_a_page_that_spells_the_end_token_does_not_end_its_document(folder):
    learn(folder)
    write(folder, "jsonl", [f"before {END} after", *PAGES])
    tokens = tokenizer("openwebtext")
    assert tokens.end not in tokens.encode(f"before {END} after")


def test_the_same_text_is_never_in_both_splits_and_the_seed_draws_what_is_held_out(folder):
    learn(folder)
    write(folder, "jsonl", PAGES * 2)
    tokens = tokenizer("openwebtext")
    seen = {}
    for seed in (0, 1):
        data = openwebtext.openwebtext(context=1, n_train=20_000, n_test=100, seed=seed)
        pages = [tokens.decode(data.test.x.flatten()[:40]), tokens.decode(data.train.x.flatten())]
        held = [page for page in PAGES if page[:60] == pages[0][:60]]
        assert len(held) == 1 and held[0] not in pages[1]
        seen[seed] = held[0]
    assert seen[0] != seen[1]


def bins(folder, train=None, val=None):
    tokens = np.arange(1001, dtype="<u2") if train is None else train
    (folder / "train.bin").write_bytes(tokens if isinstance(tokens, bytes) else tokens.tobytes())
    (folder / "val.bin").write_bytes((np.arange(101, dtype="<u2") + 5000 if val is None else val).tobytes())


def test_bin_files_are_windows_drawn_from_the_whole_without_overlap(folder):
    bins(folder)
    data = load("openwebtext", context=10, n_train=40, n_test=10)
    assert data.n_outputs == 50_257
    starts = data.train.x[:, 0].tolist()
    assert len(set(starts)) == 40 and all(s % 10 == 0 for s in starts) and max(starts) > 700
    assert torch.equal(data.train.x, torch.tensor(starts)[:, None] + torch.arange(10))
    assert torch.equal(data.train.y, data.train.x + 1)
    assert data.test.x[:, 0].tolist() == list(range(5000, 5100, 10))
    assert openwebtext.openwebtext(context=10, n_train=40, n_test=10, seed=1).train.x[:, 0].tolist() != starts


def test_bin_files_with_a_tokenizer_beside_them_have_its_vocabulary(folder):
    learn(folder, whole=True)
    bins(folder, np.arange(300, dtype="<u2"), np.arange(300, dtype="<u2"))
    assert load("openwebtext", context=10, n_train=9, n_test=9).n_outputs == 400
    bins(folder, np.arange(500, dtype="<u2"), np.arange(300, dtype="<u2"))
    with pytest.raises(DataError, match=r"has token \d+, but the vocabulary has 400"):
        openwebtext.openwebtext(context=10, n_train=49, n_test=9)


@pytest.mark.parametrize(
    ("train", "params", "says"),
    [
        (b"abc", {}, r"train.bin has 3 bytes; it must hold uint16 tokens"),
        (b"", {}, r"train.bin has 0 bytes"),
        (None, {"n_train": 101}, r"train.bin has 100 windows of context=10, but n_train asks for 101"),
        (None, {"n_test": 11}, r"val.bin has 10 windows of context=10, but n_test asks for 11"),
        (None, {"context": 5000}, r"at least 5001 for context=5000"),
        (None, {"context": 0}, "context, n_train and n_test of at least 1, found 0"),
        (np.full(1001, 60_000, "<u2"), {}, r"has token 60000, but the vocabulary has 50,257"),
    ],
)
def test_bin_files_that_cannot_serve_say_why(folder, train, params, says):
    bins(folder, train)
    with pytest.raises(DataError, match=says):
        openwebtext.openwebtext(**{"context": 10, "n_train": 40, "n_test": 5, **params})


def broken_zst():
    whole = zstandard.ZstdCompressor().compress(b"".join(json.dumps({"text": p}).encode() + b"\n" for p in PAGES))
    return whole[:60] + bytes(40) + whole[100:]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "x"}\n', r"a.jsonl: line 2 must be a JSON object with a field 'text'"),
        ("a.jsonl", b"[" * 100_000, r"line 1 must be a JSON object"),
        ("a.jsonl", b'"text"\n', r"line 1 must be a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', r"'text' in line 1 must be text, found int"),
        ("a.jsonl", b'{"text": "' + b"x" * 300_000, r"line 1 has more than 200,000 bytes"),
        ("a.txt", b"caf\xe9", r"a.txt is no UTF-8 text: byte 0xe9 at 3"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:-9], r"a.jsonl.gz cannot be read"),
        ("a.jsonl.zst", b"no zstandard", r"a.jsonl.zst is damaged after line 0"),
        ("a.jsonl.zst", broken_zst(), r"a.jsonl.zst(: line \d+ must| is damaged)"),
        ("a.parquet", b"PAR1 and no more PAR1", r"a.parquet cannot be read as Parquet"),
    ],
)
def test_text_that_cannot_be_read_is_named_with_its_line(folder, monkeypatch, name, content, says):
    monkeypatch.setattr(openwebtext, "LONGEST_LINE", 200_000)
    learn(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        openwebtext.openwebtext(context=8, n_train=400, n_test=400)


def test_parquet_without_text_names_its_columns(folder):
    learn(folder)
    pl.DataFrame({"text": [1, 2]}).write_parquet(folder / "a.parquet")
    with pytest.raises(DataError, match=r"needs a column 'text' of strings, found .*Int64"):
        openwebtext.openwebtext(context=8, n_train=4, n_test=4)


def test_too_little_text_says_how_much_there_is(folder):
    learn(folder)
    write(folder, "jsonl")
    with pytest.raises(DataError, match=r"gives \d+ windows of context=8 for n_test, but 9,999 are asked for"):
        openwebtext.openwebtext(context=8, n_train=10, n_test=9999)


def test_half_a_character_in_json_is_replaced(folder):
    learn(folder)
    (folder / "a.jsonl").write_bytes(b'{"text": "x\\ud800y"}\n' * 3)
    write(folder, "jsonl")
    assert len(load("openwebtext", context=8, n_train=10, n_test=2).train) == 10


def test_an_empty_folder_and_a_missing_tokenizer_say_what_to_put_where(folder):
    with pytest.raises(DataError, match=r"reads a local folder, but .*openwebtext holds no text.*pydoc_topics"):
        load("openwebtext")
    write(folder, "jsonl")
    with pytest.raises(DataError, match=r"needs vocab.json \(1 MB, sha256 19613966.*encoder.json"):
        load("openwebtext")
    learn(folder)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(DataError, match=r"merges.txt cannot be read as a tokenizer"):
        load("openwebtext")


def test_a_tokenizer_without_an_end_is_refused(folder):
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(PAGES, vocab_size=300, show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    write(folder, "jsonl")
    with pytest.raises(DataError, match=r"tokenizer.json has no token '<\|endoftext\|>'"):
        load("openwebtext")


@pytest.mark.parametrize(("module", "package"), [("tokenizers", "tokenizers"), ("zstandard", "zstandard")])
def test_text_without_its_libraries_names_the_install_line(folder, monkeypatch, module, package):
    learn(folder)
    write(folder, "jsonl.zst")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs {package}.*pip install 'zoarium\[text\]'"):
        load("openwebtext")
