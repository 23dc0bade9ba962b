"""`sail app`: its functions, and the app in a real browser on a real video, in a world of plain colours."""

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import CHROMIUM, Browser, free_port, served
from colours import BLUE, GREEN, RED, SENTENCES, make_colour_clip, make_colour_model, write_odd_video, write_video
from tiny import make_processor, make_tokenizer
from transformers import pipeline

from sail_hf.cli_app import DESCRIBE, FIND, TIME, events_for, show
from sail_hf.data import read_annotation_file
from sail_hf.export import FORMATS


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    clip = make_colour_clip(tmp_path_factory.mktemp("clip"))
    processor = make_processor()
    processor.tokenizer = make_tokenizer(list(SENTENCES.values()))
    model = make_colour_model(clip, processor, [RED, GREEN, BLUE])
    return pipeline("dense-video-captioning", model=model, processor=processor)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(write_video(tmp_path_factory.mktemp("video") / "one.mp4", ("red", 2), ("green", 3), ("blue", 2)))


def test_tasks(pipe, video):
    assert [event["text"] for event in events_for(pipe, video, DESCRIBE, " \n")] == [e["text"] for e in pipe(video)]
    timed = events_for(pipe, video, TIME, f"{RED}\n\n{BLUE}\n")
    assert [event["text"] for event in timed] == [RED, BLUE] and "gain" in timed[0]
    found = events_for(pipe, video, FIND, f"{BLUE}\n{GREEN}")
    best = max((event for event in found if event["text"] == GREEN), key=lambda event: event["similarity"])
    assert (best["start"], best["end"]) == (pytest.approx(2, abs=0.5), pytest.approx(5, abs=0.5))
    assert [event["start"] for event in found] == sorted(event["start"] for event in found)
    for task, text, message in [(DESCRIBE, RED, "or leave the sentences out"), (TIME, "", "one a line")]:
        with pytest.raises(ValueError, match=message):
            events_for(pipe, video, task, text)


def test_documents_of_a_video_that_browsers_do_not_know(tmp_path):
    video = write_odd_video(tmp_path / "odd.mkv")
    page, files = show(str(video), [{"start": 0, "end": 1, "text": 'A < b & "c".', "score": 0.5}])
    assert {file.rpartition("/odd.")[2] for file in files} == {form.ending for form in FORMATS.values()}
    (row,) = read_annotation_file(next(file for file in files if file.endswith(".srt")))
    assert row["captions"] == ['A < b & "c".']
    # Nothing tells where uploads lie but the address that plays the copy.
    assert not any(str(tmp_path) in open(file, encoding="utf-8").read() for file in files)
    assert page.count(str(tmp_path)) == 1 and "odd.playable.mp4" in page


@pytest.fixture(scope="module")
def server(pipe, tmp_path_factory):
    """Address of the running command, and the folder of its files."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'sail-hf[app]'")
    home = tmp_path_factory.mktemp("app")
    for name in ("colours", "same"):
        pipe.save_pretrained(home / name)
    (home / "tmp").mkdir()
    variables, port = {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(home / "tmp")}, free_port()
    command = ["-m", "sail_hf.cli", "app", "--model", "colours", "same", "--max-upload", "1", "--port", str(port)]
    with served([*command, "--quiet"], home, port, **variables) as process:
        (folder,) = (home / "tmp").glob("sail-app-*")
        yield f"http://127.0.0.1:{port}/", folder
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0 and not folder.exists()


def ask(address, name, data):
    """What a function of a Gradio app answers to a program."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}gradio_api/call/{name}", json.dumps({"data": data}).encode(), headers)
    event = json.loads(urllib.request.urlopen(request).read())["event_id"]
    return urllib.request.urlopen(f"{address}gradio_api/call/{name}/{event}").read().decode()


def test_no_other_file_is_served(server, tmp_path):
    address, folder = server
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "own.txt").write_text("own")
    names = [tmp_path / "secret.txt", folder / ".." / tmp_path.name / "secret.txt", "pyproject.toml", "/etc/passwd"]
    for name in names:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}gradio_api/file={quote(str(name))}")
        assert caught.value.code == 403
    assert urllib.request.urlopen(f"{address}gradio_api/file={quote(str(folder / 'own.txt'))}").read() == b"own"
    # Nor does it read one that was not uploaded.
    secret = {"path": str(tmp_path / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    assert ask(address, "events", [secret, "colours", TIME, "x"]).startswith("event: error")


@pytest.fixture
def browser(server, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium): the app is not tried in a browser")
    with Browser(tmp_path / "browser") as browser:
        browser.resize(1000, 900)
        browser.open(server[0])
        browser.wait("document.querySelector('input[type=file]') && document.querySelector('button.primary')")
        yield browser


def upload_and_go(browser, video):
    """Waits for the page of the video, and for its documents."""
    browser.upload("input[type=file]", video)
    browser.wait("document.querySelector('a[download]')")
    browser.click("button.primary")
    browser.wait("document.querySelectorAll('a[download]').length > 1 && document.querySelector('iframe')")
    return browser.run("[...document.querySelectorAll('a[download]')].map((link) => link.getAttribute('download'))")


def test_a_video_is_dropped_and_its_events_are_corrected(browser, pipe, video):
    assert set(upload_and_go(browser, video)) == {"one.mp4", *(f"one.{form.ending}" for form in FORMATS.values())}
    assert browser.run("document.querySelector('iframe').sandbox.value.includes('same-origin')") is False
    events = sorted(pipe(video), key=lambda event: (event["start"], event["end"]))
    with browser.frame():
        browser.wait("typeof events !== 'undefined' && video.readyState > 0")
        assert browser.run("[video.videoWidth, warning.textContent]") == [32, ""]
        browser.run("events[0].text = 'Corrected.'; download('srt')")
    (row,) = read_annotation_file(browser.downloaded("one.srt"))
    assert row["captions"] == ["Corrected.", *(event["text"] for event in events[1:])]


def test_a_real_video_that_browsers_do_not_know(browser, shared):
    names = upload_and_go(browser, str(shared / "videos" / "odd" / "flipping_a_pancake.mkv"))
    assert "flipping_a_pancake.html" in names
    with browser.frame():
        browser.wait("typeof events !== 'undefined' && video.readyState > 0")
        assert browser.run("video.videoWidth > 0 && video.duration > 1 && events.length > 0")


def test_what_is_wrong_is_said_in_a_sentence(browser, tmp_path):
    browser.click("button.primary")
    browser.wait("document.body.innerText.includes('Drop a video first.')")
    (tmp_path / "large.mp4").write_bytes(bytes(2_000_000))
    browser.upload("input[type=file]", str(tmp_path / "large.mp4"))
    browser.wait("/exceeds|maximum/.test(document.body.innerText)")
    (tmp_path / "<i>damaged.mp4").write_bytes(b"no video")
    browser.upload("input[type=file]", str(tmp_path / "<i>damaged.mp4"))
    browser.wait("document.querySelector('a[download]')")
    browser.click("button.primary")
    browser.wait("/damaged.mp4.*no video|not a video|cannot be read/.test(document.body.innerText)")
    assert browser.run("document.body.innerText.includes('/tmp')") is False
