import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_hf.data import read_annotation_file, read_annotations, row_oddities, write_json

ROW = {"duration": 10.0, "timestamps": [[0, 4.5], [5, 10]], "sentences": ["A man “walks” – über.", " He sits. "]}
EXPECTED = {
    "video_id": "v",
    "duration": 10.0,
    "captions": ["A man “walks” – über.", " He sits. "],
    "timestamps": [[0.0, 4.5], [5.0, 10.0]],
}


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_official_form(tmp_path):
    assert read_annotation_file(write(tmp_path / "a.json", {"v": ROW})) == [EXPECTED]


def test_youcook2_database_form_and_subsets(tmp_path):
    def entry(subset):
        events = [{"segment": [1, 2], "sentence": "cut", "id": 0}, {"segment": [3, 9], "sentence": "fry", "id": 1}]
        return {"duration": 10.5, "subset": subset, "annotations": events, "recipe_type": "1"}

    path = write(tmp_path / "a.json", {"database": {"x": entry("training"), "y": entry("validation")}})
    with pytest.raises(ValueError, match=r"subsets training, validation.*a\.json#training"):
        read_annotation_file(path)
    (row,) = read_annotation_file(path + "#validation")
    assert row == {
        "video_id": "y", "duration": 10.5, "captions": ["cut", "fry"], "timestamps": [[1.0, 2.0], [3.0, 9.0]]
    }  # fmt: skip


def test_own_forms_agree(tmp_path):
    whole = {"video": "v", "captions": EXPECTED["captions"], "timestamps": EXPECTED["timestamps"], "duration": 10}
    events = [
        {"video": "v", "caption": caption, "start": start, "end": end, "duration": 10}
        for caption, (start, end) in zip(EXPECTED["captions"], EXPECTED["timestamps"], strict=True)
    ]
    table = 'video,caption,start,end,duration\nv,A man “walks” – über.,0,4.5,10\nv," He sits. ",5,10,\n'
    files = [
        write(tmp_path / "list.json", [whole]),
        write(tmp_path / "whole.jsonl", json.dumps(whole) + "\n\n"),
        write(tmp_path / "events.jsonl", "\n".join(map(json.dumps, events))),
        write(tmp_path / "table.csv", table),
        write(tmp_path / "excel.csv", "\ufeff" + table.replace("\n", "\r\n")),
    ]
    for file in files:
        assert read_annotation_file(file) == [EXPECTED], file


def test_captions_alone_are_enough(tmp_path):
    path = write(tmp_path / "a.csv", "caption,video\nOne.,b.mp4\nTwo.,a\nThree.,b.MP4\n")
    rows = read_annotation_file(path)
    assert [(r["video_id"], r["captions"]) for r in rows] == [("b", ["One.", "Three."]), ("a", ["Two."])]
    assert all(row["timestamps"] is None and row["duration"] is None for row in rows)


def test_first_reference_file_counts(tmp_path):
    first = write(tmp_path / "1.json", {"v": ROW})
    second = write(tmp_path / "2.json", {"v": {**ROW, "sentences": ["a", "b"]}, "w": ROW})
    assert [(r["video_id"], r["captions"][1]) for r in read_annotations([first, second])] == [
        ("v", " He sits. "),
        ("w", " He sits. "),
    ]


def test_transitions_are_kept(tmp_path):
    path = write(tmp_path / "a.json", {"v": {**ROW, "transitions": ["He bends."]}})
    assert read_annotation_file(path)[0]["transitions"] == ["He bends."]
    with pytest.raises(ValueError, match="video 'v': 2 captions need 1 transitions, found 2"):
        read_annotation_file(write(tmp_path / "b.json", {"v": {**ROW, "transitions": ["a", "b"]}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": ["ok", " "]}, "caption 1 is empty"),
        ({"sentences": ["ok", None]}, "caption 1 is empty"),
        ({"sentences": []}, "expected a list of captions"),
        ({"sentences": ["only one"]}, "expected a time stamp for each of the 1 captions"),
        ({"timestamps": 5}, "expected a time stamp for each of the 2 captions, found 5"),
        ({"timestamps": [[0, 4], [9, 8]]}, r"time stamp 1 is reversed: it starts at 9 and ends at 8"),
        (
            {"timestamps": [[0, 4], [5, 10.6]]},
            r"time stamp 1 is \[5, 10.6\], outside of the video's 0 to 10.0 seconds",
        ),
        ({"timestamps": [[-1, 4], [5, 10]]}, "time stamp 0 .* outside"),
        ({"timestamps": [[0, "4"], [5, 10]]}, r"time stamp 0 is \[0, '4'\]: expected"),
        ({"timestamps": [[0, 4], 5]}, "time stamp 1 is 5: expected"),
        ({"timestamps": [[0, float("nan")], [5, 10]]}, "time stamp 0"),
        ({"duration": 0}, "expected a duration in seconds, found 0"),
        ({"duration": "1:30"}, "expected a duration"),
    ],
)
def test_problems_name_the_row(tmp_path, change, message):
    path = write(tmp_path / "a.json", {"good": ROW, "bad": {**ROW, **change}})
    with pytest.raises(ValueError, match=f"a.json cannot be used:\n  video 'bad': {message}"):
        read_annotation_file(path)


def test_video_that_occurs_twice(tmp_path):
    text = json.dumps({"v": ROW})
    twice = write(tmp_path / "a.json", text[:-1] + ", " + text[1:])
    with pytest.raises(ValueError, match=r"a\.json cannot be used: video 'v': this video was there before"):
        read_annotation_file(twice)
    lines = write(tmp_path / "a.jsonl", 2 * (json.dumps({"video": "v", "captions": ["a"]}) + "\n"))
    with pytest.raises(ValueError, match="line 2, video 'v': this video was there before"):
        read_annotation_file(lines)


def test_many_problems_are_cut_short(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"video": "v{i}", "captions": [""]}}\n' for i in range(13)))
    with pytest.raises(ValueError, match="(?s)line 10, video 'v9'.*and 3 more"):
        read_annotation_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "holds no video"),
        ("a.json", {"v": ["a caption"]}, "video 'v': expected duration, timestamps and sentences"),
        ("a.json", ["a caption"], "entry 0: expected video and captions"),
        ("a.json", "3", "expected an object or a list, found 3"),
        ("a.jsonl", '{"video": "v", "captions": ["a"]}\nnope\n', "line 2 is not JSON"),
        ("a.csv", "file,text\na,b\n", "expected the columns video and caption, found file, text"),
        ("a.csv", "video,caption,start\nv,a,soon\n", "line 2: expected start in seconds, found 'soon'"),
        ("a.csv", "video,caption\n,a\n", "expected the video's name"),
        (
            "a.csv",
            "video,caption\nv,A cat.\nv.mp4,A dog, brown.\n",
            "line 3: expected 2 fields, found 3, the last of them ' brown.'",
        ),
        ("a.csv", "video,caption,start,end\nv,a,0,1\nv,b,,\n", r"time stamp 1 is \[None, None\]"),
        ("a.txt", "", "expected .json, .jsonl, .csv"),
        ("empty", None, "holds no Parquet files"),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else write(path, content)
    with pytest.raises(ValueError, match=message):
        read_annotation_file(path)


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no annotation file .*nope.json"):
        read_annotation_file(tmp_path / "nope.json")
    (tmp_path / "latin.csv").write_bytes("video,caption\nv,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_annotation_file(tmp_path / "latin.csv")


def test_oddities_are_no_problems(tmp_path):
    odd = {
        "duration": 10.0,
        "timestamps": [[5, 10.3], [2, 2], [1, 3]],
        "sentences": ["He sits.", " He sits.", "He runs."],
    }
    (row,) = read_annotation_file(write(tmp_path / "a.json", {"v": odd}))
    assert row["captions"] == odd["sentences"], "unsorted events keep the order of the file"
    assert sorted(row_oddities(row)) == [
        "event of no length", "event that ends after the video", "events not sorted by start", "repeated caption"
    ]  # fmt: skip
    assert row_oddities(EXPECTED) == []


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_any_text_is_kept(tmp_path_factory, captions):
    path = tmp_path_factory.mktemp("any") / "a.json"
    write(path, {"v": {"duration": 1, "timestamps": [[0, 1]] * len(captions), "sentences": captions}})
    if all(caption.strip() for caption in captions):
        assert read_annotation_file(path)[0]["captions"] == captions
    else:
        with pytest.raises(ValueError, match="is empty"):
            read_annotation_file(path)


COUNTS = {
    "activitynet/train.json": (10009, 37421),
    "activitynet/val_1.json": (4917, 17505),
    "activitynet/val_2.json": (4885, 17031),
    "youcook2/train.json": (1333, 10337),
    "youcook2/val.json": (457, 3492),
}


@pytest.mark.parametrize("name", COUNTS)
def test_official_files_lose_nothing(shared, name):
    official = json.loads((shared / "annotations" / name).read_text())
    rows = read_annotation_file(shared / "annotations" / name)
    assert (len(rows), sum(len(row["captions"]) for row in rows)) == COUNTS[name]
    for row in rows:
        entry = official[row["video_id"]]
        assert row["captions"] == entry["sentences"] and row["timestamps"] == entry["timestamps"]


def test_names_that_are_not_utf8(tmp_path):
    """Such a name of a file is written and read again; as a video's name or in a caption it is named."""
    name = os.fsdecode(b"v_\xff")
    write_json(tmp_path / "a.json", {name: 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: 1}
    for entry in ({name: {"sentences": ["A man."]}}, {"v": {"sentences": ["A man.", f"It {name}."]}}):
        (tmp_path / "b.json").write_text(json.dumps(entry))
        with pytest.raises(ValueError, match="is no Unicode text"):
            read_annotation_file(tmp_path / "b.json")
