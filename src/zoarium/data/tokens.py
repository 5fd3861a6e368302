"""Tokens of bytes, and byte-pair merges learnt from a text.

Start with one token for each byte. Split the text into words, count the pairs of neighbouring tokens inside words, join
the most frequent pair into a new token, and repeat: Sennrich, Haddow & Birch, "Neural machine translation of rare words
with subword units", 2016; over bytes: Radford et al. 2019. Of pairs that are equally frequent the one of smaller bytes
goes first, so the same text gives the same tokens everywhere.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from zoarium._core.errors import DataError

END = "<|endoftext|>"
# Letters, digits or signs with the space before them; runs of white space keep their last space for the next word.
_WORD = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Tokenizer:
    """Text to tokens and back, byte by byte.

    Parameters
    ----------
    alphabet : bytes
        The bytes that have a token, which is their place in it.
    merges : tuple of pairs of bytes
        What to join, first come first served. New tokens are numbered in this order, after the bytes.

    Notes
    -----
    The last token ends a document; ``size`` counts it.

    Examples
    --------
    >>> tokens = learn_tokenizer(["low lower lowest"], vocabulary=11)
    >>> tokens.size, tokens.names[:4], tokens.names[8:]
    (11, (' ', 'e', 'l', 'o'), ('lo', 'low', '<|endoftext|>'))
    >>> tokens.encode("lower"), tokens.decode(tokens.encode("lower"))
    ([9, 1, 4], 'lower')
    """

    alphabet: bytes
    merges: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.tokens) + 1

    @property
    def end(self) -> int:
        """The token that ends a document."""
        return len(self.tokens)

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """Bytes of each token but the last."""
        made = (one + two for one, two in self.merges)  # "a" + "bc" and "ab" + "c" make the same
        return tuple(dict.fromkeys((*(bytes([b]) for b in self.alphabet), *made)))

    @property
    def names(self) -> tuple[str, ...]:
        r"""Tokens in print, all different: line breaks as ``\n``, bytes that are no text as ``\xe2``."""
        return (*(_printed(token) for token in self.tokens), END)

    @cached_property
    def _number(self) -> dict[bytes, int]:
        return {token: n for n, token in enumerate(self.tokens)}

    @cached_property
    def _rank(self) -> dict[tuple[bytes, bytes], int]:
        return {pair: n for n, pair in enumerate(self.merges)}

    @cached_property
    def _known_words(self) -> dict[bytes, list[int]]:
        return {}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without one for its end.

        Raises
        ------
        DataError
            For a character that has no token.
        """
        data = as_bytes(text)
        unknown = set(data) - set(self.alphabet)
        if unknown:
            odd = next(c for c in text if set(c.encode()) & unknown)
            raise DataError(
                f"the character {odd!r} at position {text.index(odd)} has no token: the tokenizer was learnt from a "
                "text without it; replace it, or learn the tokenizer from text that has it."
            )
        if not self.merges:
            return [self._number[data[i : i + 1]] for i in range(len(data))]
        out: list[int] = []
        for word in _WORD.findall(data):
            numbers = self._known_words.get(word)
            if numbers is None:
                numbers = self._known_words[word] = [self._number[token] for token in self._merged(word)]
            out += numbers
        return out

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; the end of a document is left out, bytes that make no character become U+FFFD.

        Raises
        ------
        DataError
            For a number that is no token.
        """
        parts = []
        for number in tokens:
            number = int(number)
            if not 0 <= number < self.size:
                raise DataError(f"{number} is no token: this vocabulary has 0 to {self.size - 1}.")
            if number != self.end:
                parts.append(self.tokens[number])
        return b"".join(parts).decode(errors="replace")

    def _merged(self, word: bytes) -> list[bytes]:
        parts = [word[i : i + 1] for i in range(len(word))]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if pair not in self._rank:
                break
            parts = _join(parts, pair)
        return parts


def as_bytes(text: str) -> bytes:
    """UTF-8 of a text, or an error that says where it is none."""
    if not isinstance(text, str):
        raise DataError(f"a document must be a text, found {type(text).__name__}; decode or convert it first.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half a character ({text[error.start]!r}) at position {error.start}; read it as UTF-8, "
            "or with errors='replace'."
        ) from error


def learn_tokenizer(texts: Sequence[str], vocabulary: int = 0, *, alphabet: bytes | None = None) -> Tokenizer:
    """A tokenizer for some texts.

    Parameters
    ----------
    texts : sequence of str
        What to learn merges from.
    vocabulary : int, default 0
        Tokens wanted, the end of a document included; 0 makes one for each byte that occurs and merges none.
    alphabet : bytes, optional
        Bytes that have a token, by default those of `texts`.

    Raises
    ------
    DataError
        For fewer tokens than bytes, or more than the text has pairs for.

    Notes
    -----
    Each merge touches only the words that hold its pair: 1 MB of text and 512 tokens take about a second.
    """
    if isinstance(texts, str):
        raise DataError("texts must be a list of texts, found a single one; put it in a list.")
    encoded = [as_bytes(text) for text in texts]
    alphabet = bytes(sorted(set().union(*encoded))) if alphabet is None else alphabet
    if not alphabet:
        raise DataError("there is no text to learn tokens from; give at least one character.")
    wanted = vocabulary - 1 - len(alphabet)
    if vocabulary == 0:
        return Tokenizer(alphabet)
    if wanted < 0:
        raise DataError(
            f"vocabulary must be 0 (a token for each byte) or at least {len(alphabet) + 1}, the {len(alphabet)} bytes "
            f"of this text and an end, found {vocabulary}."
        )
    learnt = Tokenizer(alphabet, _learn(Counter(word for data in encoded for word in _WORD.findall(data)), wanted))
    if learnt.size < vocabulary:
        raise DataError(
            f"vocabulary={vocabulary} is more than this text can fill: it has frequent pairs for {learnt.size} tokens; "
            "ask for fewer."
        )
    return learnt


def _learn(counts: Counter[bytes], wanted: int) -> tuple[tuple[bytes, bytes], ...]:
    """Merges for `wanted` new tokens, most frequent first; fewer if no pair occurs twice."""
    words = [([word[i : i + 1] for i in range(len(word))], count) for word, count in counts.items()]
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    where: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)  # words that hold (or once held) a pair
    for n, (parts, count) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += count
            where[pair].add(n)
    merges: list[tuple[bytes, bytes]] = []
    made: set[bytes] = set()
    while len(made) < wanted and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        for n in where.pop(best):
            parts, count = words[n]
            joined = _join(parts, best)
            for pair in pairwise(parts):
                pairs[pair] -= count
            for pair in pairwise(joined):
                pairs[pair] += count
                where[pair].add(n)
            words[n] = (joined, count)
        pairs = +pairs  # drops what occurs no more
        made.add(best[0] + best[1])
        merges.append(best)
    return tuple(merges)


def _join(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """`parts` with every occurrence of `pair`, from the left, made one."""
    out: list[bytes] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


def _printed(token: bytes) -> str:
    text = token.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] if c < "\x80" else f"\\u{ord(c):04x}" for c in text)
