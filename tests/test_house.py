"""The house stands: arrows point down, and whatever is public is documented."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import zoarium

SOURCE = Path(zoarium.__file__).parent
DOCS = SOURCE.parents[1] / "docs"
FLOORS = [
    {"_core"},
    {"nets", "data"},
    {"zoo"},
    {"train"},
    {"measure"},
    {"combine", "edit"},
    {"evaluate", "growth"},
    {"report", "testing"},
    {"studies"},
    {"cli"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
DESCENTS = {("nets", "data"), ("evaluate", "measure")}  # checks of a net against its data; effects are measures


def module_level_imports(path):
    """Packages of zoarium that a module imports when it is loaded."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zoarium."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("package", [p for p in PACKAGES if not p.startswith("__")])
def test_a_package_imports_only_from_the_floors_below(package):
    assert package in FLOOR, f"{package} has no floor: add it to the map"
    for path in (SOURCE / package).rglob("*.py"):
        for other in module_level_imports(path):
            below = FLOOR[other] < FLOOR[package] or other == package
            assert below or (package, other) in DESCENTS, f"{path.name} in {package} imports {other}, which is above it"


def public():
    for package in [*PACKAGES]:
        if package in ("cli",):
            continue
        module = importlib.import_module(f"zoarium.{package}")
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield pytest.param(value, id=f"{package}.{name}")


@pytest.mark.parametrize("value", list(public()))
def test_what_is_public_is_in_the_reference(value):
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    told = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    full = f"{value.__module__}.{value.__qualname__}"
    homes = {full, *(full.rsplit(".", n)[0] for n in range(1, full.count(".")))}
    assert homes & told, f"{full} stands on no page of the reference"


def test_every_measure_is_in_the_reference_and_names_its_source():
    from zoarium.measure import MEASURES

    page = (DOCS / "reference" / "measures.md").read_text() + (DOCS / "reference" / "use.md").read_text()
    for name, method in MEASURES.items():
        assert method.function.__module__ in page, name
        assert method.reference, name
        assert method.function.__doc__, name
