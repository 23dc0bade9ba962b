"""What is installed and shipped: how fast it is imported, that it is registered, and that a source distribution tests itself."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from bounds import lowest_versions

import sail_hf

ROOT = Path(__file__).parents[1]
SHIPPED = ["sail_hf", "tests", "training", "hub_card"]


def run_python(code: str, *arguments: str) -> str:
    """What a new process that imports this checkout prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_is_listed_and_typed():
    assert set(sail_hf.__all__) <= set(dir(sail_hf))
    for name in sail_hf.__all__:
        assert getattr(sail_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'SailNothing'"):
        _ = sail_hf.SailNothing
    assert (Path(sail_hf.__file__).parent / "py.typed").exists()


def test_import_brings_in_nothing_heavy():
    heavy = ("torch", "transformers", "torchvision", "av", "open_clip", "datasets", "evaluate", "PIL", "numpy")
    code = f"import sys, sail_hf, sail_hf.cli; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_import_costs_at_most_half_a_second_more_than_transformers():
    code = (
        "import time, torch, transformers\nstart = time.process_time()\nimport sail_hf\n"
        "print(time.process_time() - start)"
    )
    assert float(run_python(code)) < 0.5


@pytest.mark.parametrize(
    "imports",
    ["import sail_hf", "import transformers.pipelines, sail_hf", "from sail_hf.modeling_sail import SailModel"],
)
def test_registered_whatever_is_imported_first(imports):
    code = (
        f"{imports}\n"
        "from transformers import AutoConfig, AutoModel, AutoProcessor\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        "import sail_hf\n"
        "assert 'dense-video-captioning' in PIPELINE_REGISTRY.get_supported_tasks()\n"
        "config = AutoConfig.for_model('sail', num_frames=4)\n"
        "assert type(config) is sail_hf.SailConfig and AutoModel._model_mapping[type(config)] is sail_hf.SailModel\n"
    )
    run_python(code)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A source distribution of this checkout, built and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    # Building writes into the source folder.
    for name in SHIPPED:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(path, folder / "source")
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (root,) = (folder / "unpacked").iterdir()
    return root


def test_source_distribution_is_complete(unpacked):
    for name in SHIPPED:
        files = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if path.is_file()}
        here = {file for file in files if "__pycache__" not in file.parts}
        assert {file for file in here if not (unpacked / file).exists()} == set()
    assert all((unpacked / name).exists() for name in ("README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"))


def test_source_distribution_tests_itself(unpacked):
    """Without the reference data beside it, tests that need those are skipped and say so."""
    tests = ["tests/test_augment_captions.py", "-k", "papers or pairs or cleaned"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "the reference data folder" in done.stdout


def test_lowest_versions_are_read_off_the_bounds():
    pyproject = {
        "project": {
            "name": "sail-hf",
            "dependencies": ["torch>=2.6,<3"],
            "optional-dependencies": {"dev": ["sail-hf[llm]", "ruff>=0.12.1"]},
        }
    }
    assert lowest_versions(pyproject) == ["torch==2.6.*", "ruff==0.12.1.*"]
    pyproject["project"]["dependencies"] = ["torch>=2,<3"]
    with pytest.raises(ValueError, match="expected a bound such as name>=2.6,<3, found 'torch>=2,<3'"):
        lowest_versions(pyproject)


def test_every_dependency_has_a_lowest_version():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(lowest_versions(pyproject)) > 20
