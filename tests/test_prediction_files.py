"""Files of other systems, in the forms that they have in the wild."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_hf.data import read_annotation_file
from sail_hf.export import FORMATS
from sail_hf.prediction_files import parse_answer, parse_subtitles, read_events, read_results, seconds


def spans(events):
    return [(event["start"], event["end"], event["text"]) for event in events]


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "0.0 - 24.2 seconds, A man lifts 2 to 3 bars. 24.2 - 30.0 seconds, he drops it.",
            [(0, 24.2, "A man lifts 2 to 3 bars."), (24.2, 30, "he drops it.")],
        ),
        (
            "From 00:10 to 00:25, a man runs.\nFrom 0:25 to 1:02:03.5, he rests.",
            [(10, 25, "a man runs."), (25, 3723.5, "he rests.")],
        ),
        (
            "Here are the events:\n1. **0:10 - 0:25**: A man runs.\n2. [25s - 40s] He adds 2 to 3 eggs.",
            [(10, 25, "A man runs."), (25, 40, "He adds 2 to 3 eggs.")],
        ),
        ("- A man runs (0:10 - 0:25)\n- He rests (25 - 40 seconds)", [(10, 25, "A man runs"), (25, 40, "He rests")]),
        (
            'Sure!\n```json\n[{"start": "00:10", "end": 25.5, "description": "a man"}]\n```\nDone.',
            [(10, 25.5, "a man")],
        ),
        ('{"events": [{"timestamp": "0:05 - 0:09", "event": "a"}]}', [(5, 9, "a")]),
        ("[0.5, 3.2] A cat.\n(3.2 - 5) A dog.", [(0.5, 3.2, "A cat."), (3.2, 5, "A dog.")]),
        ("**0.0 - 24.2 seconds**\nA man.", [(0, 24.2, "A man.")]),
        ("1. 0.0s - 5.0s: A man.", [(0, 5, "A man.")]),
        ("Event 1: 00:00 - 00:05 - A man.", [(0, 5, "A man.")]),
        ("0 - 5: A man.\nfrom 5 to 9, he sits.", [(0, 5, "A man."), (5, 9, "he sits.")]),
        ("<0:01 – 0:02> A man.", [(1, 2, "A man.")]),
        ("He adds 2 to 3 eggs. It is 3 of 4 already. I see nothing.", []),
        ("", []),
    ],
)
def test_what_language_models_write(text, expected):
    assert spans(parse_answer(text)) == expected


@given(st.text(max_size=200))
def test_any_text_is_read_or_left(text):
    for event in parse_answer(text):
        assert event["start"] is not None and isinstance(event["text"], str)
    parse_subtitles(text)


@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), min_size=1, max_size=5))
def test_times_of_an_answer_are_kept(times):
    text = " ".join(f"{a:.1f} - {b:.1f} seconds, something happens." for a, b in times)
    assert [event["start"] for event in parse_answer(text)] == [float(f"{a:.1f}") for a, _ in times]


def test_seconds():
    assert [seconds(x) for x in (3, "3", "3.5s", "1:02", "1:00:01,5", " 12 seconds ")] == [3, 3, 3.5, 62, 3601.5, 12]
    for wrong in (None, "soon", True, "1:2:3:4"):
        with pytest.raises(ValueError, match="expected seconds or mm:ss"):
            seconds(wrong)


def test_subtitles_of_other_programs():
    srt = "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>Hello</i>\r\nthere &amp; you\r\n\r\n2\r\n00:01:00,0 --> 00:01:01,0\r\n \r\n"
    assert spans(parse_subtitles(srt)) == [(1, 2.5, "Hello there & you")]
    vtt = (
        "WEBVTT - a title\n\nNOTE a --> is no cue\n\nintro\n00:01.000 --> 00:02.000 align:start position:10%\n"
        "<v Bob>Hi <c.loud>all</c>\n\n00:02.000 --> 00:03.000\n1 < 2\n"
    )
    assert spans(parse_subtitles(vtt)) == [(1, 2, "Hi all"), (2, 3, "1 < 2")]


def test_events_of_one_video(tmp_path):
    contents = {
        "a.srt": "1\n00:00:01,000 --> 00:00:02,000\nA dog.\n",
        "a.json": '[{"start": 1, "end": 2, "text": "A dog."}]',
        "b.json": '{"timestamps": [[1, 2]], "sentences": ["A dog."]}',
        "c.json": '{"a.mp4": [{"start": 1, "end": 2, "text": "A dog."}]}',
        "a.csv": "start,end,caption\n0:01,2,A dog.\n",
        "a.tsv": "video\tstart\tend\tcaption\na.mp4\t1\t2\tA dog.\n",
        "a.txt": "From 0:01 to 0:02, A dog.\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert spans(read_events(tmp_path / name)) == [(1, 2, "A dog.")], name


def test_sentences_without_times(tmp_path):
    (tmp_path / "a.txt").write_text("A dog runs.\n\n  He waits from 5 to 10 seconds. \nIt ends.")
    (tmp_path / "a.json").write_text('["A dog runs."]')
    assert spans(read_events(tmp_path / "a.txt"))[1] == (None, None, "He waits from 5 to 10 seconds.")
    assert spans(read_events(tmp_path / "a.json")) == [(None, None, "A dog runs.")]


EVENT = {"start": 1, "end": 2, "text": "A dog."}


@pytest.mark.parametrize(
    "content",
    [
        {"results": {"v_a": [{"timestamp": [1, 2], "sentence": "A dog."}]}},
        {"v_a": [EVENT]},
        {"videos/v_a.mp4": [EVENT]},
        {"v_a": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["A dog."]}},
        {"v_a": "1.0 - 2.0 seconds, A dog."},
        [{"video": "v_a.mp4", **EVENT}],
        [{"video_id": "v_a", "events": [EVENT]}],
        [{"vname": "v_a.mp4", "generated_cap": "1.0 - 2.0 seconds, A dog."}],
        [{"video": "v_a", "caption": "1.0 - 2.0 seconds, A dog."}],
        [{"video": "v_a", "caption": "A dog.", "timestamp": [1, 2]}],
    ],
)
def test_results_of_many_videos(tmp_path, content):
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert {video: spans(events) for video, events in read_results(tmp_path / "r.json").items()} == {
        "v_a": [(1, 2, "A dog.")]
    }
    if isinstance(content, list):
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, content)))
        assert read_results(tmp_path / "r.jsonl") == read_results(tmp_path / "r.json")


def test_a_folder_of_subtitles(tmp_path):
    for video in "ab":
        (tmp_path / f"{video}.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nA dog.\n")
    assert {video: spans(events) for video, events in read_results(tmp_path).items()} == dict.fromkeys(
        "ab", [(1, 2, "A dog.")]
    )


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", "{", "is no JSON file"),
        ("a.json", "[1]", "expected a sentence"),
        ("a.json", '[{"start": 1, "text": "x"}]', "expected start and end"),
        ("a.json", '{"a": [], "b": []}', "expected the events of one video, found 2"),
        ("a.csv", "start,end\n", "expected the columns video, start, end, caption; found start, end"),
        ("a.csv", "caption,start,end\nx,soon,2\n", "line 2: expected seconds or mm:ss, found 'soon'"),
        ("a.srt", "no cues", "holds no captions"),
        ("a.txt", " \n", "holds no captions"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read_events(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("r.json", '{"results": {"a": [], "a": []}}', "video 'a': this video was there before: give"),
        ("r.json", "{", "is not a JSON file"),
        ("r.json", '{"a": [{"start": 1, "end": 2}]}', "video 'a': event 0: expected a sentence"),
        ("r.jsonl", '{"start": 1}', "entry 0: expected ActivityNet's submission"),
        ("r.csv", "video,start,end,caption\na,1,2,A dog, brown\n", "line 2: expected 4 fields, found 5"),
        ("r.csv", "caption\nx\n", "expected the columns video, start, end, caption"),
    ],
)
def test_results_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read_results(tmp_path / name)
    assert name in str(error.value)


def test_corrected_events_are_captions_to_train_on(tmp_path):
    """Each export comes back through build_dataset's reader: subtitles, JSON and Label Studio's tasks."""
    results = {"a.mp4": [{"start": 1.0, "end": 2.0, "text": "A dog."}, {"start": 2.0, "end": 4.0, "text": "A cat."}]}
    (tmp_path / "srt").mkdir()
    for name, file in (("srt", "srt/a.srt"), ("vtt", "a.vtt"), ("label-studio", "tasks.json"), ("csv", "a.csv")):
        (tmp_path / file).write_text(FORMATS[name].document(results))
    (tmp_path / "events.json").write_text(json.dumps(results))
    for source in ("srt", "srt/a.srt", "a.vtt", "tasks.json", "a.csv", "events.json"):
        (row,) = read_annotation_file(tmp_path / source)
        assert (row["video_id"], row["captions"]) == ("a", ["A dog.", "A cat."]), source
        assert row["timestamps"] == [[1, 2], [2, 4]], source
