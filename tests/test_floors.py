"""Imports run one way between the packages."""

import ast
import pathlib

import pytest

import anpvs_tf

ROOT = pathlib.Path(anpvs_tf.__file__).parent
FLOORS = {
    "common": 1,
    "networks": 2,
    "attacks": 2,
    "data": 2,
    "zoo": 2,
    "pruning": 3,
    "methods": 4,
    "runs": 5,
    "evaluation": 6,
    "serving": 6,
    "tracking": 6,
    "training": 7,
    "reporting": 7,
    "tuning": 8,
    "programs": 9,
}


def imported(source: str) -> set[str]:
    """The packages of `anpvs_tf` that a module's text imports, wherever the import stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide their package"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] if part[1:] else "" for part in parts if part[0] == "anpvs_tf"} - {
        "__version__"
    }


def test_every_package_has_a_floor():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(FLOORS)


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_imports_lower_floors_only(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        for other in imported(path.read_text()) - {package}:
            assert FLOORS.get(other, 10) < FLOORS[package], f"{path} imports {other or 'anpvs_tf'}"


def test_imports_are_found_wherever_they_stand():
    source = "def f():\n  from anpvs_tf import data\n  import anpvs_tf.runs.build as b\n"
    assert imported(source + "from anpvs_tf.attacks.pgd import x") == {"data", "runs", "attacks"}


def test_no_module_shares_its_name_with_what_it_defines():
    for path in ROOT.rglob("*.py"):
        defined = {getattr(node, "name", None) for node in ast.parse(path.read_text()).body}
        assert path.stem not in defined, path
