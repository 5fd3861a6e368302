"""What files say of a model's descent: the model card's front matter, its configurations, the header of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoarium._core.errors import ZoariumError
from zoarium.zoo.foreign.hub import HUB_ID
from zoarium.zoo.foreign.model import ForeignModel
from zoarium.zoo.foreign.onnx import beside
from zoarium.zoo.foreign.reader import read_json
from zoarium.zoo.foreign.source import SourceFile

MAX_CARD = 2**18  # bytes of a model card's front matter
MAX_BASES = 100
RELATIONS = {"finetune": "finetune", "adapter": "adapter", "quantized": "quantise", "merge": "merge"}
_REPO = re.compile(r"(?:https?://[^/\s]+/)?(?P<repo>[\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True)
class Declared:
    """Descent as files declare it: hub ids of parents, and how the model came from them.

    Examples
    --------
    >>> Declared.of(["org/base"], None)
    Declared(parents=('hf:org/base',), relation='finetune')
    """

    parents: tuple[str, ...] = ()
    relation: str | None = None

    @classmethod
    def of(cls, bases: Iterable[Any], relation: Any, otherwise: str = "finetune") -> Declared:
        """Bases such as ``org/model`` and a relation of the hub's; several bases without one are a merge."""
        repos = [found["repo"] for base in bases if isinstance(base, str) and (found := _REPO.fullmatch(base.strip()))]
        parents = tuple(f"hf:{repo}" for repo in dict.fromkeys(repos) if HUB_ID.fullmatch(f"hf:{repo}"))[:MAX_BASES]
        if not parents:
            return cls()
        known = RELATIONS.get(relation) if isinstance(relation, str) else None
        return cls(parents, known or ("merge" if len(parents) > 1 else otherwise))


def declared(model: ForeignModel, entry: Path) -> Declared:
    """Parents and relation of a model whose weights (or index of shards) are `entry`.

    The model card is believed first, then ``adapter_config.json``, then ``config.json``, then a GGUF file's header. A
    file that cannot be read declares nothing: descent is a hint, and weights do not depend on it.
    """
    otherwise = "quantise" if model.format == "gguf" else "finetune"
    config, adapter = _table(entry, "config.json"), _table(entry, "adapter_config.json")
    if "quantization_config" in config:
        otherwise = "quantise"
    if adapter:
        otherwise = "adapter"
    card = _front_matter(entry)
    bases = card.get("base_model")
    found = Declared.of(bases if isinstance(bases, list) else [bases], card.get("base_model_relation"), otherwise)
    if found.parents:
        return found
    for table in (adapter, config):
        named = [table.get("base_model_name_or_path"), table.get("base_model")]
        found = Declared.of([base for base in named if base is not None][:1], None, otherwise)
        if found.parents:
            return found
    header = model.metadata.get("header")
    return Declared.of(_gguf_bases(header) if model.format == "gguf" and header else [], None, otherwise)


def _gguf_bases(header: Mapping[str, Any]) -> list[Any]:
    bases = []
    for n in range(MAX_BASES):
        url = header.get(f"general.base_model.{n}.repo_url")
        pair = [header.get(f"general.base_model.{n}.{part}") for part in ("organization", "name")]
        if url is None and None in pair:
            break
        bases.append(url if isinstance(url, str) else "/".join(str(part).replace(" ", "-") for part in pair))
    return bases


def _table(entry: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(beside(entry, name)) if (entry.parent / name).is_file() else {}
    except ZoariumError:
        return {}


def _front_matter(entry: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes of ``README.md``."""
    try:
        if not (entry.parent / "README.md").is_file():
            return {}
        source = SourceFile(beside(entry, "README.md"))
        text = bytes(source.read(0, min(source.size, MAX_CARD))).decode("utf-8", "replace")
        found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
        content = yaml.safe_load(found[1]) if found else {}
    except (ZoariumError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
