"""Runs every benchmark beside it, and writes what they print into RESULTS.md; and what they share.

    python tests/benchmarks/results.py [--only bench_training.py ...]

RESULTS.md is written after each benchmark, so what is finished is kept, whatever becomes of the rest. With `--only`, the
sections of the others stay as they are, if they were measured on this machine with these versions. A benchmark that fails, or
takes more than 30 minutes, is named as such.

A machine that does other work as well gives ratios and CPU times that mean something, and wall
times that do not: its load is noted.
"""

import argparse
import ast
import cProfile
import math
import os
import platform
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
# How cProfile names methods of libraries, and how they are named here.
METHOD, METHOD_IN_SHORT = r"<method '(.+)' of '(.+)' objects>", r"\2.\1"
# Seconds after which a benchmark is ended.
LIMIT = 30 * 60
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


def growth(small: float, large: float, times: float) -> float:
    """The exponent p of a quantity that grows from `small` to `large` where what it depends on grows `times`-fold, as x^p."""
    return math.log(large / small) / math.log(times)


def largest(seconds: dict[str, float], number: int = 6) -> str:
    """The largest parts of a time, as shares of the sum of all."""
    shares = sorted(((value / sum(seconds.values()), name) for name, value in seconds.items()), reverse=True)
    return ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares[:number])


def operations(work: Callable[[], object]) -> str:
    """Where the time of `work()` goes among torch's operations: the largest shares of their own CPU time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return largest({f"`{event.key}`": event.self_cpu_time_total for event in found.key_averages()})


def calls(work: Callable[[], object]) -> str:
    """Where the time of `work()` goes among functions of Python and of libraries: the largest shares of their own time."""
    profile = cProfile.Profile()
    profile.runcall(work)
    own = Counter()
    for (_, _, name), (_, _, seconds, *_) in pstats.Stats(profile).stats.items():
        own[f"`{re.sub(METHOD, METHOD_IN_SHORT, name)}`"] += seconds
    return largest(own, 4)


def machine() -> list[str]:
    """What the figures are measured on, and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in VERSIONS),
    ]


def heading(file: Path) -> str:
    """The first sentence of a benchmark's description, as the line that starts its section."""
    description = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return f"## {description.splitlines()[0]}\n"


def run(file: Path) -> tuple[str, str | None]:
    """What a benchmark prints, and why it did not finish, if it did not."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        # A session of its own: what a benchmark has started ends with it.
        process = subprocess.Popen([sys.executable, file], stdout=output, start_new_session=True)
        try:
            status = process.wait(LIMIT)
            failure = f"failed with exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            failure = f"was ended after {LIMIT / 60:.0f} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        # Files are named as from the checkout, wherever that lies.
        printed = output.read().strip().replace(f"{HERE.parents[1]}/", "").replace(f"{HERE.parents[2]}/", "../")
        return printed, failure


def section(file: Path) -> tuple[str, str | None]:
    """A benchmark's section of RESULTS.md, measured now, and why it did not finish, if it did not."""
    command = f"python tests/benchmarks/{file.name}"
    print(f"== {command}", flush=True)
    load, start = os.getloadavg()[0], time.monotonic()
    printed, failure = run(file)
    print(printed, flush=True)
    seconds = time.monotonic() - start
    parts = [
        heading(file),
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {seconds:.0f} s, load average {load:.1f} before the start",
    ]
    if failure:
        parts.append(f"\n**It {failure}.**" + (" It had printed:" if printed else ""))
    # Sentences among tables are Markdown; what has no table is shown as it was printed.
    is_markdown = re.search(r"^\|-", printed, re.MULTILINE) or not printed
    return "\n".join([*parts, "", printed if is_markdown else f"```\n{printed}\n```", ""]), failure


def kept(text: str, head: str) -> dict[str, str]:
    """Sections of an earlier RESULTS.md by heading; none where `head` says another machine or other versions."""
    if not text.startswith(head):
        return {}
    sections = re.split(r"^(?=## )", text.removeprefix(head), flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0] + "\n": section.rstrip() + "\n" for section in sections}


def main() -> None:
    files = sorted(HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[file.name for file in files])
    args = parser.parse_args()
    head = "\n".join(
        [
            "# Results of the benchmarks\n",
            "Written by `make bench`, or, for some of them, by `python tests/benchmarks/results.py --only FILE ...`.\n",
            *(f"* {line}" for line in machine()),
            "\n",
        ]
    )
    earlier = RESULTS.read_text(encoding="utf-8") if args.only and RESULTS.exists() else ""
    sections, failures = kept(earlier, head), {}
    for file in files:
        if args.only and file.name not in args.only:
            continue
        sections[heading(file)], failure = section(file)
        if failure:
            failures[file.name] = failure
        in_order = [sections[name] for name in map(heading, files) if name in sections]
        RESULTS.write_text(head + "\n".join(in_order), encoding="utf-8")
    if failures:
        sys.exit("\n".join(f"{name} {failure}" for name, failure in failures.items()))


if __name__ == "__main__":
    main()
