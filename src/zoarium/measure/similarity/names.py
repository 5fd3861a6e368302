"""Which tensors of different models are one and the same, when a prefix such as ``module.`` tells their names apart."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice

from zoarium.measure.similarity.sources import Shape

VOTERS = 64  # names of one ending and shape that vote on the prefix
LISTENERS = 64  # names each of them is held against, for each of the two longest endings they share with it
WORDS = 6  # of an ending
CANDIDATES = 20  # pairs of prefixes tried in full
ROUNDS = 64  # prefixes exchanged in one model, one after the other
SEPARATORS = "._/:"

Known = Mapping[tuple[str, Shape], None]


def match_names(models: Sequence[Mapping[str, Shape]]) -> tuple[list[dict[str, str]], list[str]]:
    """Shared names for the tensors of each model.

    Parameters
    ----------
    models : sequence of mappings
        Shapes by name.

    Returns
    -------
    shared : list of dict
        For each model the shared name of each of its tensors. Tensors with one shared name and one shape correspond.
    renamed : list of str
        For each model the prefixes that were exchanged, such as ``"module. -> "``; empty where none was.

    Notes
    -----
    The first model's names stand as they are. In every other kind of model, equal names come first; then one prefix is
    exchanged for another as long as that brings tensors together: the pair of prefixes that matches most numbers first.
    An exchange must match a matrix, and more than a lone last word such as ``weight``; layer numbers in the prefixes
    must agree. Nothing but names and shapes is looked at.

    Examples
    --------
    >>> shared, renamed = match_names([{"fc.weight": (3, 2)}, {"module.fc.weight": (3, 2)}])
    >>> shared[1], renamed[1]
    ({'module.fc.weight': 'fc.weight'}, 'module. -> ')
    """
    known: dict[tuple[str, Shape], None] = {}
    done: dict[tuple, tuple[dict[str, str], str]] = {}
    found: list[tuple[dict[str, str], str]] = []
    for shapes in models:
        kind = tuple(shapes.items())
        if kind not in done:
            mapping, _ = done[kind] = _matched(shapes, known)
            known.update(dict.fromkeys((mapping[name], shape) for name, shape in kind))
        found.append(done[kind])
    return [mapping for mapping, _ in found], [said for _, said in found]


def _matched(shapes: Mapping[str, Shape], known: Known) -> tuple[dict[str, str], str]:
    mapping = {name: name for name in shapes}
    left = {name: shape for name, shape in shapes.items() if (name, shape) not in known}
    free = {key: None for key in known if shapes.get(key[0]) != key[1]}
    endings = _endings(known)
    said = []
    for _ in range(ROUNDS if known else 0):
        exchange = _best(left, free, endings)
        if exchange is None:
            break
        strip, add = exchange
        for name, new in _exchanged(left, free, strip, add).items():
            mapping[name] = new
            del free[new, left.pop(name)]
        said.append(f"{strip} -> {add}")
    taken = Counter(mapping.values())
    for name in shapes:  # a tensor that kept its name may stand in the way of one that was given it
        if mapping[name] == name and taken[name] > 1:
            mapping[name] = f"{name} (its own)"
    return mapping, ", ".join(said)


def _exchanged(left: Mapping[str, Shape], free: Known, strip: str, add: str) -> dict[str, str]:
    """New names of the tensors that an exchange of prefixes matches."""
    new = {name: add + name.removeprefix(strip) for name in left if name.startswith(strip)}
    return {name: found for name, found in new.items() if (found, left[name]) in free}


def _endings(known: Known) -> dict[tuple[Shape, tuple[str, ...]], list[str]]:
    """Names by their shape and each of their last words."""
    found: dict[tuple[Shape, tuple[str, ...]], list[str]] = {}
    for name, shape in known:
        words = _words(name)
        for n in range(1, min(WORDS, len(words)) + 1):
            found.setdefault((shape, words[-n:]), []).append(name)
    return found


def _best(
    left: Mapping[str, Shape], free: Known, endings: Mapping[tuple[Shape, tuple[str, ...]], list[str]]
) -> tuple[str, str] | None:
    """The exchange that brings most numbers together."""
    votes: Counter[tuple[str, str]] = Counter()
    voted: Counter[tuple[str, Shape]] = Counter()
    for name, shape in left.items():
        words = _words(name)
        voted[words[-1], shape] += 1
        if len(shape) < 2 or voted[words[-1], shape] > VOTERS:
            continue
        met = 0
        for n in range(min(WORDS, len(words)), 0, -1):
            there = (other for other in endings.get((shape, words[-n:]), ()) if (other, shape) in free)
            listeners = list(islice(there, LISTENERS))
            votes.update({_prefixes(name, other): math.prod(shape) for other in listeners})
            met += bool(listeners)
            if met == 2:
                break
    best, most = None, 0
    for strip, add in [pair for pair, _ in votes.most_common(CANDIDATES)]:
        found = _exchanged(left, free, strip, add)
        matrices = [name for name in found if len(left[name]) > 1]
        words = max((len(_words(name.removeprefix(strip))) for name in matrices), default=0)
        one, other = _numbers(strip), _numbers(add)
        gain = sum(math.prod(left[name]) for name in found)
        sure = len(found) > 1 or words > 1 or not strip or not add
        if matrices and sure and (one == other or not one or not other) and gain > most:
            best, most = (strip, add), gain
    return best


@lru_cache(1 << 16)
def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[._/:]+", name) if word) or (name,)


def _numbers(prefix: str) -> list[str]:
    return [word for word in _words(prefix) if word.isdigit()]


def _prefixes(name: str, other: str) -> tuple[str, str]:
    """What stands before the longest common ending that begins a word in both names."""
    most = min(len(name), len(other))
    length = next((n for n in range(most) if name[-1 - n] != other[-1 - n]), most)

    def begins(text: str, size: int) -> bool:
        return size == len(text) or text[len(text) - size - 1] in SEPARATORS

    while length and not (begins(name, length) and begins(other, length)):
        length -= 1
    return name[: len(name) - length], other[: len(other) - length]
