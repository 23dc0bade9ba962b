"""The command `sail` on small real files, in a world of plain colours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colours import BLUE, GREEN, RED, SENTENCES, make_colour_clip, make_colour_model, write_video
from tiny import make_processor, make_tokenizer
from transformers import GPT2Config, pipeline
from transformers.utils import logging as transformers_logging

from sail_hf.cli import main
from sail_hf.cli_videos import expand_videos
from sail_hf.export import FORMATS

ROOT = Path(__file__).parents[1]
CAPTIONS = [RED, GREEN, BLUE]
SCENES = (("red", 1.5), ("green", 3.0), ("blue", 1.5))
SPANS = [(0, 1.5), (1.5, 4.5), (4.5, 6)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`model`, its `clip`, `videos` (two good ones and a damaged one) and `captions.txt`."""
    home = tmp_path_factory.mktemp("home")
    clip = make_colour_clip(home / "clip")
    processor = make_processor()
    processor.tokenizer = make_tokenizer(list(SENTENCES.values()))
    make_colour_model(clip, processor, CAPTIONS).save_pretrained(home / "model")
    processor.save_pretrained(home / "model")
    (home / "videos").mkdir()
    write_video(home / "videos" / "one.mp4", *SCENES)
    write_video(home / "videos" / "-two.mkv", ("red", 2), ("green", 1), ("blue", 1))
    (home / "videos" / "damaged.mp4").write_bytes(b"this is no video")
    (home / "captions.txt").write_text("\n".join([RED, "", GREEN, f"  {BLUE} "]) + "\n")
    return home


@pytest.fixture
def here(home, monkeypatch) -> Path:
    """The working directory of these tests."""
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def expected(home) -> list[dict]:
    return pipeline("dense-video-captioning", model=str(home / "model"))(str(home / "videos" / "one.mp4"))


def printed(events: list[dict]) -> list[dict]:
    """Events as they are printed: milliseconds, and four digits of the score."""
    return [
        {**event, **{key: round(event[key], 3) for key in ("start", "end")}, "score": round(event["score"], 4)}
        for event in events
    ]


def times(events):
    return [(event["start"], event["end"]) for event in events]


def errors(capsys) -> str:
    return capsys.readouterr().err


# --- sail caption -------------------------------------------------------------------------------------------------


def test_one_file_for_each_video(here, expected, capsys, tmp_path):
    """The damaged and the missing one are named at the end, the others are done, whatever batch they are in."""
    videos = ["videos/damaged.mp4", "videos/one.mp4", "videos/nowhere.mp4", "videos/-two.mkv"]
    assert main(["caption", *videos, "--model", "model", "--output", str(tmp_path / "out"), "--batch-size", "3"]) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["-two.json", "one.json"]
    events = json.loads((tmp_path / "out" / "one.json").read_text())
    assert [event["text"] for event in events] == [event["text"] for event in expected]
    assert times(events) == times(printed(expected))
    message = errors(capsys)
    assert "2 of 4 videos failed" in message and "4/4" in message
    assert message.count("videos/damaged.mp4") == 1 and message.count("videos/nowhere.mp4") == 1
    assert "Traceback" not in message


@pytest.mark.parametrize("ending", ["srt", "vtt", "html"])
def test_subtitles_and_pages(here, tmp_path, ending):
    command = ["caption", "videos/one.mp4", "--model", "model", "--format", ending, "--localization", "alignment"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert path.name == f"one.{ending}"
    if ending == "html":
        # The page finds the video from where it lies.
        source = text.split('<video src="')[1].split('"')[0]
        assert (tmp_path / source).resolve() == here / "videos" / "one.mp4"
    else:
        assert text.count("-->") == 3 and text.startswith({"srt": "1\n00:00:00,000 --> ", "vtt": "WEBVTT\n"}[ending])


def test_standard_output(here, expected, capsys):
    assert main(["caption", "videos/one.mp4", "--model", "model"]) == 0
    assert json.loads(capsys.readouterr().out) == printed(expected)
    # Several videos: by name.
    assert main(["caption", "videos/one.mp4", "videos/damaged.mp4", "--model", "model"]) == 1
    assert json.loads(capsys.readouterr().out) == {"videos/one.mp4": printed(expected)}
    assert main(["caption", "videos/one.mp4", "videos/x.mp4", "--model", "model", "--format", "srt"]) == 1
    assert "2 videos do not fit into one srt document: give --output" in errors(capsys)


def test_several_formats_in_one_run(here, tmp_path):
    command = ["caption", "videos/one.mp4", "--model", "model", "--output", str(tmp_path)]
    assert main([*command, "--format", "srt,json"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.srt"]
    assert main([*command, "--format", "all"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"one.{form.ending}" for form in FORMATS.values()}


def test_the_output_is_a_file_where_it_has_an_ending(here, expected, capsys, tmp_path):
    command = ["caption", "videos/one.mp4", "--model", "model"]
    assert main([*command, "--output", str(tmp_path / "new" / "out.vtt")]) == 0
    assert (tmp_path / "new" / "out.vtt").read_text().startswith("WEBVTT")
    both = ["caption", "videos/one.mp4", "videos/-two.mkv", "--model", "model"]
    assert main([*both, "--format", "csv", "--output", str(tmp_path / "all.csv")]) == 0
    assert (tmp_path / "all.csv").read_text().count("videos/-two.mkv") >= 1
    for wrong, words in (
        ([*both, "--format", "srt", "--output", str(tmp_path / "x.srt")], "do not fit into one srt document"),
        ([*command, "--format", "srt,vtt", "--output", str(tmp_path / "x.srt")], "2 formats do not fit into"),
        ([*command, "--format", "srt", "--output", str(tmp_path / "x.vtt")], "does not end as srt does"),
        ([*command, "--output", str(tmp_path / "all.csv" / "inside")], "Nothing can be written in"),
    ):
        assert main(wrong) == 1 and words in errors(capsys)


def test_folders_patterns_and_lists(here, tmp_path):
    (tmp_path / "list.txt").write_text("# mine\nvideos/one.mp4\n\nvideos/one.mp4\n")
    everything = ["videos/-two.mkv", "videos/damaged.mp4", "videos/one.mp4"]
    assert expand_videos(["videos"]) == everything
    assert expand_videos(["videos/*.mp4", "https://host/a.mp4"]) == [*everything[1:], "https://host/a.mp4"]
    assert expand_videos([f"@{tmp_path / 'list.txt'}", "videos/one.mp4"]) == ["videos/one.mp4"]
    for wrong, words in ((str(tmp_path), "holds no videos"), ("*.nothing", "No file matches")):
        with pytest.raises(ValueError, match=words):
            expand_videos([wrong])


def test_a_name_that_is_no_text_ends_only_itself(here, capsys, tmp_path):
    name = os.fsdecode(b"videos/\xff.mp4")
    (here / name).write_bytes((here / "videos" / "one.mp4").read_bytes())
    try:
        assert main(["caption", name, "videos/one.mp4", "--model", "model", "--output", str(tmp_path)]) == 1
    finally:
        (here / name).unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]
    assert "1 of 2 videos failed" in (message := errors(capsys)) and "not valid UTF-8 text" in message


def test_quiet_and_verbose(here, capsys, tmp_path):
    command = ["caption", "videos/one.mp4", "--model", "model", "--output", str(tmp_path)]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(command) == 0
    message = errors(capsys)
    assert "1/1" in message and "Loading weights" not in message


def test_a_long_video_tells_its_events_as_they_come(here, expected, capsys, monkeypatch):
    """With progress inside the video, on the standard error; a short video has none of it. Not with --quiet."""
    monkeypatch.setattr("sail_hf.video_reading._BAR_AFTER", 0)
    transformers_logging.enable_progress_bar()
    command = ["caption", "videos/one.mp4", "--model", "model", "--chunk-length", "3"]
    assert main(command) == 0
    output = capsys.readouterr()
    events = json.loads(output.out)
    assert events == printed(pipeline("dense-video-captioning", model="model")("videos/one.mp4", chunk_length_s=3))
    # Bars go back to the start of a line, or up one.
    lines = output.err.replace("\r", "\n").replace("\x1b[A", "\n")
    told = re.findall(r"^00:00:(\S+) - 00:00:(\S+)  (.*)$", lines, re.MULTILINE)
    assert sorted((float(start), float(end), text) for start, end, text in told) == sorted(
        (*span, event["text"]) for span, event in zip(times(events), events, strict=True)
    )
    assert "videos/one.mp4:   0%" in output.err and "0/3" in output.err
    assert main([*command, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == events
    transformers_logging.enable_progress_bar()
    assert main(command[:4]) == 0
    assert " - 00:00" not in errors(capsys)


def test_what_is_said_of_a_long_video_and_a_small_world(here, capsys, monkeypatch):
    """As sentences of their own; nothing with --quiet."""
    pipe = pipeline("dense-video-captioning", model="model")
    pipe.model.config.chunk_length_s, pipe.model.config.knows_only = 4.5, "three colours"
    pipe.save_pretrained("little")
    command = ["caption", "videos/one.mp4", "--model", "little"]
    assert main(command) == 0
    said = errors(capsys)
    assert (
        "6 s are more than 8 frames resolve, so it is captioned in 2 chunks of 4.5 s (chunk_length_s=0 or --chunk-length 0:"
        in said
    )
    assert "This model knows only three colours: its captions of anything else mean nothing.\n" in said
    assert main([*command, "--chunk-length", "0"]) == 0
    assert "chunks" not in errors(capsys)
    assert main([*command, "--quiet"]) == 0
    assert errors(capsys) == ""


def test_videos_that_are_not_there_need_no_model(here, capsys, monkeypatch):
    monkeypatch.setattr("sail_hf.cli_caption.load_pipeline", None)
    assert main(["caption", "nowhere.mp4", "--model", "model"]) == 1
    assert errors(capsys).splitlines()[-1] == "sail: error: nowhere.mp4: no such file"


def test_ctrl_c_keeps_what_is_done(here, expected, capsys, monkeypatch):
    """The second video is interrupted: the first one is printed, and the status is that of a signal."""

    class Pipe:
        def stream(self, video):
            if video == "videos/-two.mkv":
                raise KeyboardInterrupt
            yield expected

    monkeypatch.setattr("sail_hf.cli_caption.load_pipeline", lambda args: Pipe())
    assert main(["caption", "videos/one.mp4", "videos/-two.mkv", "--model", "model"]) == 130
    output = capsys.readouterr()
    assert json.loads(output.out) == {"videos/one.mp4": printed(expected)}
    assert "interrupted; 1 of 2 videos are done and kept" in output.err
    monkeypatch.setattr("sail_hf.cli_caption.load_pipeline", lambda args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["caption", "videos/one.mp4", "--model", "model"]) == 130


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precision(here, capsys, dtype):
    assert main(["caption", "videos/one.mp4", "--model", "model", "--dtype", dtype]) == 0
    assert json.loads(capsys.readouterr().out)
    assert (
        main(["caption", "videos/one.mp4", "--model", "model", "--dtype", dtype, "--localization", "alignment"]) == 0
    )


def test_options_of_the_pipeline(here, capsys):
    command = ["caption", "videos/one.mp4", "--model", "model"]
    pipe = pipeline("dense-video-captioning", model="model")
    for given, options in [
        (["--num-events", "2"], {"num_events": 2}),
        (["--localization", "alignment"], {"localization": "alignment"}),
        (
            ["--localization", "alignment", "--frames-per-second", "5"],
            {"localization": "alignment", "frames_per_second": 5},
        ),
        (["--chunk-length", "3", "--stride", "0.5"], {"chunk_length_s": 3, "stride_length_s": 0.5}),
        (["--device", "cpu"], {}),
    ]:
        assert main([*command, *given]) == 0
        assert json.loads(capsys.readouterr().out) == printed(pipe("videos/one.mp4", **options))


def test_existing_outputs_are_skipped_on_request(here, capsys, tmp_path):
    (tmp_path / "one.json").write_text("mine")
    command = ["caption", "videos/one.mp4", "videos/-two.mkv", "--model", "model", "--output", str(tmp_path)]
    assert main([*command, "--skip-existing"]) == 0
    assert (tmp_path / "one.json").read_text() == "mine" and json.loads((tmp_path / "-two.json").read_text())
    assert "1 of 2 videos have their output already" in errors(capsys)
    assert main(command) == 0
    assert json.loads((tmp_path / "one.json").read_text())
    # Nothing left to do needs no model.
    assert main([*command[:3], "--model", "nowhere", "--output", str(tmp_path), "--skip-existing"]) == 0


def test_names_that_start_with_a_dash(home):
    """As a shell would start it, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sail_hf.cli", "caption", "--model", str(home / "model")]
    run = subprocess.run([*command, "--", "-two.mkv"], cwd=home / "videos", env=environment, capture_output=True)
    assert run.returncode == 0 and json.loads(run.stdout)


def test_names_with_a_leading_folder(home, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(home / "videos")
    command = ["caption", "--model", "../model"]
    assert main([*command, "./-two.mkv"]) == 0
    assert json.loads(capsys.readouterr().out)
    # Two names for one output file are an error before any work.
    assert main([*command, "--output", str(tmp_path), "--", "one.mp4", "elsewhere/one.avi"]) == 1
    assert "one.mp4 and elsewhere/one.avi would both be written to" in errors(capsys)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "nowhere"], "nowhere is no folder"),
        (["--model", "videos"], "videos holds no model"),
        (["--model", "clip"], "clip holds no model"),
        (["--model", "gpt"], "type 'gpt2', expected 'sail'"),
        (["--model", "model", "--num-events", "9"], "num_events.*1..4.*9"),
        (["--model", "model", "--stride", "30"], "less than half of `chunk_length_s` .60."),
        (["--model", "model", "--frames-per-second", "2"], "--localization alignment"),
        (["--model", "model", "--device", "toaster"], "--device toaster"),
        (["--model", "model", "--skip-existing"], "--output"),
    ],
)
def test_mistakes_are_told_without_a_traceback(here, capsys, arguments, words):
    GPT2Config().save_pretrained("gpt")
    assert main(["caption", "videos/one.mp4", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()[-1]) < 400
    assert re.search(words, output.err) and output.err.splitlines()[-1].startswith("sail: error")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["caption"],
        ["caption", "videos/one.mp4"],
        ["caption", "x", "--model", "m", "--format", "doc"],
        ["caption", "x", "--model", "m", "--quiet", "--verbose"],
        ["find", "x", "--clip", "c"],
        ["find", "x", "a dog", "--clip", "c", "--top-k", "0"],
        ["score", "x"],
        ["score", "x", "y", "--protocol", "2019"],
        ["caption", "x", "--model", "m", "--batch-size", "0"],
        ["align", "x", "--captions", "c"],
        ["align", "x", "--clip", "c"],
        ["align", "x", "--captions", "c", "--clip", "c", "--gap-level", "nan"],
        ["align", "x", "--captions", "c", "--clip", "c", "--model", "m"],
        ["align", "x", "--captions", "c", "--clip", "c", "--frames-per-second", "0"],
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: sail" in errors(capsys)


LIGHT = """
import sys
from sail_hf.cli import main
for arguments in sys.argv[1].split(";"):
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    heavy = {"torch", "transformers", "open_clip", "datasets", "av", "numpy"} & sys.modules.keys()
    assert not heavy and status == (0 if arguments.endswith(("--help", "--version")) else status or 1), (arguments, heavy, status)
"""


def test_nothing_heavy_is_imported_before_a_command_needs_it(here):
    """Help, usage errors and wrong names come at once."""
    align = "align videos/one.mp4 --captions captions.txt"
    commands = [
        "--help",
        "--version",
        "find --help",
        "caption",
        "caption a b --model model --format srt",
        "caption a --model nowhere",
        "caption a --model org/nowhere",
        "caption a --model no/such/model",
        "caption a --model clip",
        f"{align} --clip nowhere",
        f"{align} --clip hf-hub:org/nowhere",
        f"{align} --model videos",
        "align a --captions nowhere --clip clip",
        "find nowhere.mp4 sentence --clip clip",
        "find videos/one.mp4 sentence --clip nowhere",
        "score nowhere.json captions.txt",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LIGHT, ";".join(commands)]
    run = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("sail: error") == 12 and "Traceback" not in run.stderr


# --- sail align ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [["--model", "model"], ["--clip", "clip"]], ids=["model", "clip"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_times_for_captions(here, capsys, tmp_path, source, form):
    captions = "captions.txt"
    if form == "json":
        captions = tmp_path / "captions.JSON"
        captions.write_text(json.dumps(CAPTIONS))
    command = ["align", "videos/one.mp4", "--captions", str(captions), *source, "--frames-per-second", "10"]
    assert main(command) == 0
    events = json.loads(capsys.readouterr().out)
    assert [event["text"] for event in events] == CAPTIONS
    assert np.abs(np.array(times(events)) - SPANS).max() <= 0.11
    assert main([*command, "--format", "vtt", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "one.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01")


def test_captions_in_any_order(here, capsys, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join([BLUE, RED, GREEN]))
    command = ["align", "videos/one.mp4", "--captions", str(tmp_path / "captions.txt"), "--clip", "clip"]
    assert main([*command, "--alignment", "unordered"]) == 0
    assert [event["text"] for event in json.loads(capsys.readouterr().out)] == CAPTIONS


@pytest.mark.parametrize(
    "content, name, words",
    [
        (b"", "captions.txt", "holds no captions"),
        (b"\n  \n", "captions.txt", "holds no captions"),
        (b"[]", "captions.json", "holds no captions"),
        (b"[1, 2]", "captions.json", "event 0: expected a sentence, found 1"),
        (b'["a", " "]', "captions.json", "caption 1 is empty"),
        (b'{"a": "b"}', "captions.json", "holds no captions"),
        (b"[", "captions.json", "no JSON"),
        (b"\xff\xfe\x00", "captions.txt", "no UTF-8"),
        (None, "captions.txt", "No such file"),
    ],
)
def test_captions_that_cannot_be_read(here, capsys, tmp_path, content, name, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["align", "videos/one.mp4", "--captions", str(tmp_path / name), "--clip", "clip"]) == 1
    message = errors(capsys)
    assert words in message and name in message and message.startswith("sail: error")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["videos/damaged.mp4", "--captions", "captions.txt", "--clip", "clip"], "damaged.mp4"),
        (["videos/one.mp4", "--captions", "no.txt", "--clip", "clip"], "error: no.txt: No such file or directory"),
        (["videos/nowhere.mp4", "--captions", "captions.txt", "--clip", "clip"], "nowhere.mp4"),
        (["videos/one.mp4", "--captions", "captions.txt", "--clip", "nowhere"], "nowhere"),
        (["videos/one.mp4", "--captions", "captions.txt", "--clip", "no/such/clip"], "no/such/clip is no folder"),
        (["videos/one.mp4", "--captions", "captions.txt", "--clip", "hf-hub:no/clip"], "no/clip is no folder"),
        (["videos/one.mp4", "--captions", "captions.txt", "--model", "no/such/model"], "no/such/model is no folder"),
    ],
)
def test_what_cannot_be_aligned(here, capsys, arguments, words):
    assert main(["align", *arguments]) == 1
    message = errors(capsys)
    assert words in message and message.startswith("sail: error") and "Traceback" not in message
