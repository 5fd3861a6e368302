from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zoarium._core.errors import DataError, StoreError
from zoarium._core.places import data_folder
from zoarium.data import download
from zoarium.data.download import Published, published

CONTENT = bytes(range(256)) * 5000  # 1.28 MB


@contextmanager
def server(answer):
    """A local web server; `answer(handler, request number)` writes the response. Yields (address, requests seen)."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Range")))
            answer(self, len(seen))

        def log_message(self, *_):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}", seen
    finally:
        web.shutdown()
        web.server_close()


def send(handler, content=CONTENT, status=200, promised=None, headers=()):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if promised is None else promised))
    for key, value in headers:
        handler.send_header(key, value)
    handler.end_headers()
    handler.wfile.write(content)


def with_ranges(handler, number, content=CONTENT):
    asked = handler.headers.get("Range")
    if asked is None:
        return send(handler, content)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    span = ("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    return send(handler, content[start:], 206, headers=[span])


def file_at(address, content=CONTENT, **changes):
    return Published(**{
        "url": f"{address}/things/data.bin", "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content).hexdigest(), **changes,
    })  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.delenv("ZOARIUM_OFFLINE", raising=False)
    monkeypatch.setenv("ZOARIUM_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 5)


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once_verified_and_then_found(tmp_path):
    with server(lambda h, n: send(h)) as (address, seen):
        path = published(file_at(address), "things", tmp_path)
        assert path == tmp_path / "things" / "data.bin"
        assert path.read_bytes() == CONTENT
        assert published(file_at(address), "things", tmp_path) == path
        assert len(seen) == 1
    assert names(tmp_path) == ["data.bin"]


def test_a_file_put_there_by_hand_is_used_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOARIUM_OFFLINE", "1")
    (tmp_path / "data.bin").write_bytes(CONTENT)  # in the root itself
    assert published(file_at("http://nowhere.invalid"), "things", tmp_path) == tmp_path / "data.bin"


def test_the_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOARIUM_CACHE", str(tmp_path / "cache"))
    assert download.folders("x", tmp_path)[0] == tmp_path / "x"
    assert download.folders("x")[0] == tmp_path / "elsewhere" / "x"
    monkeypatch.delenv("ZOARIUM_DATA")
    assert data_folder() == tmp_path / "cache" / "data"


def test_a_broken_connection_is_resumed_where_it_broke(tmp_path):
    def answer(handler, number):
        if number == 1:
            send(handler, CONTENT[:500_000], promised=len(CONTENT))
        else:
            with_ranges(handler, number)

    with server(answer) as (address, seen):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in seen] == [None, "bytes=500000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(tmp_path):
    def cut(handler, number):
        send(handler, CONTENT[:1000] if number == 1 else b"", promised=len(CONTENT) - (1000 if number > 1 else 0))

    with server(cut) as (address, _), pytest.raises(DataError, match="1,000 of 1,280,000 bytes have arrived"):
        published(file_at(address), "things", tmp_path)
    assert names(tmp_path) == [".data.bin.part"]
    with server(with_ranges) as (address, seen):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
        assert seen[0][1] == "bytes=1000-"


def test_a_server_that_knows_no_ranges_sends_everything_again(tmp_path):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / ".data.bin.part").write_bytes(b"wrong start")
    with server(lambda h, n: send(h)) as (address, seen):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
    assert seen[0][1] == "bytes=11-"


def test_a_server_that_resumes_at_the_wrong_place_is_asked_from_the_start(tmp_path):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / ".data.bin.part").write_bytes(CONTENT[:10])

    def answer(handler, number):
        if number == 1:
            send(handler, CONTENT[20:], 206, headers=[("Content-Range", "bytes 20-1279999/1280000")])
        else:
            with_ranges(handler, number)

    with server(answer) as (address, seen):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in seen] == ["bytes=10-", None]


def test_a_part_that_is_too_long_or_wrong_is_thrown_away(tmp_path):
    part = tmp_path / "things" / ".data.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"x")
    with server(with_ranges) as (address, _):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
        (tmp_path / "things" / "data.bin").unlink()
        part.write_bytes(b"?" * 1000)
        with pytest.raises(DataError, match="damaged or not that file"):
            published(file_at(address), "things", tmp_path)
        assert names(tmp_path) == []
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT


def test_other_content_of_the_same_length_is_never_used(tmp_path):
    other = CONTENT[:-1] + b"?"
    with server(lambda h, n: send(h, other)) as (address, _), pytest.raises(DataError) as caught:
        published(file_at(address), "things", tmp_path)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("promise", [True, False])
def test_a_server_that_sends_too_much_is_cut_off(tmp_path, promise):
    def answer(handler, number):
        handler.send_response(200)
        if promise:
            handler.send_header("Content-Length", str(10**12))
        handler.end_headers()
        for _ in range(4 if promise else 40):
            handler.wfile.write(CONTENT)

    with (
        server(answer) as (address, _),
        pytest.raises(DataError, match=r"the server (offers 1,000,000,000,000|sends more)"),
    ):
        published(file_at(address), "things", tmp_path)
    part = tmp_path / "things" / ".data.bin.part"
    assert not part.exists() or part.stat().st_size <= len(CONTENT)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_a_refusal_names_the_file_its_place_and_its_checksum(tmp_path, status, requests):
    with server(lambda h, n: send(h, b"", status)) as (address, seen), pytest.raises(DataError) as caught:
        published(file_at(address), "things", tmp_path)
    assert len(seen) == requests
    for part in (
        f"answers {status}",
        "data.bin (1 MB",
        file_at("").sha256,
        file_at("").md5,
        str(tmp_path),
        "ZOARIUM_DATA",
    ):
        assert part in str(caught.value)
    assert names(tmp_path) == []


def test_redirects_are_followed_to_web_addresses_only(tmp_path):
    def answer(handler, number):
        if handler.path.startswith("/things"):
            send(handler, b"", 302, headers=[("Location", "/moved/data.bin")])
        else:
            send(handler)

    with server(answer) as (address, seen):
        assert published(file_at(address), "things", tmp_path).read_bytes() == CONTENT
        assert seen[-1][0] == "/moved/data.bin"
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        with (
            server(lambda h, n, to=target: send(h, b"", 302, headers=[("Location", to)])) as (address, _),
            pytest.raises(DataError, match=r"no web address|is not allowed"),
        ):
            published(file_at(address), "other", tmp_path)


def test_no_network_and_offline_mode_say_what_to_put_where(tmp_path, monkeypatch):
    with server(lambda h, n: send(h)) as (address, seen):
        pass  # nothing listens there any more
    with pytest.raises(
        DataError, match=r"cannot be downloaded from http.*refused.*Download it elsewhere and put it there"
    ):
        published(file_at(address), "things", tmp_path)
    monkeypatch.setenv("ZOARIUM_OFFLINE", "1")
    with server(lambda h, n: send(h)) as (address, seen):
        with pytest.raises(DataError, match="ZOARIUM_OFFLINE is set"):
            published(file_at(address), "things", tmp_path)
        assert not seen


@pytest.mark.parametrize(
    ("content", "says"), [(CONTENT[:-1], "has 1,279,999 bytes.*1,280,000"), (CONTENT[::-1], "sha256")]
)
def test_a_file_that_is_not_the_published_one_is_named_and_kept(tmp_path, content, says):
    path = tmp_path / "things" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        published(file_at("http://nowhere.invalid"), "things", tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "things").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot write"):
        published(file_at("http://nowhere.invalid"), "things", tmp_path)


def test_two_processes_download_a_file_once(tmp_path):
    waiting = threading.Event()

    def answer(handler, number):
        waiting.wait(2)
        send(handler)

    with server(answer) as (address, seen):
        found = []
        both = [
            threading.Thread(target=lambda: found.append(published(file_at(address), "things", tmp_path)))
            for _ in range(2)
        ]
        for one in both:
            one.start()
        waiting.set()
        for one in both:
            one.join()
        assert len(found) == 2 and len(seen) == 1
