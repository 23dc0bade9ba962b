"""RESULTS.md keeps what is finished, and says what is not. Benchmarks of a line each stand in."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import results  # noqa: E402

TABLE = "print('A sentence.\\n\\n| a |\\n|---|\\n| 1 |')"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of benchmarks; returns what writes one, and what runs them and returns RESULTS.md."""
    monkeypatch.setattr(results, "HERE", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")

    def write(name, code):
        (tmp_path / f"bench_{name}.py").write_text(f'"""The speed of {name}."""\n{code}\n')

    def run(*only, status=False):
        monkeypatch.setattr(sys, "argv", ["results.py", *(["--only", *only] if only else [])])
        if status:
            with pytest.raises(SystemExit, match=status):
                results.main()
        else:
            results.main()
        return (tmp_path / "RESULTS.md").read_text()

    return write, run


def test_tables_are_markdown_and_plain_text_is_a_block(place):
    write, run = place
    write("a", TABLE)
    write("b", "print('plain   text')")
    text = run()
    assert "\nA sentence.\n\n| a |\n|---|\n| 1 |\n" in text
    assert "```\nplain   text\n```" in text


def test_what_is_finished_is_kept_and_what_fails_is_named(place, monkeypatch):
    write, run = place
    monkeypatch.setattr(results, "LIMIT", 3)
    write("a", "print('first'); raise SystemExit(3)")
    write("b", TABLE)
    write("c", "import time; print('half', flush=True); time.sleep(60)")
    text = run(status="bench_a.py failed with exit status 3\nbench_c.py was ended after 0 minutes")
    assert "**It failed with exit status 3.** It had printed:\n\n```\nfirst\n```" in text
    assert "| 1 |" in text and "**It was ended after 0 minutes.** It had printed:\n\n```\nhalf\n```" in text


def test_only_replaces_its_sections(place, monkeypatch):
    write, run = place
    for name in "abc":
        write(name, f"print('{name} before')")
    run()
    for name in "abc":
        write(name, f"print('{name} after')")
    text = run("bench_b.py")
    assert [line for line in text.splitlines() if line.endswith(("before", "after"))] == [
        "a before",
        "b after",
        "c before",
    ]
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## The speed of {x}." for x in "abc"]
    assert run("bench_b.py").count("\n") == text.count("\n")
    monkeypatch.setattr(results, "machine", lambda: ["another"])
    text = run("bench_c.py")
    assert "a before" not in text and "c after" in text
