"""The page of events in a real browser, where one is installed: watched, corrected, and read back."""

import json

import pytest
from browser import CHROMIUM, Browser
from colours import write_odd_video, write_video

from sail_hf.cli_videos import Documents
from sail_hf.data import read_annotation_file
from sail_hf.export import format_srt, format_vtt
from sail_hf.visualization import format_html

EVENTS = [
    {"start": 1.0, "end": 2.0, "text": "One < two --> & three.", "score": 0.5},
    {"start": 2.5, "end": 4.0, "text": "Zwei: „schön“."},
]
PIXELS_OF_A_SECOND = "strip.clientWidth / total()"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium): the page is not tried in a browser"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_video(folder / "a.mp4", ("red", 3), ("green", 2))
    (folder / "damaged.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    with Browser(folder / "browser") as browser:
        yield browser


@pytest.fixture
def show(browser, folder):
    """Shows the page of a video that lies beside it."""

    def show(source="a.mp4", events=EVENTS, **options):
        (folder / "page.html").write_text(format_html(events, source, **options), encoding="utf-8")
        browser.resize(900, 700)
        browser.open((folder / "page.html").as_uri())
        browser.wait("video.readyState > 0 || video.error")
        return browser

    return show


def times(browser):
    return browser.run("events.map((event) => [event.start, event.end])")


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll('{selector}')].map((one) => one.textContent)")


def marks(browser):
    """Left and width of each event on the time line, in percent."""
    return browser.run("events.map(({view}) => [parseFloat(view.mark.style.left), parseFloat(view.mark.style.width)])")


def read_back(browser, form, name="Events"):
    """The row that `training/build_dataset.py` makes of a download."""
    index = ("json", "srt", "vtt").index(form)
    (browser.downloads / f"{name}.{form}").unlink(missing_ok=True)
    browser.click("#save button", index)
    file = browser.downloaded(f"{name}.{form}")
    (row,) = read_annotation_file(file)
    return file, row


# --- Watched ------------------------------------------------------------------------------------------------------


def test_a_video_that_plays(show):
    browser = show()
    assert marks(browser) == [[20, 20], [50, 30]]
    assert texts(browser, "li .words") == [event["text"] for event in EVENTS]
    assert texts(browser, "time") == ["0:01.0–0:02.0", "0:02.5–0:04.0"]
    assert texts(browser, "li small") == ["score 0.50", ""]
    assert texts(browser, ".note") == ["", ""]
    # Nothing to correct is in sight.
    assert browser.run("[...document.querySelectorAll('.editor')].every((one) => one.offsetParent === null)")


@pytest.mark.parametrize(
    "source, duration, expected", [("damaged.mp4", 10.0, [10, 10]), ("nowhere.mp4", None, [25, 25])]
)
def test_a_video_that_cannot_be_shown(show, source, duration, expected):
    """The page says so, and its time line has the duration that it was given, or the last event's end."""
    browser = show(source, duration=duration)
    assert texts(browser, "#warning")[0].startswith(
        f"This browser cannot show the video {source}: it is not there, or"
    )
    assert marks(browser)[0] == expected


def test_events_past_the_end_stay_inside_the_time_line(show):
    browser = show(events=[{"start": 4, "end": 8, "text": "It goes on."}])
    assert marks(browser) == [[50, 50]]


def test_keys_and_clicks(show):
    browser = show()
    seen = []
    for key in ("j", "j", "k", "ArrowRight", "k", "ArrowLeft"):
        browser.press(key)
        seen.append(browser.run("video.currentTime"))
    assert seen == [1, 2.5, 1, 5, 2.5, 0]
    x, y = browser.at("#strip")
    browser.click_at(x - browser.run("strip.clientWidth") * 0.2, y)
    assert browser.run("video.currentTime") == pytest.approx(1.5, abs=0.02)
    assert browser.run("document.querySelectorAll('li[aria-current]').length") == 1
    # So does the lane below a sentence, whose needle is that of the time line.
    browser.click(".lane", 1)
    assert browser.run("video.currentTime") == pytest.approx(2.5, abs=0.02)
    assert browser.run("getComputedStyle(list, '::before').left") == browser.run(
        "getComputedStyle(strip, '::after').left"
    )
    browser.press(" ")
    browser.wait("!video.paused && video.currentTime > 2.6")
    browser.press(" ")
    assert browser.run("video.paused")


def test_an_event_is_looped(show):
    browser = show()
    browser.run("window.seen = []; setInterval(() => seen.push(video.currentTime), 20); 0")
    browser.click("li button:not(.go):not(.editor)", 0)
    assert browser.run("events[0].view.loop.getAttribute('aria-pressed')") == "true"
    browser.wait("seen.some((time, i) => i && 1 <= time && time < seen[i - 1] && seen[i - 1] > 1.5)")
    assert browser.run("!video.paused")
    # Whoever goes elsewhere has left it.
    browser.press("j")
    assert browser.run("looped === null && events[0].view.loop.getAttribute('aria-pressed') === 'false'")


@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(show, width, dark):
    """Nothing is wider than the window, and the video stays in sight; text has a contrast of 4.5 and more."""
    browser = show(events=[{"start": 0, "end": 5, "text": f"{i} " + "word" * 40} for i in range(20)])
    browser.resize(width, 700, dark)
    browser.click("#edit")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    browser.run("window.scrollTo(0, 100000)")
    assert browser.run("video.getBoundingClientRect().top >= 0")
    luminance = """(name) => {
      const color = getComputedStyle(document.body).getPropertyValue(name).trim().slice(1);
      const digits = color.length === 3 ? [...color].map((digit) => digit + digit) : color.match(/../g);
      const [r, g, b] = digits.map((pair) => parseInt(pair, 16) / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    for ink, ground in [("ink", "page"), ("soft", "page"), ("ink", "on"), ("soft", "on"), ("ink", "note")]:
        pair = sorted(browser.run(f"({luminance})('--{name}')") for name in (ink, ground))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ink, ground)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(17, 20, 24)" if dark else "rgb(255, 255, 255)"
    )


@pytest.mark.parametrize("source", ["odd.mkv", "a.mp4"])
def test_one_file_that_every_browser_plays(browser, folder, tmp_path, source):
    """`--embed --transcode`: the page alone, elsewhere, plays, and goes to any time."""
    write_odd_video(folder / "odd.mkv")
    documents = Documents([str(folder / source)], ["html"], str(tmp_path / "out"), embed=True, transcode=True)
    documents.add(str(folder / source), EVENTS)
    page = (tmp_path / "out" / f"{source[:-4]}.html").rename(tmp_path / "alone.html")
    assert [path.name for path in (tmp_path / "out").iterdir()] == (
        ["odd.playable.mp4"] if source == "odd.mkv" else []
    )
    browser.open(page.as_uri())
    browser.wait("video.readyState > 1")
    assert texts(browser, "#warning") == [""] and browser.run("video.videoWidth") == 32
    browser.press("j")
    browser.press("j")
    browser.wait("!video.seeking && video.readyState > 1")
    red, green, _ = browser.run("""(() => {
      const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
      brush.drawImage(video, 0, 0);
      return [...brush.getImageData(16, 16, 1, 1).data].slice(0, 3); })()""")
    assert green > red if source == "odd.mkv" else red > green, "at 2.5 s"


def test_pages_refuse_what_they_cannot_hold(tmp_path, folder):
    for formats, video, options, message in [
        (["srt"], "a.mp4", {"embed": True}, "give --format html"),
        (["html"], "https://example.org/a.mp4", {"transcode": True}, "download it first"),
        (["html"], "large.mp4", {"embed": True}, "has 21.0 MB, and a page holds at most 20"),
    ]:
        with (tmp_path / "large.mp4").open("wb") as file:
            file.truncate(21_000_000)
        video = video if "//" in video else str((tmp_path if video == "large.mp4" else folder) / video)
        with pytest.raises(ValueError, match=message):
            Documents([video], formats, str(tmp_path / "out"), **options)


# --- Corrected and read back --------------------------------------------------------------------------------------


def test_what_is_not_corrected_is_downloaded_as_it_was_written(show):
    browser = show(title="v_1 a")
    assert read_back(browser, "srt", "v_1 a")[0].read_text(encoding="utf-8") == format_srt(EVENTS)
    assert read_back(browser, "vtt", "v_1 a")[0].read_text(encoding="utf-8") == format_vtt(EVENTS)
    assert json.loads(read_back(browser, "json", "v_1 a")[0].read_text(encoding="utf-8")) == {"v_1 a": EVENTS}


def test_corrections_are_read_as_captions_to_train_on(show):
    browser = show(title="a")
    browser.click("#edit")
    browser.click("textarea", 1)
    browser.run("document.activeElement.select()")
    browser.type("It is  green: \n x --> y.")
    second = browser.run(PIXELS_OF_A_SECOND)
    browser.drag(".handle.start", 0, -0.5 * second)
    browser.drag(".handle.end", 1, 0.75 * second)
    assert times(browser) == [
        [pytest.approx(0.5, abs=0.02), 2],
        [2.5, pytest.approx(4.75, abs=0.02)],
    ]
    # The video shows the frame that the edge was moved to.
    assert browser.run("video.currentTime") == pytest.approx(4.75, abs=0.02)
    browser.run("go(3)")
    browser.click("#add")
    browser.type("New one.")
    assert times(browser)[2] == [3, 5]
    spans = times(browser)
    for form, second_text in (("json", "It is green: x --> y."), ("srt", "It is green: x -> y.")):
        _, row = read_back(browser, form, "a")
        assert row["video_id"] == "a" and row["timestamps"] == spans
        assert row["captions"][1:] == [second_text, "New one."]
    # What was corrected is no longer what the score was for.
    file, _ = read_back(browser, "json", "a")
    assert not any("score" in event for event in json.loads(file.read_text(encoding="utf-8"))["a"])


def test_edges_move_by_keys_and_stay_in_order(show):
    browser = show()
    browser.click("#edit")
    browser.run("events[0].view.handles[1].focus()")
    for key in ("ArrowRight", "ArrowRight", "PageUp", "ArrowLeft"):
        browser.press(key)
    assert times(browser)[0] == [1, 3.1]
    assert browser.run("document.activeElement.getAttribute('aria-valuetext')") == "0:03.1"
    assert browser.run("document.activeElement.matches(':focus-visible')")
    assert browser.run("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    browser.run("video.currentTime = 0.4")
    browser.press("Enter")
    assert times(browser)[0] == [1, 1.1], "an event keeps a tenth of a second"
    browser.press("z", control=True)
    assert times(browser)[0] == [1, 3.1]


def test_deleted_is_taken_back_and_the_empty_left_out(show):
    browser = show()
    browser.click("#edit")
    browser.click("li button.editor", 0)
    assert times(browser) == [[2.5, 4]]
    browser.click("#undo")
    assert times(browser) == [[1, 2], [2.5, 4]] and browser.run("events[0].score") == 0.5
    browser.press("a")
    assert len(times(browser)) == 3
    assert len(read_back(browser, "srt")[1]["captions"]) == 2
    assert texts(browser, "#note") == ["1 of the events had no sentence, and is left out."]
    # Keys are letters where a sentence is typed.
    browser.click("textarea", 0)
    browser.press("j")
    assert "j" in browser.run("events[0].text") and len(times(browser)) == 3


# --- Where words are seen


WORDS = [
    {
        "text": "two",
        "start": 1.0,
        "end": 2.0,
        "score": 0.75,
        "boxes": [
            {"time": 1.0, "box": [0.0, 0.0, 0.5, 0.5], "score": 0.25},
            {"time": 1.5, "box": [0.5, 0.5, 1.0, 1.0], "score": 0.5},
        ],
        "heat": {"time": 1.5, "box": [0.0, 0.0, 1.0, 1.0], "values": [[0.0, 0.0], [0.0, 1.0]]},
    }
]
# Red, green, blue and opacity of the canvas in the middle of a quarter.
PIXEL = """((x, y) => {{ const c = document.querySelector("canvas");
    return [...c.getContext("2d").getImageData(c.width * x, c.height * y, 1, 1).data]; }})({}, {})"""


def test_a_word_under_the_pointer_shows_its_frames_with_box_and_heat(show):
    browser = show(events=[{**EVENTS[0], "words": WORDS}, EVENTS[1]])
    assert texts(browser, ".seen") == ["two"]
    assert texts(browser, ".words") == [event["text"] for event in EVENTS]
    assert browser.run("[...track.cues].map((cue) => cue.text)")[0] == "One &lt; two --> &amp; three."
    assert browser.run(PIXEL.format(0.75, 0.75))[3] == 0
    browser.mouse("mouseMoved", *browser.at(".seen"))
    browser.wait("Math.abs(video.currentTime - 1.5) < 0.01")
    # The picture may be narrower than its place: its lower right quarter is hot, the others are not.
    inset = browser.run(
        "(1 - Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight)"
        " * video.videoWidth / video.clientWidth) / 2"
    )
    right, left = 1 - inset - 0.25 * (1 - 2 * inset), inset + 0.25 * (1 - 2 * inset)
    red, green, _, opacity = browser.run(PIXEL.format(right, 0.75))
    assert red > 200 and green < 60 and opacity == pytest.approx(0.6 * 255, abs=3)
    assert browser.run(PIXEL.format(left, 0.25))[3] == 0
    edge = browser.run(PIXEL.format(0.5, 0.75))  # the left side of the box
    assert edge[0] > 200 and edge[1] > 150 and edge[3] == 255
    browser.wait("Math.abs(video.currentTime - 1.0) < 0.01")  # the other frame
    assert browser.run(PIXEL.format(right, 0.75))[3] == 0
    browser.mouse("mouseMoved", 1, 1)
    browser.wait(f"{PIXEL.format(0.5, 0.25)}[3] === 0")


def test_a_corrected_sentence_points_at_nothing(show):
    browser = show(events=[{**EVENTS[0], "words": WORDS}])
    assert browser.run("events.map(plain)[0].words") == WORDS
    browser.run("corrected(events[0])")
    assert texts(browser, ".seen") == [] and browser.run("events.map(plain)[0].words ?? null") is None
