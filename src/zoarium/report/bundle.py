"""The JavaScript that draws the charts: Vega, Vega-Lite and vega-embed, as vl-convert ships them.

Putting the bundle together takes about two seconds, so it is kept in the user's cache folder, under the version that
made it and with its checksum: a file that is not what was written is made again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import subprocess
import sys

from zoarium._core.errors import ZoariumError
from zoarium._core.files import write_bytes
from zoarium._core.places import cache_folder

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def _file_name() -> str:
    return f"vega-embed-{importlib.metadata.version('vl-convert-python')}.js"


@functools.cache
def bundle() -> str:
    """The JavaScript; it defines ``vegaEmbed``."""
    path = cache_folder() / _file_name()
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no home, unreadable, not text
        digest, _, content = path.read_bytes().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == digest:
            return content.decode()
    import vl_convert

    text = vl_convert.javascript_bundle(SNIPPET).replace("\r\n", "\n").replace("\r", "\n")
    content = text.encode()
    with contextlib.suppress(OSError, RuntimeError, ZoariumError):  # a read-only home costs two seconds, no more
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    return text


def warm_up() -> None:
    """Start making the bundle in a process of its own, so that a report wanted later does not wait for it.

    Returns at once; does nothing if the bundle is there already.
    """
    with contextlib.suppress(OSError, RuntimeError):
        if not (cache_folder() / _file_name()).exists():
            code = "from zoarium.report.bundle import bundle; bundle()"
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
