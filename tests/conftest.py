import signal
import sys

import pytest

import zoarium as za

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt themselves and their children


@pytest.fixture(scope="session")
def small_grid():
    return za.Grid(net="mlp", width=[2, 4], batch_size=[50, 250], seed=range(2), epochs=2, data="digits")


@pytest.fixture(scope="session")
def _grown(small_grid, tmp_path_factory):
    return za.grow(small_grid, tmp_path_factory.mktemp("zoos") / "small", workers=1)


@pytest.fixture
def small_zoo(_grown, tmp_path):
    """Eight small trained models; a copy of its own for each test."""
    return _grown.save(tmp_path / "zoo")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    from zoarium.cli.app import run

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["zoarium", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
