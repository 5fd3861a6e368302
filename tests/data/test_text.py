from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoarium._core.errors import DataError
from zoarium.data import Dataset, Split, Tokenizer, from_arrays, from_text, learn_tokenizer, load, text, tokenizer
from zoarium.data.tokens import _WORD

BOOKS = ["the cat sat on the mat, and the cat ate. " * 5, "a dog\n  dug and dug.\n" * 6, "né à Évian €5 " * 7]


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5))
def test_every_text_of_the_bytes_learnt_comes_back(texts):
    bytewise = learn_tokenizer(texts)
    for one in texts:
        assert bytewise.decode(bytewise.encode(one)) == one
        assert b"".join(_WORD.findall(one.encode())) == one.encode()


@pytest.mark.parametrize("extra", [1, 5, 30])
def test_merged_tokens_come_back_and_take_fewer_places(extra):
    vocabulary = len(set("".join(BOOKS).encode())) + 1 + extra
    tokens = learn_tokenizer(BOOKS, vocabulary)
    assert tokens.size == vocabulary == len(set(tokens.names))
    for book in BOOKS:
        assert tokens.decode(tokens.encode(book)) == book
    assert sum(len(tokens.encode(b)) for b in BOOKS) < sum(len(b.encode()) for b in BOOKS)


def slow_merges(texts, wanted):
    """Byte pairs by counting everything afresh each time."""
    words = Counter(tuple(bytes([b]) for b in word) for t in texts for word in _WORD.findall(t.encode()))
    merges = []
    while len({a + b for a, b in merges}) < wanted:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined = Counter()
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                out.append(b"".join(word[i : i + step]))
                i += step
            joined[tuple(out)] += count
        words = joined
    return tuple(merges)


def test_merges_equal_those_of_counting_every_pair_afresh():
    texts = [*BOOKS, "aaaa aaa aa abab ababab bcbc abc abc " * 3]
    tokens = learn_tokenizer(texts, len(set("".join(texts).encode())) + 1 + 30)
    assert tokens.merges == slow_merges(texts, 30)


def test_a_merge_that_makes_a_token_again_takes_no_number():
    tokens = Tokenizer(b"abc", ((b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")))
    assert tokens.tokens == (b"a", b"b", b"c", b"ab", b"bc", b"abc")
    assert tokens.end == 6
    assert tokens.encode("abcbc") == [5, 4]


def test_no_merge_crosses_a_word():
    tokens = learn_tokenizer(["of the of the of the of the x9 x9 x9 "], 15)
    assert " the" in tokens.names
    assert not any(name.strip().count(" ") for name in tokens.names)
    assert not any(any(c.isalpha() for c in n) and any(c.isdigit() for c in n) for n in tokens.names[:-1])


def test_names_are_printable_and_differ():
    names = learn_tokenizer(["\\n\n\t\x00\x85é\\", "ü"]).names
    assert all(name.isprintable() for name in names)
    assert len(set(names)) == len(names)
    assert "\\n" in names and "\\\\" in names


def test_what_no_tokenizer_can_do_is_named():
    tokens = learn_tokenizer(["abc"])
    for call, says in [
        (lambda: tokens.encode("cab é"), "the character ' ' at position 3 has no token"),
        (lambda: tokens.decode([4]), "4 is no token: this vocabulary has 0 to 3"),
        (lambda: tokens.decode([-1]), "-1 is no token"),
        (lambda: learn_tokenizer(["abc"], 3), r"at least 4, the 3 bytes of this text and an end, found 3"),
        (lambda: learn_tokenizer(["abab"], 50), "more than this text can fill: it has frequent pairs for 4 tokens"),
        (lambda: learn_tokenizer(["abc"], -1), "vocabulary must be 0"),
        (lambda: learn_tokenizer(["a", "b\udcff"]), "text holds half a character .* at position 1"),
        (lambda: tokens.encode("\udcff"), "half a character"),
        (lambda: learn_tokenizer([""]), "no text to learn tokens from"),
        (lambda: learn_tokenizer("abc"), "a list of texts, found a single one"),
        (lambda: from_text(["abc", 3]), "a document must be a text, found int"),
        (lambda: tokenizer(from_text(BOOKS, context=8)), r"'text' was not loaded by name.*give it to from_text"),
        (lambda: tokenizer("digits"), "'digits' has no tokenizer; these have: .*pydoc_topics, stdlib_text"),
        (lambda: tokenizer("pydoc_topics(vocab=3)"), "unknown parameter of data 'pydoc_topics' 'vocab'"),
    ]:
        with pytest.raises(DataError, match=says):
            call()


def test_targets_are_the_next_tokens_and_windows_do_not_overlap():
    documents = ["abcdefghij", "klmnopqrst", "uvwxyz"]
    data = from_text(documents, context=4, seed=0)
    tokens = learn_tokenizer(documents)
    x, y = data.train.x, data.train.y
    assert x.dtype == y.dtype == torch.int64
    stream = [t for d in documents[:2] for t in (*tokens.encode(d), tokens.end)]  # 22 tokens: 5 windows and their ends
    assert x.flatten().tolist() == stream[:20]
    assert y.flatten().tolist() == stream[1:21]
    assert tokens.decode(data.test.x.flatten()) == "uvwx"  # the shortest is held out: none is below 15 % of the text


@pytest.mark.parametrize("name", ["pydoc_topics", "stdlib_text"])
def test_no_document_is_in_both_splits_and_the_vocabulary_does_not_depend_on_the_seed(name):
    documents = text._topics() if name == "pydoc_topics" else text._sources()
    sizes = set()
    for seed in (0, 1):
        tokens, train, test = text._divided(documents, None, 0, seed, name)
        sizes.add(tokens.size)
        assert not set(train) & set(test)
        assert sorted([*train, *test]) == sorted(documents)
        assert 0.13 < sum(len(t.encode()) for t in test) / sum(len(t.encode()) for t in documents) <= 0.15
    assert len(sizes) == 1


@pytest.mark.parametrize("name", ["pydoc_topics", "stdlib_text(vocabulary=180)"])
def test_an_offline_text_has_the_sizes_it_promises_and_reads_as_text(name):
    data = load(name)
    sizes = {"pydoc_topics": (1600, 200), "stdlib_text": (4096, 512)}[name.partition("(")[0]]
    assert (len(data.train), len(data.test)) == sizes
    assert data.task == "language"
    assert data.in_shape == (64,)
    assert torch.equal(data.train.x[:, 1:], data.train.y[:, :-1])
    assert int(max(data.train.y.max(), data.test.y.max())) < data.n_outputs == len(data.classes)
    documents = text._topics() if name == "pydoc_topics" else text._sources()
    tokens = tokenizer(data)
    whole = "".join(documents)
    for row in (0, 100):
        window = data.train.x[row].tolist()
        if tokens.end not in window:
            assert tokens.decode(window).strip("\ufffd") in whole


def test_a_document_that_is_a_section_of_another_is_left_out():
    part = "\n".join(f"this is a line of the part, number {n}, and it is long enough" for n in range(4))
    rest = "\n".join(f"this is a line of all the rest, number {n}, and quite long" for n in range(9))
    assert text.distinct([part, rest + "\n" + part, "short", part, rest[:300]]) == [rest + "\n" + part, "short"]


@pytest.mark.parametrize("documents", [text._topics, text._sources])
def test_next_to_no_line_of_the_test_text_is_trained_on(documents):
    _, train, test = text._divided(documents(), None, 0, 0, "offline")
    trained, tested = (
        {line.strip() for d in part for line in d.splitlines() if len(line) > 40} for part in (train, test)
    )
    assert len(tested) > 500
    assert len(tested & trained) < 0.03 * len(tested)


def test_another_seed_holds_out_other_documents_and_the_same_seed_gives_the_same_bits():
    one, again, two = (text.pydoc_topics(n_train=99, n_test=9, seed=s) for s in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: from_text(["ab"]), "at least 2 documents, to train and test on, found 1"),
        (lambda: from_text("one text"), "at least 2 documents"),
        (lambda: from_text(BOOKS, context=0), "context must be at least 1 token, found 0"),
        (
            lambda: from_text(BOOKS, n_train=10**6),
            r"n_train windows of context=64.*what the text has, 5; found 1000000",
        ),
        (lambda: from_text(BOOKS, n_test=0, context=8), r"n_test windows of context=8.*; found 0"),
        (lambda: from_text(["a", "b"], context=64), "n_train windows .* what the text has, 0"),
    ],
)
def test_text_that_gives_no_task_is_named(call, says):
    with pytest.raises(DataError, match=says):
        call()


def test_a_python_without_help_texts_or_sources_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"installed without pydoc_data.*stdlib_text"):
        text.pydoc_topics()
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"holds 0 of \d+.*pydoc_topics"):
        text.stdlib_text()


def test_noise_replaces_a_share_of_target_tokens_by_others_and_a_fraction_keeps_windows():
    data = load("pydoc_topics")
    noisy = data.variant(label_noise=0.2)
    wrong = noisy.train.y != data.train.y
    assert wrong.double().mean().item() == pytest.approx(0.2, abs=0.005)
    assert torch.equal(noisy.train.x, data.train.x) and noisy.test is data.test
    assert noisy.train.y.min() >= 0 and noisy.train.y.max() < data.n_outputs
    spread = (noisy.train.y - data.train.y)[wrong].remainder(data.n_outputs).bincount(minlength=data.n_outputs)
    assert spread[0] == 0 and spread[1:].min() > 0.5 * spread[1:].double().mean()
    small = data.variant(fraction=0.25, label_noise=0.2)
    rows = [noisy.train.x.tolist().index(x) for x in small.train.x[:5].tolist()]
    assert torch.equal(small.train.y[:5], noisy.train.y[rows])
    assert len(small.train) == 400


def test_a_language_task_says_its_vocabulary_and_is_not_made_of_plain_arrays():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    task = Dataset("t", Split(tokens, tokens), Split(tokens, tokens), "language", 50)
    assert repr(task) == "Dataset('t', 2 train + 2 test, input (3,), vocabulary of 50)"
    with pytest.raises(DataError, match="task must be 'classification' or 'regression', found 'language'"):
        from_arrays([[0.0], [1.0]], [0, 1], task="language")
