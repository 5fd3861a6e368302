import errno
import os

import pytest

from zoarium._core import files
from zoarium._core.errors import StoreError, ZoariumError
from zoarium._core.extras import require
from zoarium._core.memory import parse_bytes


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "table"
    files.write_text(path, "old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full; free some space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table"]


def test_other_write_errors_name_the_file_and_a_way_out(tmp_path):
    error = files.write_error(tmp_path / "x", OSError(errno.EROFS, "Read-only"))
    assert "read-only; choose another folder" in str(error)
    assert str(tmp_path / "x") in str(error)


def test_a_missing_extra_names_the_install_line():
    with pytest.raises(ZoariumError, match=r"pip install 'zoarium\[hub\]'"):
        require("no_such_package_here.sub", "hub", "reading from a hub")


@pytest.mark.parametrize("amount", ["", "much", "-1GB", "0", "1 XB", "nan", "1e99"])
def test_an_amount_of_memory_that_makes_no_sense_is_named(amount):
    with pytest.raises(ZoariumError, match="memory must be an amount"):
        parse_bytes(amount)
