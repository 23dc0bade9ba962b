"""The page of events in a real browser, where one is installed."""

import re
import shutil
import subprocess

import pytest
from colours import write_video

from sail_hf.visualization import format_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVENTS = [
    {"start": 1.0, "end": 2.0, "text": "One < two & three.", "score": 0.5},
    {"start": 2.5, "end": 4.0, "text": "Two."},
]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: the page is not tried in a browser")


def show(folder, source: str, script: str = "", **options) -> str:
    """The page's elements after its scripts ran, and `script`, which may await, after them."""
    page = format_html(EVENTS, source, **options)
    tail = f"<script>video.addEventListener('loadedmetadata', async () => {{ {script} }});</script></body>"
    (folder / "page.html").write_text(page.replace("</body>", tail))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--autoplay-policy=no-user-gesture-required",
    ]
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run([*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def marks(dom: str) -> list[tuple[float, float]]:
    """Left and width of each event on the time line, in percent."""
    found = re.findall(r'<i style="left: ([\d.]+)%; width: ([\d.]+)%', dom)
    return [(float(left), float(width)) for left, width in found]


def test_a_video_that_plays(tmp_path):
    write_video(tmp_path / "a.mp4", ("red", 3), ("green", 2))
    dom = show(tmp_path, "a.mp4")
    assert re.search(r'<p id="note"[^>]* hidden', dom)
    assert marks(dom) == [(20, 20), (50, 30)]
    assert "0:01.0–0:02.0" in dom and "score 0.50" in dom and "One &lt; two &amp; three." in dom


@pytest.mark.parametrize("source, duration, expected", [("a.mp4", 10.0, (10, 10)), ("nowhere.mp4", None, (25, 25))])
def test_a_video_that_cannot_be_shown(tmp_path, source, duration, expected):
    """The page says so, and its time line has the duration that it was given, or the last event's end."""
    (tmp_path / "a.mp4").write_bytes(b"no video")
    dom = show(tmp_path, source, duration=duration)
    assert re.search(rf'<p id="note" role="status">This browser cannot show the video {source}', dom)
    assert marks(dom)[0] == expected


def test_keys_and_clicks(tmp_path):
    write_video(tmp_path / "a.mp4", ("red", 3), ("green", 2))
    script = """
      const seen = [], press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      for (const act of [() => press("j"), () => press("j"), () => press("k"), () => press("ArrowRight"),
                         () => strip.onclick({clientX: strip.getBoundingClientRect().left + strip.clientWidth * 0.3})]) {
        act(); await new Promise((done) => setTimeout(done, 100)); seen.push(video.currentTime.toFixed(1));
      }
      video.onseeked();
      document.title = seen.join(" ") + " " + document.querySelectorAll("[aria-current]").length;
    """
    dom = show(tmp_path, "a.mp4", script)
    assert re.search("<title>(.*)</title>", dom)[1] == "1.0 2.5 1.0 5.0 1.5 1"
