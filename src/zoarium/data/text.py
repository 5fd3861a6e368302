"""Language modelling: documents become windows of tokens, each with the token that follows.

Whole documents go to the training or the test split, so that no sentence is in both. Within a split the documents stand
one after another, each closed by the token ``<|endoftext|>``, and are cut into windows that do not overlap.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoarium._core.errors import DataError
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.registry import dataset
from zoarium.data.tokens import Tokenizer, as_bytes, learn_tokenizer

TEST_SHARE = 0.15  # of the text, at most: whole documents are chosen that stay below
FEW = 4096  # tokens whose names are kept with the data set

# Pure Python, one file each, in every Python from 3.11 on, and mostly there for long.
MODULES = (
    "argparse", "ast", "base64", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "dis", "doctest", "enum", "fileinput", "fractions", "ftplib", "functools", "gettext",
    "gzip", "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "mimetypes", "ntpath", "operator",
    "optparse", "os", "pdb", "pickle", "pickletools", "pkgutil", "platform", "plistlib", "poplib", "posixpath",
    "pprint", "pstats", "pydoc", "random", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket",
    "socketserver", "ssl", "statistics", "subprocess", "symtable", "tarfile", "tempfile", "textwrap", "threading",
    "timeit", "tokenize", "trace", "traceback", "tracemalloc", "turtle", "types", "typing", "uuid", "warnings", "wave",
    "weakref", "webbrowser", "zipapp",
)  # fmt: skip


def from_text(
    documents: Sequence[str], *, tokenizer: Tokenizer | None = None, vocabulary: int = 0, context: int = 64,
    n_train: int | None = None, n_test: int | None = None, seed: int = 0, name: str = "text",
) -> Dataset:  # fmt: skip
    """A language task from some texts.

    Parameters
    ----------
    documents : sequence of str
        At least two.
    tokenizer : Tokenizer, optional
        By default one learnt from the training documents, with a token for every byte of all of them.
    vocabulary : int, default 0
        Its number of tokens; 0 takes one for each byte and merges none.
    context : int, default 64
        Tokens in a window.
    n_train, n_test : int, optional
        Windows in the splits, drawn from all there are; by default all.
    seed : int, default 0
        Draws which documents are held out (at most 15 % of the text, at least one) and which windows are kept.
    name : str, default "text"

    Returns
    -------
    Dataset
        Task "language": `x` (N, context) tokens, `y` (N, context) the tokens that follow.

    Raises
    ------
    DataError
        For fewer than two documents, a split with fewer windows than asked for, or a vocabulary the text cannot fill.

    Examples
    --------
    >>> from_text(["the cat sat on the mat. " * 9, "a dog sat on the cat. "], context=8, n_train=20)
    Dataset('text', 20 train + 2 test, input (8,), vocabulary of 14)
    """
    tokenizer, train, test = _divided(documents, tokenizer, vocabulary, seed, name)
    if context < 1:
        raise DataError(f"data {name!r}: context must be at least 1 token, found {context}.")
    splits = []
    for kind, texts, wanted in (("train", train, n_train), ("test", test, n_test)):
        stream = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.end)]
        splits.append(_split(name, kind, torch.tensor(stream), context, wanted, seed))
    names = tokenizer.names if tokenizer.size <= FEW else ()
    return Dataset(name, splits[0], splits[1], "language", tokenizer.size, names)


def _split(name: str, kind: str, stream: Tensor, context: int, wanted: int | None, seed: int) -> Split:
    """Windows of a stream of tokens, `wanted` of them drawn by the seed."""
    found = max(0, len(stream) - 1) // context
    if found < 1 or (wanted is not None and not 1 <= wanted <= found):
        raise DataError(
            f"data {name!r}: n_{kind} windows of context={context} must lie between 1 and what the text has, {found}; "
            f"found {wanted}. Ask for fewer or shorter windows, or give more text."
        )
    x, y = (stream[shift : shift + found * context].view(found, context) for shift in (0, 1))
    return Split(x.clone(), y.clone()).sample(wanted, "windows", kind, seed)


def _divided(
    documents: Sequence[str], tokenizer: Tokenizer | None, vocabulary: int, seed: int, name: str
) -> tuple[Tokenizer, list[str], list[str]]:
    """The tokenizer, the training and the test documents, each in their first order."""
    if isinstance(documents, str) or len(documents) < 2:
        raise DataError(f"data {name!r} needs at least 2 documents, to train and test on, found {len(documents)!r}.")
    lengths = [len(as_bytes(text)) for text in documents]
    order = torch.randperm(len(documents), generator=generator("documents", seed)).tolist()
    held: set[int] = set()
    size = 0
    for n in order:
        if size + lengths[n] <= TEST_SHARE * sum(lengths):
            held.add(n)
            size += lengths[n]
    held = held or {min(order, key=lambda n: lengths[n])}
    train = [text for n, text in enumerate(documents) if n not in held]
    if tokenizer is None:
        # Every byte of the test text has a token too: the size of the vocabulary must not depend on the seed.
        alphabet = bytes(sorted(set().union(*(text.encode() for text in documents))))
        tokenizer = learn_tokenizer(train, vocabulary, alphabet=alphabet)
    return tokenizer, train, [documents[n] for n in sorted(held)]


def _tokenizer_of(documents: Sequence[str], vocabulary: int, seed: int, name: str) -> Tokenizer:
    return _divided(documents, None, vocabulary, seed, name)[0]


@dataset(
    "pydoc_topics",
    reference="The help texts of the running Python (pydoc_data.topics)",
    licence="Python Software Foundation License 2",
    tokenizer=lambda *, vocabulary=0, seed=0, **_: _tokenizer_of(_topics(), vocabulary, seed, "pydoc_topics"),
)
def pydoc_topics(
    *, context: int = 64, vocabulary: int = 0, n_train: int = 1600, n_test: int = 200, seed: int = 0
) -> Dataset:
    """Python's help texts as a language task: 0.4 MB of English prose with code, a topic a document.

    Topics that are sections of others are left out, so that no test text is trained on.

    Parameters
    ----------
    context : int, default 64
        Tokens in a window.
    vocabulary : int, default 0
        Tokens, learnt by byte-pair merges from the training documents; 0 takes one for each byte (some 100).
    n_train, n_test : int
        Windows in the splits; the text has some 4,900 and 870 of 64 bytes.
    seed : int, default 0
        Draws the documents held out, and the windows.

    Returns
    -------
    Dataset
        The text is that of the Python that runs: another one (its version is in a zoo's record) gives other
        windows, which the fingerprint shows.
    """
    return from_text(
        _topics(), vocabulary=vocabulary, context=context, n_train=n_train, n_test=n_test, seed=seed,
        name="pydoc_topics",
    )  # fmt: skip


@dataset(
    "stdlib_text",
    reference="Source files of the running Python's standard library",
    licence="Python Software Foundation License 2",
    tokenizer=lambda *, vocabulary=0, seed=0, **_: _tokenizer_of(_sources(), vocabulary, seed, "stdlib_text"),
)
def stdlib_text(
    *, context: int = 64, vocabulary: int = 0, n_train: int = 4096, n_test: int = 512, seed: int = 0
) -> Dataset:
    """Python's standard library as a language task: 3.2 MB of source code, a module a document; read, never imported.

    Parameters
    ----------
    context : int, default 64
        Tokens in a window.
    vocabulary : int, default 0
        Tokens, learnt by byte-pair merges from the training documents; 0 takes one for each byte (some 160).
    n_train, n_test : int
        Windows in the splits; the text has some 42,000 and 7,000 of 64 bytes.
    seed : int, default 0
        Draws the modules held out, and the windows.

    Returns
    -------
    Dataset
        The text is that of the Python that runs: another one (its version is in a zoo's record) gives other
        windows, which the fingerprint shows.

    Raises
    ------
    DataError
        Where Python was installed without its sources.
    """
    return from_text(
        _sources(), vocabulary=vocabulary, context=context, n_train=n_train, n_test=n_test, seed=seed,
        name="stdlib_text",
    )  # fmt: skip


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "data 'pydoc_topics' needs Python's help texts, but this Python was installed without pydoc_data; "
            "install a full one, or choose data='stdlib_text'."
        ) from error
    return distinct([topics[key] for key in sorted(topics)])


def distinct(documents: Sequence[str]) -> list[str]:
    """Documents that do not repeat another: one whose long lines mostly stand in a longer one is left out.

    Help topics such as "for" are sections of others such as "compound"; apart, they would leak from one split into the
    other.
    """
    lines = [{line for raw in text.splitlines() if len(line := raw.strip()) > 40} for text in documents]
    order = sorted(range(len(documents)), key=lambda n: (-len(documents[n]), n))
    kept: list[int] = []
    for n in order:
        if not any(lines[n] and len(lines[n] & lines[k]) > len(lines[n]) / 2 for k in kept):
            kept.append(n)
    return [documents[n] for n in sorted(kept)]


def _sources() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for module in MODULES if (file := folder / f"{module}.py").is_file()]
    if len(files) < len(MODULES) // 2:
        raise DataError(
            f"data 'stdlib_text' reads the sources of Python's standard library, but {folder} holds {len(files)} of "
            f"{len(MODULES)} (Python {platform.python_version()}); use a Python installed with its sources, or "
            "data='pydoc_topics'."
        )
    return [file.read_text(encoding="utf-8") for file in files]
