"""Damaged videos give frames or a `VideoError`; a short form of tests/soak/soak_videos.py, which opens thousands."""

import sys

import pytest
from soak.soak_videos import soak, variant


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_damaged_videos_end_nothing_but_themselves():
    found = soak(range(300), seed=9)
    assert found["defects"] == []
    assert found["frames"] > 60 and found["refused"] > 60, "variants should be damaged, and not all beyond repair"
    assert found["frames"] + found["refused"] == 300
    assert found["longest_seconds"] < 15
    assert found["peak_bytes"] < 2.5 * 2**30


def test_a_variant_is_made_again_from_its_number():
    sources = [bytes(range(256)) * 40, b"another" * 999]
    made = [variant(sources, 0, number) for number in range(50)]
    assert made == [variant(sources, 0, number) for number in range(50)]
    assert len({*made}) == 50 and not {*made} & {*sources}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("import os; os.kill(os.getpid(), 11)", "crash: -11"),
        ("import time; time.sleep(60)", "hang"),
    ],
)
def test_defects_are_noticed(monkeypatch, tmp_path, body, what):
    """A package whose `open_video` misbehaves stands in for ours."""
    package = tmp_path / "sail_hf"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "video_reading.py").write_text(
        "class VideoError(ValueError): pass\nclass VideoLimits:\n    def __init__(self, **_): pass\n"
        f"def uniform_times(*_): pass\ndef open_video(*_, **__):\n    {body}\n"
    )
    monkeypatch.setattr("soak.soak_videos.PACKAGE", tmp_path)
    monkeypatch.setenv("SOAK_SECONDS_PER_FILE", "1")
    found = soak(range(3, 5))
    assert found["defects"] == [(3, what), (4, what)]
