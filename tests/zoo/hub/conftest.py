"""A hub of our own on this machine: the endpoints its client calls, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from zoarium.zoo import Zoo

LARGE = (".parquet", ".safetensors", ".png")  # kept in large file storage, as the hub does by default
TOKEN = "hf_secret"


@dataclass
class Repo:
    """A repository: branches, and the files of every commit by path, as (is large, content)."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, tuple[bool, bytes]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, tuple[bool, bytes]], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        sha = self.resolve(revision)
        assert sha is not None
        return {path: content for path, (_, content) in self.commits[sha].items()}


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD path`` matches: an error status, or a line cut after some bytes."""

    pattern: str
    status: int = 0
    cut_after: int = -1
    times: int = 1


class Hub:
    """The server, what it holds, and what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.storage: dict[str, bytes] = {}  # large files by their SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.uploads: list[int] = []  # bytes of every upload that arrived whole
        self.faults: list[Fault] = []
        self.part_size = 0  # over 0: uploads go in parts of so many bytes
        self.lock = threading.Lock()
        self.closed = False
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closed = True
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def dataset(self, repo_id: str = "me/zoo") -> Repo:
        return self.repos["dataset", repo_id]

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "dataset", **facts: bool) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(**facts)
        repo.commit("main", {path: (path.endswith(LARGE), content) for path, content in files.items()}, "made by hand")
        self.storage |= {hashlib.sha256(c).hexdigest(): c for c in files.values()}
        return repo

    def fault(self, pattern: str, **what: int) -> None:
        self.faults.append(Fault(pattern, **what))

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    # ------------------------------------------------------------------ plumbing

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.closed:  # connections outlive the socket that accepted them
            self.hang_up()
            return
        asked = f"{self.command} {path}"
        with hub.lock:
            hub.requests.append(asked + (f" {self.headers['Range']}" if "Range" in self.headers else ""))
            fault = next((f for f in hub.faults if f.times > 0 and re.search(f.pattern, asked)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.status:
            self.body()
            self.refuse(fault.status, f"ordered {fault.status}")
            return
        self.cut_after = -1 if fault is None else fault.cut_after
        if self.command == "PUT" and self.cut_after >= 0:
            self.rfile.read(self.cut_after)
            self.hang_up()
            return
        with_body = self.body()
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, asked)
            if match:
                getattr(self, method)(with_body, **match.groupdict())
                return
        self.refuse(404, f"no such endpoint: {asked}")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def send(self, status: int, content: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after >= 0:
            self.wfile.write(content[: self.cut_after])
            self.wfile.flush()
            self.hang_up()
        else:
            self.wfile.write(content)

    def json(self, value: object, status: int = 200, **headers: object) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        self.cut_after = -1
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self.json({"error": message}, status, **headers)

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.known):
            self.refuse(404 if self.known else 401, "Repository not found", "RepoNotFound")
            return None
        if repo.gated:
            self.refuse(403, "Access is restricted", "GatedRepo")
            return None
        return repo

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ------------------------------------------------------------------ the endpoints

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if not self.known:
            self.refuse(401, "Invalid username or password.")
        elif ("dataset", repo_id) in self.hub.repos:
            self.json({"url": f"{self.hub.url}/datasets/{repo_id}"}, 409)
        else:
            repo = self.hub.repos["dataset", repo_id] = Repo(
                private=asked.get("visibility") == "private" or bool(asked.get("private"))
            )
            repo.commit("main", {".gitattributes": (False, b"*.parquet filter=lfs\n")}, "initial commit")
            self.json({"url": f"{self.hub.url}/datasets/{repo_id}"})

    def info(self, body: bytes, kind: str, repo: str, rev: str | None = None) -> None:
        found = self.repo(kind, repo)
        if found is None:
            return
        sha = found.resolve(rev or "main")
        if sha is None:
            self.refuse(404, "Invalid rev id", "RevisionNotFound")
        else:
            self.json({"id": repo, "sha": sha, "private": found.private, "gated": found.gated})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        found = self.repo("dataset", repo)
        if found is None:
            return
        if branch in found.branches:
            self.refuse(409, "Reference already exists")
        else:
            found.branches[branch] = found.branches["main"]
            self.json({})

    def tree(self, body: bytes, repo: str, rev: str) -> None:
        found = self.repo("dataset", repo)
        sha = None if found is None else found.resolve(rev)
        assert found is not None and sha is not None
        entries = []
        for path, (large, content) in found.commits[sha].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if large:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        start = int(urlsplit(self.path).query.partition("cursor=")[2] or 0)
        more = {}
        if len(entries) > start + 5:  # small pages, so that the client has to turn them
            more["Link"] = f'<{self.hub.url}/api/datasets/{repo}/tree/{rev}?cursor={start + 5}>; rel="next"'
        self.json(entries[start : start + 5], **more)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if "license: nonsense" in content:
            self.json({"errors": [{"message": '"license" must be one of the known ones'}]}, 400)
        else:
            self.json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, rev: str) -> None:
        found = self.repo("dataset", repo)
        if found is None:
            return
        if not self.known:
            self.refuse(401, "Invalid username or password.")
            return
        files = found.commits[found.resolve(rev) or ""]
        out = []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(LARGE)
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if file["path"] in files:
                old = files[file["path"]][1]
                answer["oid"] = hashlib.sha256(old).hexdigest() if large else git_oid(old)
            out.append(answer)
        self.json({"files": out})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            oid, size, step = one["oid"], one["size"], self.hub.part_size
            answer: dict[str, object] = {"oid": oid, "size": size}
            if oid not in self.hub.storage:
                upload: dict[str, object] = {"href": f"{self.hub.url}/storage/{oid}"}
                if step:
                    parts = {str(n + 1): f"{self.hub.url}/storage/{oid}/{n + 1}" for n in range(-(-size // step))}
                    upload |= {"href": f"{self.hub.url}/complete/{oid}", "header": {"chunk_size": str(step), **parts}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(answer)
        self.json({"objects": objects, "transfer": "multipart" if self.hub.part_size else "basic"})

    def store(self, body: bytes, oid: str, part: str | None = None) -> None:
        if part is None:
            self.keep(oid, body)
        else:
            self.hub.parts.setdefault(oid, {})[int(part)] = body
        self.send(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def complete(self, body: bytes, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        assert [p["partNumber"] for p in json.loads(body)["parts"]] == sorted(parts)
        self.keep(oid, b"".join(parts[n] for n in sorted(parts)))
        self.json({})

    def keep(self, oid: str, content: bytes) -> None:
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.storage[oid] = content
        self.hub.uploads.append(len(content))

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        assert len(self.hub.storage[asked["oid"]]) == asked["size"]
        self.json({})

    def commit(self, body: bytes, repo: str, rev: str) -> None:
        found = self.repo("dataset", repo)
        if found is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        head = found.resolve(rev)
        header = lines[0]["value"]
        if header.get("parentCommit", head) != head:
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(found.commits[head or ""])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (False, base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = (True, self.hub.storage[value["oid"]])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        number = None
        if "create_pr=1" in self.path:
            number = sum(name.startswith("refs/pr/") for name in found.branches) + 1
            rev = f"refs/pr/{number}"
        sha = found.commit(rev, files, header["summary"])
        page = f"{self.hub.url}/datasets/{repo}"
        self.json({
            "commitUrl": f"{page}/commit/{sha}", "commitOid": sha,
            "pullRequestUrl": None if number is None else f"{page}/discussions/{number}",
        })  # fmt: skip

    def resolve(self, body: bytes, repo: str, rest: str) -> None:
        found = self.repo("dataset", repo)
        if found is None:
            return
        revisions = sorted([*found.branches, *found.commits], key=len, reverse=True)
        rev = next((r for r in revisions if rest.startswith(f"{r}/")), None)
        if rev is None:
            self.refuse(404, "Invalid rev id", "RevisionNotFound")
            return
        sha, path = found.resolve(rev), rest[len(rev) + 1 :]
        if path not in found.commits[sha or ""]:
            self.refuse(404, "Entry not found", "EntryNotFound")
            return
        large, content = found.commits[sha or ""][path]
        if large:
            oid, port = hashlib.sha256(content).hexdigest(), self.hub.server.server_port
            self.send(  # to another host, as the hub does: the client must not take its token there
                302, Location=f"http://localhost:{port}/storage/{oid}", X_Repo_Commit=sha, X_Linked_Etag=f'"{oid}"',
                X_Linked_Size=len(content),
            )  # fmt: skip
        else:
            self.content(content, ETag=f'"{git_oid(content)}"', X_Repo_Commit=sha)

    def stored(self, body: bytes, oid: str) -> None:
        assert "Authorization" not in self.headers
        self.content(self.hub.storage[oid])

    def content(self, content: bytes, **headers: object) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], Content_Range=place, **headers)
        else:
            self.send(200, content, **headers)


NAME = r"[\w.-]+/[\w.-]+"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/(?P<kind>dataset|model)s/(?P<repo>{NAME})(/revision/(?P<rev>.+))?", "info"),
    (rf"POST /api/datasets/(?P<repo>{NAME})/branch/(?P<branch>.+)", "branch"),
    (rf"GET /api/datasets/(?P<repo>{NAME})/tree/(?P<rev>.+)", "tree"),
    (rf"POST /api/datasets/(?P<repo>{NAME})/preupload/(?P<rev>.+)", "preupload"),
    (rf"POST /api/datasets/(?P<repo>{NAME})/commit/(?P<rev>.+)", "commit"),
    (rf"POST /datasets/(?P<repo>{NAME})\.git/info/lfs/objects/batch", "batch"),
    (rf"(GET|HEAD) /datasets/(?P<repo>{NAME})/resolve/(?P<rest>.+)", "resolve"),
    (r"PUT /storage/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "store"),
    (r"POST /complete/(?P<oid>[0-9a-f]{64})", "complete"),
    (r"POST /verify", "verify"),
    (r"(GET|HEAD) /storage/(?P<oid>[0-9a-f]{64})", "stored"),
]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process talks to, logged in, with a cache of its own and no waiting."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, disable_progress_bars, enable_progress_bars

    server = Hub()
    cache = tmp_path / "hub-cache"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_ASSETS_CACHE": str(tmp_path / "assets"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    quick = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", quick)
    monkeypatch.setattr(file_download, "time", quick)
    disable_progress_bars()
    yield server
    enable_progress_bars()
    _http.close_session()
    server.close()


@pytest.fixture
def small(filled: Callable[[Zoo], Zoo]) -> Zoo:
    """The six small nets of the store's tests, in a folder of their own."""
    return filled(Zoo.create(axes=["width"], load="width", grid={"width": [2, 3]}))
