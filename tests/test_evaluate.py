"""training/evaluate.py as its users call it: good files give scores and a table, wrong files say what is wrong."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "training" / "evaluate.py"


@pytest.fixture
def files(tmp_path):
    """Writes JSON files, returns their paths; two reference files of which the second lacks a video."""

    def write(**contents):
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))

    dogs = {"duration": 20.0, "timestamps": [[0, 8], [10, 20]], "sentences": ["A dog runs.", "It sleeps."]}
    chess = {"duration": 30.0, "timestamps": [[0, 30]], "sentences": ["Two women play chess."]}
    write(first={"dogs": dogs, "chess": chess}, second={"dogs": dogs | {"timestamps": [[0, 9], [9, 20]]}})
    write(good={"results": {"dogs": [{"sentence": "A dog runs.", "timestamp": [0, 9], "score": 0.3}]}})
    return tmp_path, write


def arguments(folder: Path, predictions: str = "good", *more: str) -> list[str]:
    references = [str(folder / "first.json"), str(folder / "second.json")]
    return [
        *("--predictions", str(folder / f"{predictions}.json"), "--output", str(folder / "out" / "scores.json")),
        *("--references", *references, "--metrics", "localization", "controls", *more),
    ]


def test_scores_and_table(evaluate_py, files, capsys):
    folder, _ = files
    evaluate_py.main(arguments(folder))
    scores = json.loads((folder / "out" / "scores.json").read_text())
    # dogs: the second file's first event exactly, so precision 1 and recall 1/2 at every threshold; chess is missing.
    assert (scores["precision"], scores["recall"], scores["num_missing"]) == (0.5, 0.25, 1)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["f1_equal_spans"] < scores["f1"]
    assert scores["lift"] is None
    printed = capsys.readouterr().out
    assert "1 videos without a prediction (counted as zero)" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("good")][0][1:] == [
        "50.00",
        "25.00",
        "33.33",
        "33.33",
        "0.00",
    ]
    assert [path.name for path in (folder / "out").iterdir()] == ["scores.json"]


def test_missing_videos_may_be_left_out(evaluate_py, files):
    folder, _ = files
    evaluate_py.main(arguments(folder, "good", "--missing", "skip", "--protocol", "2018"))
    scores = json.loads((folder / "out" / "scores.json").read_text())
    assert (scores["precision"], scores["missing"], scores["protocol"]) == (1, "skip", "2018")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "entry 0: expected ActivityNet's submission.*found 1"),
        (3, "expected ActivityNet's submission.*found 3"),
        ({"results": {"dogs": {}}}, r"video 'dogs': expected a list of events, found \{\}"),
        ({"results": {"dogs": [{"timestamp": [0, 1]}]}}, r"video 'dogs': event 0: expected a sentence"),
        ({"results": {"dogs": [{"timestamp": [0], "sentence": "x"}]}}, r"expected start and end, found \[0\]"),
        ({"results": {"dogs": [{"timestamp": [0, "x"], "sentence": "x"}]}}, "expected seconds or mm:ss, found 'x'"),
        ({"results": {"dogs": [{"timestamp": [0, 1e999], "sentence": "x"}]}}, r"found \[0.0, inf\]"),
        ({"dogs": ["A dog runs."]}, r"video 'dogs'\[0\]: expected the time stamp .*found \[None, None\]"),
        (
            {"results": {"v_dogs": [], "dogs": []}},
            r"1 of 2 predicted videos are in no reference file, e.g. \['v_dogs'\]",
        ),
    ],
)
def test_wrong_predictions_say_what_is_wrong(evaluate_py, files, content, message, monkeypatch):
    folder, write = files
    write(bad=content)
    monkeypatch.setattr("sail_hf.metric.DenseVideoCaptioningMetric", None)  # nothing may be computed
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        evaluate_py.main(arguments(folder, "bad"))
    assert not (folder / "out").exists()


def test_files_that_are_missing_broken_or_without_times(evaluate_py, files):
    folder, write = files
    with pytest.raises(SystemExit, match=r"No such file.*nothing\.json"):
        evaluate_py.main(arguments(folder, "nothing"))
    (folder / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match="broken.json is not a JSON file"):
        evaluate_py.main(arguments(folder, "broken"))
    (folder / "second.jsonl").write_text('{"video": "dogs", "captions": ["A dog runs."]}\n')
    with pytest.raises(SystemExit, match="1 of 2 videos have no time stamps to score against, e.g. dogs"):
        evaluate_py.main([argument.replace("second.json", "second.jsonl") for argument in arguments(folder)])
    write(second={"dogs": {"duration": 20, "timestamps": [[0, 90]], "sentences": ["A dog runs."]}})
    with pytest.raises(SystemExit, match=r"second\.json.*(?s:.)*outside of the video"):
        evaluate_py.main(arguments(folder))


def test_times_outside_of_the_video_are_said_and_scored(evaluate_py, files, caplog):
    folder, write = files
    events = [{"sentence": "x", "timestamp": times} for times in ([0, 20.4], [0, 900], [-3, 5], [9, 2])]
    write(odd={"results": {"dogs": events}})
    with caplog.at_level(logging.WARNING):
        evaluate_py.main(arguments(folder, "odd"))
    assert "3 predicted events have times outside of the video or reversed" in caplog.text
    assert "dogs [0, 900] in 0 to 20 s" in caplog.text
    assert json.loads((folder / "out" / "scores.json").read_text())["num_predictions"] == 4


def test_a_folder_of_systems_gives_a_row_each(evaluate_py, files, capsys):
    folder, write = files
    systems = folder / "systems"
    (systems / "subtitles").mkdir(parents=True)
    (systems / "subtitles" / "dogs.srt").write_text("1\n00:00:00,000 --> 00:00:08,000\nA dog runs.\n")
    (systems / "answers.json").write_text(json.dumps({"dogs": "0 - 8 seconds, a dog. 10 - 20 seconds, it sleeps."}))
    systems_argument = [a.replace("good.json", "systems") for a in arguments(folder)]
    evaluate_py.main(systems_argument)
    scores = json.loads((folder / "out" / "scores.json").read_text())
    assert list(scores) == ["answers", "subtitles"]
    assert (scores["answers"]["recall"], scores["subtitles"]["recall"]) == (0.5, 0.25)
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines() if "     " in line]
    assert header[:2] == ["F1", "F1"] and {"lift", "repeats", "spans"} <= set(header)
    assert [row[0] for row in rows] == ["answers", "subtitles"] and all(len(row) == 8 for row in rows)
    # A folder that is named for the videos it has is one system.
    evaluate_py.main([a.replace("good.json", "systems/subtitles") for a in arguments(folder)])
    assert json.loads((folder / "out" / "scores.json").read_text()) == scores["subtitles"]


def test_names_of_files_stand_for_activitynets_ids(evaluate_py, files):
    folder, write = files
    write(bare={"dogs.mp4": [{"start": 0, "end": 8, "text": "A dog runs."}]})
    row = {"duration": 20.0, "timestamps": [[0, 8]], "sentences": ["A dog runs."]}
    write(first={"v_dogs": row}, second={"v_dogs": row})
    evaluate_py.main(arguments(folder, "bare"))
    assert json.loads((folder / "out" / "scores.json").read_text())["f1"] == 1


def test_runs_as_a_program_from_another_folder(files):
    folder, _ = files
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments(folder)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "equal spans 1/N, own counts" in done.stdout
