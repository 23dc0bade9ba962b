import json
import subprocess
import sys
from pathlib import Path

import pytest
from build_dataset import FEATURES, BuildArguments, build_dataset, write_dataset
from datasets import load_dataset

from sail_hf.data import read_annotation_file

SCRIPT = Path(__file__).parents[1] / "training" / "build_dataset.py"


def write(path, videos: dict) -> str:
    """An annotation file: captions by video."""
    entries = {
        video: {"duration": 10.0, "timestamps": [[i, i + 1.5] for i in range(len(captions))], "sentences": captions}
        for video, captions in videos.items()
    }
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return {
        "train": [write(tmp_path / "train.json", {"a": ["A é.", "B.", "C."], "b": ["D."]})],
        "validation": [
            write(tmp_path / "val_1.json", {"c": ["E.", "F."], "d": ["G."]}),
            write(tmp_path / "val_2.json", {"c": ["H.", "I.", "J."]}),
        ],
    }


def test_columns_are_typed_and_the_same_in_all_splits(files, tmp_path):
    write_dataset(BuildArguments(output=str(tmp_path / "out"), **files))
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 2, "validation": 2}
    assert loaded["train"].features == loaded["validation"].features == FEATURES
    row = loaded["train"][0]
    assert (row["video_id"], row["duration"], row["captions"]) == ("a", 10.0, ["A é.", "B.", "C."])
    assert row["timestamps"] == [[0.0, 1.5], [1.0, 2.5], [2.0, 3.5]]
    assert row["references"] is None and row["transitions"] is None and row["llm"] is None


def test_several_files_are_references(files):
    c, d = build_dataset(files)["validation"]
    assert c["captions"] == ["E.", "F."], "the first file's"
    assert [(ref["name"], ref["captions"]) for ref in c["references"]] == [
        ("val_1", ["E.", "F."]),
        ("val_2", ["H.", "I.", "J."]),
    ]
    assert [ref["name"] for ref in d["references"]] == ["val_1"]


def test_built_data_set_is_an_annotation_file(files, tmp_path):
    write_dataset(BuildArguments(output=str(tmp_path / "out"), **files))
    built = read_annotation_file(f"{tmp_path}/out#train")
    assert built == read_annotation_file(files["train"][0])
    with pytest.raises(ValueError, match="holds the splits train, validation: write .*out#train"):
        read_annotation_file(tmp_path / "out")


def test_transitions_of_the_file_become_a_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"video": "v", "captions": ["A.", "B."], "transitions": ["Between."]}))
    assert build_dataset({"train": [path]})["train"][0]["transitions"] == ["Between."]


def test_refusals(files, tmp_path):
    with pytest.raises(ValueError, match="give annotation files"):
        build_dataset({"train": []})
    with pytest.raises(ValueError, match="video 'a' is in the split train and in test"):
        build_dataset({"train": files["train"], "test": files["train"]})
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="choose another --output"):
        write_dataset(BuildArguments(output=str(tmp_path / "out"), **files))


def test_nothing_is_left_of_a_failed_build(files, tmp_path):
    bad = write(tmp_path / "bad.json", {"x": [""]})
    with pytest.raises(ValueError, match="video 'x'"):
        write_dataset(BuildArguments(output=str(tmp_path / "out"), train=files["train"], validation=[bad]))
    assert not (tmp_path / "out").exists()


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_command_line(files, tmp_path):
    done = run("--train", *files["train"], "--validation", *files["validation"], "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "train: 2 videos, 4 captions in; 2 videos, 4 captions out\n  pairs of adjacent captions: 2" in done.stdout
    assert "validation: 2 videos, 6 captions in; 2 videos, 6 captions out" in done.stdout
    again = run("--train", *files["train"], "--output", tmp_path / "out")
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in again.stderr


def test_official_files_build_without_loss(shared, tmp_path, capsys):
    folder = shared / "annotations"
    activitynet = {"train": ["train.json"], "validation": ["val_1.json", "val_2.json"]}
    youcook2 = {"train": ["train.json"], "validation": ["val.json"]}
    for name, splits in (("activitynet", activitynet), ("youcook2", youcook2)):
        paths = {split: [str(folder / name / file) for file in files] for split, files in splits.items()}
        write_dataset(BuildArguments(output=str(tmp_path / name), **paths))
    printed = capsys.readouterr().out
    assert (
        "train: 10009 videos, 37421 captions in; 10009 videos, 37421 captions out\n  pairs of adjacent captions: 27412"
        in printed
    )
    assert (
        "validation: 4917 videos, 34536 captions in; 4917 videos, 34536 captions out" in printed
    )  # both reference files
    assert (
        "train: 1333 videos, 10337 captions in; 1333 videos, 10337 captions out\n  pairs of adjacent captions: 9004"
        in printed
    )
    assert "validation: 457 videos, 3492 captions in; 457 videos, 3492 captions out" in printed
    assert "train.json: events not sorted by start (kept as it is): 243 videos" in printed
