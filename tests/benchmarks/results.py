"""Runs every benchmark beside it, and writes what they print into RESULTS.md; and what they share.

    python tests/benchmarks/results.py [--only bench_training.py ...]

A machine that does other work as well gives ratios and CPU times that mean something, and wall
times that do not: its load is noted.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).parent
VERSIONS = ("torch", "transformers", "accelerate", "datasets", "open_clip_torch", "numpy")


class Table:
    """A Markdown table, printed row by row as the rows come."""

    def __init__(self, *columns: str):
        self.columns = columns
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *cells: object) -> None:
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


class Seconds(NamedTuple):
    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Seconds:
    """Seconds that `work()` takes in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def ratios(turns: list[dict[str, Seconds]], above: str, below: str, of: str) -> str:
    """Seconds of one way over those of another: the median over turns, and the range."""
    found = [getattr(turn[above], of) / getattr(turn[below], of) for turn in turns]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def machine() -> list[str]:
    """What the figures were measured on, and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in VERSIONS),
        f"{datetime.now(UTC):%Y-%m-%d}, load average {os.getloadavg()[0]:.1f} before the start",
    ]


def title(file: Path) -> str:
    """The first sentence of a benchmark's description."""
    return file.read_text(encoding="utf-8").partition('"""')[2].partition("\n")[0]


def main() -> None:
    files = sorted(HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[file.name for file in files])
    args = parser.parse_args()
    files = [file for file in files if not args.only or file.name in args.only]
    command = " ".join(["python tests/benchmarks/results.py", *(["--only", *args.only] if args.only else [])])
    parts = ["# Results of the benchmarks\n", f"Written by `{command}`.\n", *(f"* {line}" for line in machine()), ""]
    for file in files:
        command = f"python tests/benchmarks/{file.name}"
        print(f"== {command}", flush=True)
        run = subprocess.run([sys.executable, file], stdout=subprocess.PIPE, text=True)
        print(run.stdout, flush=True)
        if run.returncode:
            sys.exit(f"{file.name} failed; RESULTS.md is as it was.")
        printed = run.stdout.strip()
        # What is no table is shown as it was printed.
        printed = printed if printed.startswith("|") else f"```\n{printed}\n```"
        parts += [f"## {title(file)}\n", f"`{command}`\n", printed, ""]
    (HERE / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
