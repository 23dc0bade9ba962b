"""Rules of the house that CONTRIBUTING states, held by looking at the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "sail_hf").glob("*.py"), *(ROOT / "training").rglob("*.py"), *(ROOT / "hub_card").glob("*.py")]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_module_reaches_for_anothers_underscore(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [alias.name for node in imported for alias in node.names if is_private(alias.name)] == []
    modules = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    reached = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    private = [
        f"{node.value.id}.{node.attr}" for node in reached if node.value.id in modules and is_private(node.attr)
    ]
    assert private == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_fit_in_the_head(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "sail_hf"], ids=lambda file: file.name)
def test_the_package_imports_only_its_siblings_and_libraries(file):
    """Flat and relative: what the Hub's remote code copies; nothing from the folders above it."""
    above = {path.stem for folder in ("training", "hub_card", "tests") for path in (ROOT / folder).rglob("*.py")}
    siblings = {path.stem for path in (ROOT / "sail_hf").glob("*.py")}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and (node.module or "") in siblings | {""}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & (above - {"evaluate", "conftest"} | {"sail_hf"})
