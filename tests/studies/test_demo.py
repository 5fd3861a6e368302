import pytest

import zoarium as za
from zoarium._core.errors import StoreError
from zoarium.studies import demo


@pytest.fixture
def small(monkeypatch):
    grid = za.Grid(width=[2, 16], batch_size=[25, 250], seed=range(2), epochs=4)
    monkeypatch.setattr(demo, "demo_grid", lambda: grid)
    return grid


def test_the_demo_is_the_grid_of_the_card():
    grid = demo.demo_grid()
    assert len(grid) == 126
    assert (grid.load, grid.temperature) == ("width", "batch_size")


def test_it_grows_measures_labels_and_reports(small, tmp_path):
    notes = set()
    result = demo.run_demo(tmp_path / "z", workers=1, on_progress=lambda done, total, note: notes.add(note))
    assert len(result.zoo) == 8
    assert len(result.phases) == 4
    assert 1 <= len(result.findings) <= 3  # four cells say less than forty-two
    assert result.report.read_text(encoding="utf-8").endswith("</html>\n")
    assert {"hessian_trace", "seed_averaging"} <= notes
    plain = result.to_dict()
    assert plain["models"] == 8
    assert set(plain["seconds"]) >= {"grow", "measure", "phases", "report", "in all"}


def test_run_again_it_goes_on_and_with_overwrite_it_starts_anew(small, tmp_path):
    first = demo.run_demo(tmp_path / "z", workers=1)
    created = first.zoo.info["created"], (tmp_path / "z" / "models.parquet").stat().st_mtime_ns
    again = demo.run_demo(tmp_path / "z", workers=1)
    assert (again.zoo.info["created"], (tmp_path / "z" / "models.parquet").stat().st_mtime_ns) == created
    fresh = demo.run_demo(tmp_path / "z", workers=1, overwrite=True)
    assert (tmp_path / "z" / "models.parquet").stat().st_mtime_ns != created[1]
    assert fresh.zoo.ids == first.zoo.ids


def test_it_never_removes_a_folder_that_is_no_zoo(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(StoreError, match="is not a zoo, so it is not overwritten"):
        demo.run_demo(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
