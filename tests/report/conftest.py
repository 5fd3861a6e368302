"""Zoos for the report's tests: on disk as real ones are, but with made-up numbers instead of training."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import polars as pl
import pytest

from zoarium.report import ReportData, collect, write_report
from zoarium.zoo import Zoo

WIDTHS = (2, 4, 8, 16, 32, 64, 128)
BATCHES = (8, 16, 32, 64, 128, 256)
CARD = (  # phases of the digits grid: rows batch 8..256, columns width 2..128
    "collapsed I III III IV-B IV-B IV-B", "I I III III IV-B IV-B IV-B", "II I I III IV-B IV-B IV-B",
    "collapsed I I III IV-B IV-B IV-B", "collapsed collapsed II I ambiguous I IV-B",
    "collapsed collapsed II II II II II",
)  # fmt: skip
DRAWS = {  # phase: train loss, test accuracy, trace, mode connectivity, CKA, plain, aligned, ensembling, pruning 80 %
    "I": (0.35, 0.82, 26, -6, 0.55, -38, -15.3, 10.5, -30),
    "II": (0.6, 0.80, 32, 5, 0.62, -30, -10.8, 11.7, -22),
    "III": (0.03, 0.955, 6.6, -4, 0.82, -22, -5.7, 0.8, -12),
    "IV-B": (0.004, 0.972, 8.3, 0.1, 0.95, -8, -0.6, 0.2, -1),
    "ambiguous": (0.08, 0.93, 12, -1, 0.84, -15, -4, 2, -9),
    "collapsed": (2.1, 0.2, 60, 2, math.nan, -8, -6, 3, -4),
}


def grid_phases() -> dict[tuple[int, int], str]:
    return {(w, b): p for b, row in zip(BATCHES, CARD, strict=True) for w, p in zip(WIDTHS, row.split(), strict=True)}


def write_zoo(path, axes: dict[str, tuple], phase_of, *, seeds: int = 3, epochs: int = 30, measured: bool = True,
              load=None, temperature=None, rename=lambda name: name) -> tuple[Zoo, pl.DataFrame]:  # fmt: skip
    """A zoo with made-up values, and the phases of its cells."""
    draw = np.random.default_rng(0)
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    models, history, trace, pairs, cells, labels = [], [], [], [], [], []
    zoo = Zoo.create(path, axes=list(axes), load=load, temperature=temperature, grid={"net": "mlp", **axes})
    for n, point in enumerate(points):
        phase = phase_of(point)
        loss, accuracy, curvature, connected, alike, *used = DRAWS[phase]
        ids = [rename(f"mlp-{n:04d}{s:02d}") for s in range(seeds)]
        for s, i in enumerate(ids):
            bad = phase == "collapsed" and s == 1
            models.append({"id": i, "net": "mlp", "data": "digits", **point, "seed": s, "lr": 0.05,
                           "status": "diverged" if bad else "trained", "relation": None})  # fmt: skip
            end = loss * math.exp(0.15 * draw.normal())
            right = min(0.99, accuracy + 0.006 * draw.normal())
            for e in range(epochs + 1):
                t = e / max(1, epochs)
                rest = (1 - t) ** 2
                history.append((i, e, e * 16, 0.05 * math.sin(math.pi * t), end ** (1 - rest) * 2.3**rest,
                                0.1 * rest + (1 - rest) * min(1, right + 0.02), (end + 0.05) ** (1 - rest) * 2.3**rest,
                                0.1 * rest + (1 - rest) * right, 0.1 * e))  # fmt: skip
            trace.append((i, epochs, curvature * math.exp(0.1 * draw.normal()), 0.3))
        for a, b in itertools.combinations(ids, 2):
            pairs.append((a, b, epochs, connected + 0.8 * draw.normal(), alike + 0.02 * draw.normal()))
        labels.append((phase, float(draw.uniform(0.62, 1)) if phase != "ambiguous" else 0.5))
        cells.append(used)
    table = pl.DataFrame(models, schema_overrides={"relation": pl.String})
    with zoo.writing() as t:
        t.set_models(table)
        names = ["id", "epoch", "step", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
        t.replace("history", pl.DataFrame(history, schema=names, orient="row"))
    keys = zoo.cells()["cell"].to_list()
    if measured:
        fill = {"samples": 1000, "products": 40, "seconds": 0.1, "settings": "abc", "reason": ""}

        def long(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.with_columns(pl.lit(v).alias(k) for k, v in fill.items())

        per_model = pl.DataFrame(trace, schema=["id", "epoch", "value", "stderr"], orient="row")
        pair = pl.DataFrame(pairs, schema=["a", "b", "epoch", "mode_connectivity", "cka"], orient="row")
        names = ["plain_averaging_delta", "aligned_averaging_delta", "ensembling_gain", "pruning_delta_80"]
        cell = pl.DataFrame(
            [(k, epochs, q, v + 0.4 * draw.normal(), 0.4) for k, used in zip(keys, cells, strict=True)
             for q, v in zip(names, used, strict=True)],
            schema=["cell", "epoch", "quantity", "value", "stderr"], orient="row",
        )  # fmt: skip
        with zoo.writing() as t:
            for name, scale in (("hessian_trace", 1.0), ("hessian_top_eigenvalue", 0.3)):
                frame = per_model.with_columns(pl.col("value") * scale, quantity=pl.lit(name))
                t.replace(f"measures/{name}", long(frame))
            for name in ("mode_connectivity", "cka") if pairs else ():
                frame = pair.select(
                    "a", "b", "epoch", pl.lit(name).alias("quantity"), pl.col(name).alias("value"), stderr=0.01
                )
                t.replace(f"pairs/{name}", long(frame))
            t.replace("cells/effects", long(cell))
            t.update_header(measure_settings={"abc": {"measure": "hessian_trace", "samples": 1000}})
    phases = pl.DataFrame(
        {"cell": keys, "phase": [p for p, _ in labels],
         "point_phase": ["I" if p == "ambiguous" else p for p, _ in labels],
         "confidence": [c for _, c in labels]}
    )  # fmt: skip
    return zoo, phases


def card_zoo(path, **options) -> tuple[Zoo, pl.DataFrame]:
    """The 126 models of the digits grid."""
    found = grid_phases()
    return write_zoo(
        path, {"width": WIDTHS, "batch_size": BATCHES}, lambda p: found[p["width"], p["batch_size"]],
        load="width", temperature="batch_size", **options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_zoo():
    """`write_zoo`, for tests that need another grid."""
    return write_zoo


@pytest.fixture(scope="session")
def card(tmp_path_factory) -> tuple[Zoo, pl.DataFrame]:
    return card_zoo(tmp_path_factory.mktemp("zoos") / "digits-mlp")


@pytest.fixture(scope="session")
def card_data(card) -> ReportData:
    zoo, phases = card
    return collect(zoo, phases=phases)


# ------------------------------------------------------------------ a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--disable-dev-shm-usage",
)  # fmt: skip


class Tab:
    """A page in headless Chromium, driven over the DevTools protocol."""

    def __init__(self, socket) -> None:
        self.socket = socket
        self.count = 0
        self.events: list[dict] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def run(self, script: str):
        """Value of a JavaScript expression; promises are awaited."""
        got = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"].get("exception", {}).get("description", str(got)))
        return got["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; {self.problems}")
            time.sleep(0.05)

    def open(self, path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a report and wait until it is drawn."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Page.navigate", url="about:blank")
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def screenshot(self, path, full: bool = True) -> None:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        got = self.send("Page.captureScreenshot", **({"captureBeyondViewport": True, "clip": clip} if full else {}))
        path.write_bytes(base64.b64decode(got["data"]))

    @property
    def problems(self) -> list[str]:
        """Everything written to the console as an error or warning, and every uncaught exception."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", {}).get("description", params)))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(str([a.get("value") or a.get("description") for a in params["args"]]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses asked for, the page itself and data: excepted."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("file:", "data:", "about:"))] + sent[1:]


@contextlib.contextmanager
def chromium(folder):
    """Start a browser with an empty profile; yields a tab."""
    name = next((found for b in BROWSERS if (found := shutil.which(b))), None)
    if name is None:
        raise RuntimeError("the report is tested in a browser; run: tools/ensure_chromium.sh (or install Chromium)")
    from websockets.sync.client import connect

    process = subprocess.Popen(
        [name, *FLAGS, f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port_file = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start (exit code {process.poll()})")
            time.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list"))
        address = next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
        with connect(address, max_size=2**26) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def report(card_data, tmp_path_factory):
    """The report of the digits grid, as a file."""
    return write_report(card_data, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab
