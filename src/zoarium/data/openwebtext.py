"""OpenWebText, the open copy of GPT-2's training text, in GPT-2's tokens.

The text (40 GB) is never downloaded by zoarium: it is read from a folder, in the form in which people have it.

- ``train.bin`` and ``val.bin``: tokens as little-endian uint16, a document after another (nanoGPT's form). They are
  mapped, not read: only the windows asked for become memory.
- ``*.txt`` (a document a file), ``*.jsonl``, ``*.jsonl.gz``, ``*.jsonl.zst`` or ``*.parquet`` with a field or column
  ``text``: documents are read in the order of the files' names until there are enough tokens. A document is held out if
  a hash of its text says so, hence the same text never lies in both splits.

Text is turned into tokens by ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, in the same folder; without them
by GPT-2's own, which is downloaded (1.5 MB). Gokaslan & Cohen, "OpenWebText corpus", 2019; Radford et al. 2019.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoarium._core.errors import DataError
from zoarium._core.extras import require
from zoarium._core.seeds import generator
from zoarium.data.dataset import Dataset, Split
from zoarium.data.download import Published, folders, published
from zoarium.data.registry import dataset
from zoarium.data.tokens import END

GPT2_SIZE = 50_257
VOCAB = Published(
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json", 1_042_301,
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", file="vocab.json",
)  # fmt: skip
MERGES = Published(
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe", 456_318,
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", file="merges.txt",
)  # fmt: skip
HELD_OUT = 0.02  # of documents
LONGEST_LINE = 64 << 20  # bytes of one document
KINDS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


class LibraryTokenizer:
    """A tokenizer of the library `tokenizers`, with the methods of :class:`zoarium.data.Tokenizer`.

    Parameters
    ----------
    wrapped : tokenizers.Tokenizer
    name : str
        Where it is from, for messages.
    """

    def __init__(self, wrapped: Any, name: str) -> None:
        self._wrapped = wrapped
        end = wrapped.token_to_id(END)
        if end is None:
            raise DataError(f"{name} has no token {END!r} to end documents with; add it, or use GPT-2's tokenizer.")
        self.end: int = end

    @property
    def size(self) -> int:
        """Tokens in all."""
        return self._wrapped.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without one for its end; text that looks like a special token is plain text."""
        return self._wrapped.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Any) -> str:
        """The text of some tokens; the end of a document is left out."""
        return self._wrapped.decode([int(token) for token in tokens], skip_special_tokens=True)


@dataset(
    "openwebtext",
    reference="Gokaslan & Cohen 2019, OpenWebText corpus; tokens: Radford et al. 2019",
    extra="text",
    download="a local folder",
    licence="CC0 for the collection; the pages remain their authors'",
    tokenizer=lambda *, root="", **_: _tokenizer(_folder(root), root),
)
def openwebtext(
    *, context: int = 1024, n_train: int = 10_000, n_test: int = 500, seed: int = 0, root: str = ""
) -> Dataset:
    """OpenWebText as a language task in GPT-2's 50,257 tokens, from a folder of yours.

    Put the text, or nanoGPT's ``train.bin`` and ``val.bin``, in the folder ``openwebtext`` of the root. Text needs the
    extra ``[text]``; ``.bin`` files need nothing. The tokens kept take 16 bytes each: 164 MB by default.

    Parameters
    ----------
    context : int, default 1024
        Tokens in a window.
    n_train, n_test : int
        Windows in the splits. From ``.bin`` files they are drawn from the whole; from text they are the first.
    seed : int, default 0
        Draws the windows, and with text the documents held out.
    root : str, optional
        Folder of data sets, by default ``$ZOARIUM_DATA`` or the user's cache. It is no part of the name.

    Returns
    -------
    Dataset
        Task "language": `x` (N, context), `y` the tokens that follow.

    Raises
    ------
    DataError
        If the folder holds no such file, a file cannot be read, or there is too little text.
    MissingExtraError
        For text, without the library that reads it.
    """
    if context < 1 or min(n_train, n_test) < 1:
        raise DataError(
            f"data 'openwebtext' needs context, n_train and n_test of at least 1, found {context}, {n_train}, {n_test}."
        )
    folder = _folder(root)
    if (folder / "train.bin").is_file() and (folder / "val.bin").is_file():
        own = _tokenizer(folder, root) if _has_tokenizer(folder) else None
        size = own.size if own else GPT2_SIZE
        train = _windows_of_bin(folder / "train.bin", "train", context, n_train, size, seed)
        test = _windows_of_bin(folder / "val.bin", "test", context, n_test, size, seed)
    else:
        tokenizer = _tokenizer(folder, root)
        size = tokenizer.size
        wanted = {"train": n_train * context + 1, "test": n_test * context + 1}
        streams = _streams(folder, tokenizer, wanted, seed)
        train, test = (_windows(streams[kind], kind, folder, context, wanted[kind]) for kind in ("train", "test"))
    return Dataset("openwebtext", train, test, "language", size)


def _folder(root: str) -> Path:
    """The folder that holds the text."""
    folder, _ = folders("openwebtext", root)
    if (folder / "train.bin").is_file() or any(_files(folder)):
        return folder
    raise DataError(
        f"data 'openwebtext' reads a local folder, but {folder} holds no text: put files ({', '.join(KINDS)}), or "
        "nanoGPT's train.bin and val.bin, there, or set ZOARIUM_DATA to the folder that has openwebtext in it. For a "
        "language task that needs no files choose data='pydoc_topics'."
    )


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.name.endswith(KINDS) and path.name != "merges.txt" and path.is_file():
                yield path


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()


def _tokenizer(folder: Path, root: str) -> LibraryTokenizer:
    require("tokenizers", "text", "the text of 'openwebtext'")
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not _has_tokenizer(folder):
        vocab, merges = published(VOCAB, "gpt2", root), published(MERGES, "gpt2", root)
    return _read_tokenizer(folder / "tokenizer.json", vocab, merges)


@lru_cache(maxsize=4)
def _read_tokenizer(whole: Path, vocab: Path, merges: Path) -> LibraryTokenizer:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    name = whole if whole.is_file() else merges
    try:
        if whole.is_file():
            wrapped = Tokenizer.from_file(str(whole))
        else:
            wrapped = Tokenizer(BPE.from_file(str(vocab), str(merges)))
            wrapped.pre_tokenizer = ByteLevel(add_prefix_space=False)
            wrapped.decoder = ByteLevelDecoder()
            wrapped.add_special_tokens([AddedToken(END, special=True)])
        wrapped.encode_special_tokens = True  # a page that spells <|endoftext|> does not end its document
        wrapped.no_truncation()
        wrapped.no_padding()
    except Exception as error:  # the library raises plain exceptions
        raise DataError(f"{name} cannot be read as a tokenizer: {str(error)[:200]}.") from error
    return LibraryTokenizer(wrapped, str(name))


def _windows_of_bin(path: Path, kind: str, context: int, wanted: int, size: int, seed: int) -> Split:
    length = path.stat().st_size
    if length % 2 or length < 2 * (context + 1):
        raise DataError(
            f"{path} has {length:,} bytes; it must hold uint16 tokens, at least {context + 1} for context={context}."
        )
    tokens = np.memmap(path, dtype="<u2", mode="r")
    found = (len(tokens) - 1) // context
    if wanted > found:
        raise DataError(f"{path} has {found:,} windows of context={context}, but n_{kind} asks for {wanted:,}.")
    rows = torch.randperm(found, generator=generator("windows", kind, seed))[:wanted].sort().values.tolist()
    windows = torch.from_numpy(np.stack([tokens[r * context : (r + 1) * context + 1].astype(np.int64) for r in rows]))
    if int(windows.max()) >= size:
        raise DataError(
            f"{path} has token {int(windows.max())}, but the vocabulary has {size:,}; put the tokenizer it was made "
            "with (tokenizer.json) beside it."
        )
    return Split(windows[:, :-1].clone(), windows[:, 1:].clone())


def _streams(folder: Path, tokenizer: LibraryTokenizer, wanted: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Tokens of each split, until both have what is wanted or the text ends."""
    streams: dict[str, list[int]] = {"train": [], "test": []}
    for path in _files(folder):
        for text in _documents(path):
            content = text.encode(errors="replace")  # JSON can hold half a character
            digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
            kind = "test" if int.from_bytes(digest, "little") < HELD_OUT * 2**64 else "train"
            if len(streams[kind]) < wanted[kind]:
                streams[kind] += [*tokenizer.encode(content.decode()), tokenizer.end]
            if all(len(streams[k]) >= wanted[k] for k in streams):
                return streams
    return streams


def _windows(stream: list[int], kind: str, folder: Path, context: int, wanted: int) -> Split:
    if len(stream) < wanted:
        raise DataError(
            f"{folder}: its text gives {max(0, len(stream) - 1) // context:,} windows of context={context} for "
            f"n_{kind}, but {wanted // context:,} are asked for (about 1 document in {1 / HELD_OUT:.0f} is held out to "
            "test); ask for fewer, or add text."
        )
    tokens = torch.tensor(stream[:wanted])
    return Split(tokens[:-1].view(-1, context).clone(), tokens[1:].view(-1, context).clone())


def _documents(path: Path) -> Iterator[str]:
    """Texts of a file, one after another."""
    try:
        if path.name.endswith(".txt"):
            yield _decoded(path.read_bytes(), path)
        elif path.name.endswith(".parquet"):
            yield from _parquet(path)
        else:
            yield from _json_lines(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {str(error) or type(error).__name__}.") from error


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: byte {content[error.start]:#x} at {error.start}.") from error


def _json_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as raw:
        stream: Any = raw
        if path.name.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        elif path.name.endswith(".zst"):
            zstandard = require("zstandard", "text", f"the file {path.name}")
            stream = io.BufferedReader(zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw))
        number = 0
        while True:
            try:
                line = stream.readline(LONGEST_LINE + 1)
            except (OSError, EOFError, zlib.error):
                raise
            except Exception as error:  # zstandard's own kind
                raise DataError(f"{path} is damaged after line {number}: {str(error)[:200]}.") from error
            if not line:
                return
            number += 1
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}: line {number} has more than {LONGEST_LINE:,} bytes; split such documents.")
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{path}: line {number} must be a JSON object with a field 'text', found {line[:60]!r}."
                ) from error
            if not isinstance(text, str):
                raise DataError(f"{path}: 'text' in line {number} must be text, found {type(text).__name__}.")
            yield text


def _parquet(path: Path) -> Iterator[str]:
    import polars as pl

    try:
        table = pl.scan_parquet(path)
        if table.collect_schema().get("text") != pl.String:
            raise DataError(f"{path} needs a column 'text' of strings, found {dict(table.collect_schema())}.")
        batch = 10_000
        for start in range(0, table.select(pl.len()).collect().item(), batch):
            yield from (t for t in table.select("text").slice(start, batch).collect()["text"] if t is not None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0][:200]}.") from error
