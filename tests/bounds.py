"""Runs the tests with the lowest or the highest versions that pyproject.toml allows, in a virtual environment of its own.

    python tests/bounds.py lowest --venv /tmp/lowest
    python tests/bounds.py highest --venv /tmp/highest [arguments of pytest]

`lowest` takes the newest patch of each lowest release ("torch>=2.6" becomes 2.6.*); what the dependencies need in turn is
left to pip. Needs nothing but Python's own library.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<lowest>[\d.]+)(,<[\d.]+)?")


def lowest_versions(pyproject: dict) -> list[str]:
    """`name==version.*` of every dependency, optional ones included.

    Raises:
        ValueError: a dependency has no lower bound, or one that does not name a release such as 2.6.
    """
    project = pyproject["project"]
    extras = project["optional-dependencies"].values()
    requirements = [text for texts in [project["dependencies"], *extras] for text in texts]
    pins = []
    for text in requirements:
        if text.startswith(f"{project['name']}["):
            continue
        match = REQUIREMENT.fullmatch(text)
        if not match or "." not in match["lowest"]:
            raise ValueError(f"pyproject.toml: expected a bound such as name>=2.6,<3, found {text!r}")
        pins.append(f"{match['name']}=={match['lowest']}.*")
    return pins


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=["lowest", "highest"])
    parser.add_argument("--venv", required=True, help="folder of the virtual environment, made anew")
    arguments, of_pytest = parser.parse_known_args()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = lowest_versions(pyproject) if arguments.end == "lowest" else []
    venv.create(arguments.venv, clear=True, with_pip=True)
    python = Path(arguments.venv, "Scripts" if os.name == "nt" else "bin", "python")
    subprocess.run([python, "-m", "pip", "install", "-e", f"{ROOT}[dev]", *pins], check=True)
    subprocess.run([python, "-m", "pip", "list"], check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *of_pytest]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
