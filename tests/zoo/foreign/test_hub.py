"""Models of the hub, from a server of our own on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save

import zoarium as za
from zoarium._core.errors import MissingExtraError, StoreError
from zoarium.zoo.foreign.hub import chosen_file, parse_hub_id


@dataclass
class Repo:
    """One repository: its files by revision, and what is wrong with it."""

    commits: dict[str, dict[str, bytes]]  # by full commit, the last is main
    refs: dict[str, str] = field(default_factory=dict)
    fault: str = ""  # "gated", "disabled" or "broken"

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.refs.get(revision) or (list(self.commits)[-1] if revision == "main" else None)


class HubStub:
    """Serves `repos`; counts requests by path in `asked`."""

    def __init__(self, repos: dict[str, Repo]):
        self.repos = repos
        self.asked: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = unquote(urlsplit(self.path).path)
                stub.asked.append(f"{self.command} {path}")
                status, headers, content = stub.answer(path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault(self, status: int, code: str) -> tuple[int, dict[str, str], bytes]:
        said = {"X-Error-Code": code, "X-Error-Message": code}
        return status, said, json.dumps({"error": code}).encode()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, _, revision = "/".join(parts[2:]).partition("/revision/")
            return self.info(name, revision or "main")
        if "resolve" in parts:
            at = parts.index("resolve")
            return self.file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        return self.fault(404, "NotFound")

    def known(self, name: str, revision: str) -> tuple[Repo, str] | tuple[int, dict[str, str], bytes]:
        repo = self.repos.get(name)
        if repo is None:
            return self.fault(401, "RepoNotFound")
        if repo.fault == "broken":
            return self.fault(503, "Unavailable")
        if repo.fault == "disabled":
            status, _, content = self.fault(403, "")
            return status, {"X-Error-Message": "Access to this resource is disabled."}, content
        commit = repo.resolve(revision)
        return self.fault(404, "RevisionNotFound") if commit is None else (repo, commit)

    def info(self, name: str, revision: str):
        found = self.known(name, revision)
        if len(found) == 3:
            return found
        repo, commit = found
        siblings = [{"rfilename": file} for file in repo.commits[commit]]
        return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings, "tags": []}).encode()

    def file(self, name: str, revision: str, file: str):
        found = self.known(name, revision)
        if len(found) == 3:
            return found
        repo, commit = found
        if repo.fault == "gated":
            return self.fault(403, "GatedRepo")
        content = repo.commits[commit].get(file)
        if content is None:
            return self.fault(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, content


WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1.0, 2.0])}
OLD, NEW = "a" * 40, "b" * 40
CARD = b"---\nbase_model: org/base\nbase_model_relation: quantized\n---\n# A model\n"


def pickled(tensors) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def sharded() -> dict[str, bytes]:
    names = list(WEIGHTS)
    files = {f"model-0000{n + 1}-of-00002.safetensors": save({k: WEIGHTS[k]}) for n, k in enumerate(names)}
    where = {k: f"model-0000{n + 1}-of-00002.safetensors" for n, k in enumerate(names)}
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": where}).encode()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    tiny = {
        "model.safetensors": save(WEIGHTS), "pytorch_model.bin": b"x" * 1000, "config.json": b'{"model_type": "tiny"}',
        "README.md": CARD, "tokenizer.json": b"{}", "flax_model.msgpack": b"y" * 1000,
    }  # fmt: skip
    old = tiny | {"model.safetensors": save({k: v + 1 for k, v in WEIGHTS.items()})}
    repos = {
        "org/tiny": Repo({OLD: old, NEW: tiny}, refs={"v1": OLD}),
        "org/sharded": Repo({NEW: sharded()}),
        "org/pickled": Repo({NEW: {"pytorch_model.bin": pickled(WEIGHTS), "config.json": b"{}"}}),
        "org/base": Repo({NEW: {"model.safetensors": save({k: v * 2 for k, v in WEIGHTS.items()})}}),
        "org/several": Repo({NEW: {"a.gguf": b"GGUF", "b.gguf": b"GGUF", "sub/c.safetensors": save(WEIGHTS)}}),
        "org/words": Repo({NEW: {"README.md": b"words"}}),
        "org/gated": Repo({NEW: tiny}, fault="gated"),
        "org/disabled": Repo({NEW: tiny}, fault="disabled"),
        "org/broken": Repo({NEW: tiny}, fault="broken"),
        "org/liar": Repo({NEW: {"model.safetensors": b"not one at all"}}),
    }
    stub = HubStub(repos)
    monkeypatch.setenv("HF_ENDPOINT", stub.url)
    monkeypatch.setattr(constants, "ENDPOINT", stub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    yield stub
    stub.close()


def same(model, factor=1.0):
    return all(torch.equal(model.tensor(name), value * factor) for name, value in WEIGHTS.items())


def test_a_model_is_read_at_the_commit_it_has_now(hub):
    model = za.read_model("hf:org/tiny")
    assert same(model) and model.name == "tiny" and model.metadata["revision"] == NEW
    assert model.metadata["config"] == {"model_type": "tiny"} and model.metadata["source"] == "hf:org/tiny"


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_pinned_to_its_commit(hub, revision):
    model = za.read_model(f"hf:org/tiny@{revision}")
    assert torch.equal(model.tensor("layer.bias"), WEIGHTS["layer.bias"] + 1) and model.metadata["revision"] == OLD


def test_only_weights_configuration_and_card_are_fetched(hub):
    za.read_model("hf:org/tiny")
    fetched = {path.rpartition("/")[2] for path in hub.asked if path.startswith("GET") and "/resolve/" in path}
    assert fetched == {"model.safetensors", "config.json", "README.md"}


def test_shards_are_fetched_with_their_index(hub):
    model = za.read_model("hf:org/sharded")
    assert same(model) and len(model.sources) == 2


def test_pickles_are_taken_only_where_there_is_nothing_better(hub):
    assert za.read_model("hf:org/pickled").format == "torch"


def test_one_file_of_several_is_named(hub):
    with pytest.raises(
        StoreError,
        match=r"hf:org/several holds 2 files of weights \(a\.gguf, b\.gguf\); name one, as in hf:org/several:a\.gguf",
    ):
        za.read_model("hf:org/several")
    assert same(za.read_model("hf:org/several:sub/c.safetensors"))
    with pytest.raises(StoreError, match=r"has no file 'c\.gguf'; it has a\.gguf"):
        za.read_model("hf:org/several:c.gguf")


@pytest.mark.parametrize(("text", "sentence"), [
    ("hf:org/nothing", "there is no model 'org/nothing' on the hub that you may read; check the name, or run hf auth"),
    ("hf:org/tiny@v9", "org/tiny has no revision 'v9'; give a branch, tag or commit"),
    ("hf:org/gated", "access to org/gated is restricted and was not granted; ask for it"),
    ("hf:org/disabled", "org/disabled is disabled on the hub; choose another"),
    ("hf:org/broken", "the hub answered 503"),
    ("hf:org/words", r"hf:org/words holds no weights at its top \(none\)"),
    ("hf:org/liar", "its header claims"),
    ("hf:or g/x", "is no hub id; write hf:org/model"),
    ("hf:a/b/c", "is no hub id; write hf:org/model"),
    ("hf:org/-bad..name", "'org/-bad..name' is not a name the hub can have"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(hub, text, sentence):
    with pytest.raises(StoreError, match=sentence) as caught:
        za.read_model(text)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_sentence_and_the_cache_goes_on_working(hub):
    za.read_model("hf:org/tiny")
    za.read_model("hf:org/sharded")
    hub.close()
    model = za.read_model("hf:org/tiny")
    assert same(model) and model.metadata["revision"] == NEW and same(za.read_model("hf:org/sharded"))
    with pytest.raises(
        StoreError, match=r"cannot read hf:org/base: the hub cannot be reached .*; try again with a network"
    ):
        za.read_model("hf:org/base")


def test_offline_mode_reads_the_cache_only(hub, monkeypatch):
    from huggingface_hub import constants

    za.read_model("hf:org/tiny@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert za.read_model("hf:org/tiny@v1").metadata["revision"] == OLD
    with pytest.raises(StoreError, match=r"HF_HUB_OFFLINE is set and the cache does not hold org/base; unset it"):
        za.read_model("hf:org/base")
    assert len(hub.asked) == asked


def test_without_the_library_the_install_line_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingExtraError, match=r"reading hf:org/tiny needs huggingface_hub.*pip install 'zoarium\[hub\]'"
    ):
        za.read_model("hf:org/tiny")
    with pytest.raises(StoreError, match=r"no zoo was made .*pip install 'zoarium\[hub\]'"):
        za.add(tmp_path / "zoo", "hf:org/tiny")


def test_a_zoo_points_at_the_hub_by_commit_and_file(hub, tmp_path):
    zoo = za.add(tmp_path / "zoo", "hf:org/tiny@v1", "hf:org/sharded").zoo
    assert zoo.ids == ["tiny", "sharded"]
    row = zoo["tiny"].row
    assert (row["source"], row["revision"], row["status"]) == ("hf:org/tiny", OLD, "foreign")
    assert zoo.checkpoints["path"].to_list() == [
        "hf:org/tiny:model.safetensors",
        "hf:org/sharded:model.safetensors.index.json",
    ]
    assert zoo.checkpoints["revision"].to_list() == [OLD, NEW]


def test_a_reference_to_the_hub_is_read_from_the_cache_or_fetched_again(hub, tmp_path):
    zoo = za.add(tmp_path / "zoo", "hf:org/tiny", "hf:org/sharded").zoo
    asked = len(hub.asked)
    assert same(za.open(zoo.path)["tiny"]) and same(za.open(zoo.path)["sharded"]) and len(hub.asked) == asked
    shutil.rmtree(tmp_path / "cache")
    assert same(za.open(zoo.path)["tiny"]) and len(hub.asked) > asked
    shutil.rmtree(tmp_path / "cache")
    hub.close()
    with pytest.raises(StoreError, match="the hub cannot be reached"):
        za.open(zoo.path)["tiny"].tensor("layer.bias")


def test_a_copy_from_the_hub_needs_no_hub(hub, tmp_path):
    zoo = za.add(tmp_path / "zoo", "hf:org/tiny", copy=True).zoo
    shutil.rmtree(tmp_path / "cache")
    hub.close()
    assert same(za.open(zoo.path)["tiny"])


def test_descent_is_that_of_the_card_and_becomes_an_id_once_the_parent_is_there(hub, tmp_path):
    zoo = za.add(tmp_path / "zoo", "hf:org/tiny").zoo
    assert (zoo["tiny"].parents, zoo["tiny"].relation) == (["hf:org/base"], "quantise")
    zoo.add("hf:org/base")
    assert zoo["tiny"].parents == ["base"] and [one["id"] for one in zoo["tiny"].lineage] == ["tiny", "base"]


def test_hub_models_that_fail_are_skipped_by_name(hub, tmp_path):
    added = za.add(tmp_path / "zoo", "hf:org/gated", "hf:org/tiny", "hf:org/nothing")
    assert added.counts == {"added": 1, "known": 0, "skipped": 2, "ignored": 0}
    assert added.table.filter(state="skipped")["source"].to_list() == ["hf:org/gated", "hf:org/nothing"]


def test_the_same_weights_from_hub_and_disk_are_one_model(hub, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(save(WEIGHTS))
    added = za.add(tmp_path / "zoo", "hf:org/tiny", tmp_path / "mine.safetensors")
    assert added.zoo.ids == ["tiny"] and added.table["state"].to_list() == ["added", "known"]


def test_hub_ids_are_taken_apart():
    assert parse_hub_id("hf:org/m@refs/pr/1:x/y.gguf") == ("org/m", "refs/pr/1", "x/y.gguf")
    assert (
        chosen_file("hf:x", ["model.fp16.safetensors", "model.onnx", "a-00001-of-00002.bin"])
        == "model.fp16.safetensors"
    )
