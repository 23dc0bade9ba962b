"""Documents of events, read back by FFmpeg, by the csv and json modules, and by hand."""

import csv
import io
import json
import re
from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_hf.data import read_annotation_file
from sail_hf.export import (
    FORMATS,
    LABEL_STUDIO_FPS,
    chapters,
    format_chapters,
    format_elan,
    format_ffmetadata,
    format_srt,
    format_vtt,
    format_vtt_chapters,
)
from sail_hf.prediction_files import parse_subtitles, read_events, read_results

EVENTS = [
    {"start": 3661.0014, "end": 3665.25, "text": "A cat\n\n sleeps --> deeply.", "score": 0.5},
    {"start": 0.0, "end": 59.9996, "text": " Tom & <b>Jerry</b> run. "},
    {"start": 1.5, "end": 1.5, "text": "They jump."},
    {"start": 2.0, "end": 3.0, "text": " \n"},
]


def test_srt_by_hand():
    assert format_srt(EVENTS) == (
        "1\n00:00:00,000 --> 00:01:00,000\nTom & <b>Jerry</b> run.\n\n"
        "2\n00:00:01,500 --> 00:00:01,501\nThey jump.\n\n"
        "3\n01:01:01,001 --> 01:01:05,250\nA cat sleeps -> deeply.\n"
    )


def test_vtt_by_hand():
    assert format_vtt(EVENTS) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:01:00.000\nTom &amp; &lt;b&gt;Jerry&lt;/b&gt; run.\n\n"
        "00:00:01.500 --> 00:00:01.501\nThey jump.\n\n"
        "01:01:01.001 --> 01:01:05.250\nA cat sleeps --&gt; deeply.\n"
    )


def test_no_events():
    assert format_srt([]) == ""
    assert format_vtt([]) == "WEBVTT\n"


seconds = st.floats(min_value=0, max_value=400_000)
any_event = st.builds(
    lambda times, text: {"start": min(times), "end": max(times), "text": text}, st.tuples(seconds, seconds), st.text()
)


@given(st.lists(any_event, max_size=6))
def test_every_event_with_text_is_one_well_formed_cue(events):
    num_texts = sum(bool(event["text"].split()) for event in events)
    clock = r"(\d+):([0-5]\d):([0-5]\d)[.,](\d{3})"
    for page, header in ((format_srt(events), 0), (format_vtt(events), 1)):
        blocks = [block for block in page.split("\n\n") if block.strip("\n")][header:]
        assert len(blocks) == num_texts
        previous = 0
        for block in blocks:
            timing, text = block.rstrip("\n").split("\n")[-2:]
            parts = [int(part) for part in re.fullmatch(f"{clock} --> {clock}", timing).groups()]
            start, end = (((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (parts[:4], parts[4:]))
            assert previous <= start < end
            assert text.strip() and "-->" not in text
            previous = start


@pytest.mark.parametrize(
    "event, message",
    [
        (
            {"start": 2.0, "end": 1.0, "text": "a"},
            "Event 0: expected 0 <= start <= end in seconds, found start=2.0",
        ),
        ({"start": -1.0, "end": 1.0, "text": "a"}, "start=-1.0"),
        ({"start": 0.0, "end": float("nan"), "text": "a"}, "end=nan"),
        ({"start": 0.0, "sentence": "a"}, "expected start, end and text, found only start, sentence"),
    ],
)
def test_bad_events_are_named(event, message):
    for form in FORMATS.values():
        if form.about != "events":
            with pytest.raises(ValueError, match=message):
                form.document({"a.mp4": [event]})


def cues_of(path) -> list[tuple[int, int, str]]:
    """What FFmpeg reads: start and end in milliseconds, and the text as it stands."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.subtitles
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        scale = 1000 * stream.time_base
        return [
            (int(packet.pts * scale), int((packet.pts + packet.duration) * scale), bytes(packet).decode())
            for packet in packets
        ]


def test_ffmpeg_reads_subtitles_as_they_were_meant(tmp_path):
    (tmp_path / "a.srt").write_text(format_srt(EVENTS))
    (tmp_path / "a.vtt").write_text(format_vtt(EVENTS))
    times = [(0, 60_000), (1_500, 1_501), (3_661_001, 3_665_250)]
    for path in (tmp_path / "a.srt", tmp_path / "a.vtt"):
        assert [cue[:2] for cue in cues_of(path)] == times
    assert cues_of(tmp_path / "a.srt")[2][2] == "A cat sleeps -> deeply."
    # Our own reader gives the sentences back.
    assert [event["text"] for event in read_events(tmp_path / "a.vtt")] == [
        "Tom & <b>Jerry</b> run.",
        "They jump.",
        "A cat sleeps --> deeply.",
    ]


# --- Chapters -----------------------------------------------------------------------------------------------------

LESSON = [
    {"start": 2.0, "end": 8.0, "text": "Hello = a; #1 \\ b"},
    {"start": 5.0, "end": 30.0, "text": "We begin."},
    {"start": 65.5, "end": 70.0, "text": "Cutting."},
    {"start": 3725.0, "end": 3730.0, "text": "The end."},
]


def test_chapters_of_published_videos_by_hand():
    """From 0:00 on, none under ten seconds: the second event shares the line of the first."""
    assert format_chapters(LESSON) == "0:00 Hello = a; #1 \\ b We begin.\n1:05 Cutting.\n1:02:05 The end.\n"
    assert format_chapters(LESSON[2:]) == "0:00 Start\n1:05 Cutting.\n1:02:05 The end.\n"
    assert format_chapters([]) == ""


@given(st.lists(any_event, max_size=6), st.sampled_from([0.001, 10.0]))
def test_chapters_do_not_overlap_and_none_is_lost(events, shortest):
    found = chapters(events, shortest)
    assert all(end - start >= 1 for start, end, _ in found)
    assert all(a[1] == b[0] and b[0] - a[0] >= 1000 * shortest for a, b in zip(found, found[1:], strict=False))
    texts = " ".join(title for _, _, title in found)
    assert all(" ".join(event["text"].split()) in texts for event in events)


def test_ffmpeg_reads_chapters_and_puts_them_into_a_video(tmp_path):
    (tmp_path / "a.ffmetadata").write_text(format_ffmetadata(LESSON))
    expected = [(2000, 5000, LESSON[0]["text"]), (5000, 65500, "We begin."), (65500, 3725000, "Cutting.")]
    expected.append((3725000, 3730000, "The end."))

    def read(container):
        return [
            (
                *(int(one[key] * one["time_base"] * 1000) for key in ("start", "end")),
                one["metadata"]["title"],
            )
            for one in container.chapters()
        ]

    with av.open(str(tmp_path / "a.ffmetadata"), format="ffmetadata") as container:
        assert read(container) == expected
        given = container.chapters()
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 32, 32
        container.set_chapters(given)
        frame = av.VideoFrame(32, 32, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert read(container) == expected


def test_chapters_of_web_pages(tmp_path):
    (tmp_path / "a.vtt").write_text(format_vtt_chapters(LESSON))
    assert [cue[:2] for cue in cues_of(tmp_path / "a.vtt")] == [
        (2000, 5000),
        (5000, 65500),
        (65500, 3725000),
        (3725000, 3730000),
    ]


# --- Tables and tools ---------------------------------------------------------------------------------------------

RESULTS = {
    "videos/a.mp4": [
        {"start": 1.23456789, "end": 4.0, "text": 'A "man", running.', "score": 0.123456789},
        {"start": 3.0, "end": 6.0, "text": "He\trests."},
    ],
    "b.mp4": [{"start": 0.0, "end": 2.0, "text": "A dog."}],
}


def test_json_has_milliseconds_and_a_plain_list_for_one_video():
    content = json.loads(FORMATS["json"].document(RESULTS))
    assert content["videos/a.mp4"][0] == {"start": 1.235, "end": 4.0, "text": 'A "man", running.', "score": 0.1235}
    assert isinstance(json.loads(FORMATS["json"].document({"b.mp4": RESULTS["b.mp4"]})), list)


@pytest.mark.parametrize("name, delimiter", [("csv", ","), ("tsv", "\t")])
def test_tables(name, delimiter):
    rows = list(csv.DictReader(io.StringIO(FORMATS[name].document(RESULTS)), delimiter=delimiter))
    assert rows[0] == {
        **{"video": "videos/a.mp4", "start": "1.235", "end": "4.000"},
        **{"caption": 'A "man", running.', "score": "0.1235"},
    }
    assert [row["caption"] for row in rows] == ['A "man", running.', "He rests.", "A dog."]


def test_a_table_is_a_file_of_captions_to_train_on(tmp_path):
    (tmp_path / "a.csv").write_text(FORMATS["csv"].document(RESULTS))
    first, second = read_annotation_file(tmp_path / "a.csv")
    assert first["captions"] == ['A "man", running.', "He rests."] and second["timestamps"] == [[0.0, 2.0]]


def test_elan_puts_what_overlaps_on_another_tier():
    lines = [line.split("\t") for line in format_elan([*RESULTS["videos/a.mp4"], *LESSON[2:3]]).splitlines()]
    assert lines[1:] == [
        ["events", "1235", "4000", 'A "man", running.'],
        ["events-2", "3000", "6000", "He rests."],
        ["events", "65500", "70000", "Cutting."],
    ]


@given(st.lists(any_event, max_size=6))
def test_no_tier_of_elan_has_annotations_that_overlap(events):
    ends = {}
    for line in format_elan(events).splitlines()[1:]:
        tier, start, end, _ = line.split("\t")
        assert ends.get(tier, 0) <= int(start) < int(end)
        ends[tier] = int(end)


def test_label_studio_regions_carry_their_sentences_and_come_back(tmp_path):
    tasks = json.loads(FORMATS["label-studio"].document(RESULTS))
    label, text, *_ = tasks[0]["predictions"][0]["result"]
    assert tasks[0]["data"]["video"] == "videos/a.mp4" and label["id"] == text["id"]
    assert label["value"]["ranges"] == text["value"]["ranges"] == [{"start": 32, "end": 101}]
    assert (label["type"], label["from_name"], label["to_name"]) == ("timelinelabels", "events", "video")
    # Corrected there: the annotation counts, the prediction does not.
    corrected = [{**text, "value": {**text["value"], "text": ["A woman."]}}, label]
    tasks[0]["annotations"] = [{"result": corrected}, {"result": [], "was_cancelled": True}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    back = read_results(tmp_path / "export.json")
    assert [event["text"] for event in back["a"]] == ["A woman."]
    assert back["a"][0]["start"] == pytest.approx(1.2346, abs=0.5 / LABEL_STUDIO_FPS)
    assert back["b"] == [{"start": 0.0, "end": 2.0, "text": "A dog."}]


def test_fiftyone_by_hand():
    content = json.loads(FORMATS["fiftyone"].document(RESULTS))
    assert content["classes"] == ['A "man", running.', "A dog.", "He rests."]
    assert content["labels"]["a"][0] == {
        **{"label": 'A "man", running.', "timestamps": [1.235, 4.0], "confidence": 0.1235},
    }
    assert content["labels"]["b"] == [{"label": "A dog.", "timestamps": [0.0, 2.0]}]
    with pytest.raises(ValueError, match="two are called a"):
        FORMATS["fiftyone"].document({"x/a.mp4": [], "y/a.mp4": []})


def test_every_format_takes_a_video_without_events():
    for form in FORMATS.values():
        assert isinstance(form.document({"a.mp4": []}), str)


@given(st.lists(any_event, max_size=5))
def test_subtitles_come_back_whole(events):
    texts = sorted(" ".join(event["text"].split()) for event in events if event["text"].split())
    for page in (format_srt(events), format_vtt(events)):
        assert len(parse_subtitles(page)) <= len(texts)
    clean = [text for text in texts if not re.search(r"[<>&]|-->", text)]
    found = [event["text"] for event in parse_subtitles(format_srt(events))]
    assert all(text in found for text in clean)
