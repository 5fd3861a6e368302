import io
import re
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readme_code_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with redirect_stdout(out):
        exec(blocks("README.md", "python")[0], {})
    shown = re.findall(r"```\n(batch_size.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert out.getvalue().splitlines()[:4] == shown.splitlines()[:4]  # the phase map
    plain = [re.sub(r"[-\d.─═ ]+", "", text) for text in (out.getvalue(), shown)]  # decimals set the widths of columns
    assert plain[0] == plain[1]
    assert (tmp_path / "report.html").exists()


def test_the_guides_examples_of_a_net_and_a_measure_run(tmp_path, monkeypatch):
    import zoarium as za
    from zoarium.measure import MEASURES

    monkeypatch.chdir(tmp_path)
    exec(blocks("docs/guides/own-net.md", "python")[0], {})
    code = blocks("docs/guides/own-measure.md", "python")
    try:
        exec(code[0], {})
        zoo = za.grow("mlp", width=4, seed=range(2), epochs=1, workers=1)
        assert zoo.measure("margin", workers=1).values("margin")["stderr"].is_finite().all()
        exec(code[1], {})
    finally:
        MEASURES._methods.pop("margin", None)


def test_the_guide_to_the_published_zoos_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/guides/published-zoos.md", "python"):
        exec(code, names)
    assert capsys.readouterr().out == "width batch_size 8\n"
    assert names["zoo"].values("relative_error")["value"].is_finite().all()
