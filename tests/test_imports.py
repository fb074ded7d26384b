"""Does every import point one way? The table of rooms in docs/design.md, against the code.

A room is a folder or a root module of the package, or a module that has a row of its own.
Imports inside functions count too.
"""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparsecod_jax"
ROW = re.compile(r"^\| `([\w/.]+)` \|.*\|$", re.MULTILINE)


def _rooms() -> list[str]:
    """The rooms of the table, from the top to the ground: `train/`, `errors.py`."""
    text = (ROOT / "docs" / "design.md").read_text()
    _, _, section = text.partition("## Rooms\n")
    return ROW.findall(section.partition("\n## ")[0])


ROOMS = _rooms()


def _modules() -> dict[str, Path]:
    """Every file of the package by the name that imports it."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        modules[".".join(parts)] = path
    return modules


MODULES = _modules()


def _room(module: str) -> str:
    file = MODULES[module].relative_to(PACKAGE).as_posix()
    if file in ROOMS or "/" not in file:
        return file
    return file.partition("/")[0] + "/"


def _imported(module: str) -> set[str]:
    """The modules of the package that a module imports, at the top or in a function."""
    names = []
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    own = [name for name in names if f"{name}.".startswith("sparsecod_jax.")]
    return {_module_of(name) for name in own} - {module}


def _module_of(name: str) -> str:
    """The module that holds `name`, which may be a function of it."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


IMPORTS = {module: _imported(module) for module in MODULES}


def test_table_has_a_row_for_every_room():
    assert sorted(ROOMS) == sorted({_room(module) for module in MODULES})


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    here = ROOMS.index(_room(module))
    for name in IMPORTS[module]:
        there = ROOMS.index(_room(name))
        assert there >= here, f"{module} imports {name}, of a room above its own"


def test_no_circle_of_modules():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError with the circle


def test_files_that_the_table_names_exist():
    text = (ROOT / "docs" / "design.md").read_text()
    for line in ROW.finditer(text.partition("## Decisions")[0]):
        room = line[1]
        elsewhere = [
            name for name in re.findall(r"`([\w/]+\.py)`", line[0]) if "/" in name
        ]
        inside = set(re.findall(r"`([\w/]+\.py)`", line[0])) - {*elsewhere, room}
        for path in [*(f"{room}{name}" for name in inside), *elsewhere]:
            assert (PACKAGE / path).exists(), f"the row of {room} names {path}"
