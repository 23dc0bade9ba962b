"""Work over many videos: shares of machines and processes, one run at a time, and damaged files of finished videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import align_dataset
import extract_features
import numpy as np
import predict
import pytest
import torch
from datasets import load_dataset
from tiny import make_clip, make_model, make_processor
from work_folder import WorkFolder, take_shard

ROOT = Path(__file__).parents[1]
NUM_VIDEOS = 7


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`clip`, `features` of seven videos, `train.json` for them and one more, and `model`."""
    home = tmp_path_factory.mktemp("home")
    clip = make_clip(home / "clip")
    (home / "features").mkdir()
    generator = np.random.default_rng(0)
    content = {}
    for index in range(NUM_VIDEOS):
        np.save(home / "features" / f"video{index}.npy", generator.normal(size=(5 + index, 24)).astype(np.float32))
        content[f"video{index}"] = {"duration": 10.0 + index, "sentences": [f"Caption {index}.", "The end."]}
    content["lost"] = {"duration": 3.0, "sentences": ["Nothing."]}
    (home / "train.json").write_text(json.dumps(content))
    processor = make_processor()
    model = make_model(processor, vision_config=clip.vision_config)
    model.generation_config.update(num_beams=1, max_new_tokens=5, full_max_new_tokens=10)
    model.save_pretrained(home / "model")
    processor.save_pretrained(home / "model")
    extract(home, home / "data")
    return home


def words(home: Path, output: Path, *options) -> list[str]:
    found = ["--annotations", home / "train.json", "--features", home / "features", "--clip", home / "clip"]
    return [str(word) for word in [*found, "--output", output, "--num_frames", 8, *options]]


def extract(home: Path, output: Path, *options) -> None:
    extract_features.main(words(home, output, *options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finished(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.work").glob("*.done"))


def test_shards_have_no_gap_and_nothing_twice():
    items = list(range(11))
    for count in (1, 2, 4, 13):
        assert sorted(sum((take_shard(items, f"{i}/{count}") for i in range(1, count + 1)), [])) == items


def test_shards_of_two_machines_are_joined(home, tmp_path, capsys, monkeypatch):
    """On disks of their own: one's folder of finished videos is copied to the other."""
    extract(home, tmp_path / "there" / "data", "--shard", "1/2")
    extract(home, tmp_path / "here" / "data", "--shard", "2/2")
    assert len(finished(tmp_path / "there" / "data")) == 4 and len(finished(tmp_path / "here" / "data")) == 3
    assert not (tmp_path / "here" / "data").exists()
    for file in finished(tmp_path / "there" / "data"):
        (tmp_path / "here" / "data.work" / file.name).write_bytes(file.read_bytes())
    capsys.readouterr()
    monkeypatch.setattr("feature_sources.Extractor.extract", None)  # nothing is left to do
    extract(home, tmp_path / "here" / "data")
    assert "7 of 8 videos" in capsys.readouterr().out
    assert contents(tmp_path / "here" / "data") == contents(home / "data")


def test_a_lost_shard_is_done_when_joined(home, tmp_path):
    extract(home, tmp_path / "data", "--shard", "1/3")
    extract(home, tmp_path / "data", "--shard", "3/3")
    extract(home, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(home / "data")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "flip the checksum"])
def test_a_damaged_file_of_a_finished_video_is_made_again(home, tmp_path, damage):
    extract(home, tmp_path / "data")
    file = finished(tmp_path / "data")[2]
    whole = file.read_bytes()
    place = 5 if damage == "flip the checksum" else len(whole) // 2
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    file.write_bytes({"truncate": whole[:-3], "empty": b""}.get(damage, flipped))
    extract(home, tmp_path / "data")
    assert file.read_bytes() == whole
    assert contents(tmp_path / "data") == contents(home / "data")


def hold(output: Path, shard: str) -> subprocess.Popen:
    """Another process that holds the lock."""
    code = (
        "import sys, time; from work_folder import WorkFolder\n"
        "with WorkFolder(sys.argv[1]).locked(sys.argv[2]):\n    print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "training"), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(output), shard], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("theirs", "mine", "allowed"),
    [("1/1", "1/1", False), ("1/1", "2/4", False), ("2/4", "1/1", False), ("2/4", "2/4", False)]
    + [("2/4", "1/3", False), ("2/4", "3/4", True)],
)
def test_a_second_run_into_one_output_says_who_is_there(tmp_path, theirs, mine, allowed):
    process = hold(tmp_path / "data", theirs)
    try:
        if allowed:
            with WorkFolder(tmp_path / "data").locked(mine):
                pass
        else:
            with pytest.raises(
                ValueError, match=rf"data is being made by process {process.pid} on \S+ \(shard {theirs}\)"
            ):
                with WorkFolder(tmp_path / "data").locked(mine):
                    pass
    finally:
        process.kill()
        process.wait()
    # Whoever died holds nothing.
    with WorkFolder(tmp_path / "data").locked("1/1"):
        pass


def test_recipes_take_the_lock(home, tmp_path):
    process = hold(tmp_path / "data", "1/1")
    try:
        with pytest.raises(SystemExit, match=f"process {process.pid}"):
            extract(home, tmp_path / "data")
    finally:
        process.kill()
        process.wait()


def launch(script: str, arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [str(ROOT / "training" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_processes_of_accelerate_share_the_work(home, tmp_path):
    done = launch("extract_features.py", words(home, tmp_path / "data"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 4 videos of shard 1/2" in done.stdout and "of 4 videos of shard 2/2" in done.stdout
    assert done.stdout.count("T = 8 frames") == 1
    assert contents(tmp_path / "data") == contents(home / "data")


def predictions(home: Path, output: Path, *options) -> None:
    arguments = [
        "--model",
        home / "model",
        "--dataset",
        home / "data",
        "--split",
        "train",
        "--output",
        output,
        *options,
    ]
    predict.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def predicted(home) -> bytes:
    predictions(home, home / "results.json")
    results = json.loads((home / "results.json").read_text())["results"]
    assert list(results) == [f"video{index}" for index in range(NUM_VIDEOS)]
    assert not (home / "results.json.work").exists()
    return (home / "results.json").read_bytes()


def test_captions_of_shards_are_joined(home, predicted, tmp_path, monkeypatch):
    for shard in ("1/3", "2/3", "3/3"):
        predictions(home, tmp_path / "results.json", "--shard", shard, "--batch_size", 1)
        assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr("sail_hf.trainer.caption_dataset", None)  # nothing is left to do
    predictions(home, tmp_path / "results.json", "--batch_size", 1)
    joined, whole = (json.loads(text)["results"] for text in ((tmp_path / "results.json").read_bytes(), predicted))
    assert list(joined) == list(whole)
    for video in whole:
        assert [event["sentence"] for event in joined[video]] == [event["sentence"] for event in whole[video]]


def test_captions_of_a_data_set_with_a_video_twice_are_refused(home, tmp_path):
    data = load_dataset(str(home / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "twice").mkdir()
    data.select([0, 1, 2, 1]).to_parquet(tmp_path / "twice" / "train-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="has 1 videos twice, e.g. 'video1'"):
        predictions(home, tmp_path / "results.json", "--dataset", tmp_path / "twice")
    without = data.remove_columns("duration").add_column("duration", [None] * len(data))
    (tmp_path / "without").mkdir()
    without.to_parquet(tmp_path / "without" / "train-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="7 of 7 videos have no duration"):
        predictions(home, tmp_path / "results.json", "--dataset", tmp_path / "without")


def test_scores_without_any_video(home, predicted, evaluate_py, tmp_path):
    """Stored features to captions to scores."""
    references = {
        f"video{i}": {"duration": 10.0 + i, "timestamps": [[0, 4], [4, 9]], "sentences": ["Caption.", "The end."]}
        for i in range(NUM_VIDEOS)
    }
    (tmp_path / "val.json").write_text(json.dumps(references))
    arguments = ["--predictions", home / "results.json", "--references", tmp_path / "val.json"]
    arguments += ["--output", tmp_path / "scores.json", "--metrics", "localization"]
    evaluate_py.main([str(argument) for argument in arguments])
    assert 0 <= json.loads((tmp_path / "scores.json").read_text())["f1"] <= 1


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("extract_features.py", {"--annotations": "nowhere.json"}, "there is no annotation file nowhere.json"),
        ("extract_features.py", {"--features": "nowhere"}, "there is no --features nowhere"),
        ("extract_features.py", {"--clip": "ViT-L-15"}, "ViT-L-15 is no folder"),
        ("predict.py", {"--model": "nowhere"}, "nowhere is no folder, and no model"),
        ("predict.py", {"--dataset": "data/nowhere"}, "data/nowhere is no folder, and no data set"),
        ("align_dataset.py", {"--dataset": "data/nowhere"}, "data/nowhere is no folder, and no data set"),
        ("align_dataset.py", {"--clip": "ViT-L-15"}, "ViT-L-15 is no folder"),
        ("align_dataset.py", {"--videos": "nowhere"}, "nowhere is no folder of videos"),
        ("build_dataset.py", {"--train": "nowhere.json"}, "there is no annotation file nowhere.json"),
    ],
)
def test_a_mistyped_name_is_said_at_once(home, tmp_path, recipe, change, message):
    arguments = {
        "extract_features.py": {"--annotations": home / "train.json", "--features": home / "features"},
        "predict.py": {"--model": home / "model", "--dataset": home / "data"},
        "align_dataset.py": {"--dataset": home / "data", "--videos": home / "features", "--clip": home / "clip"},
        "build_dataset.py": {"--train": home / "train.json"},
    }[recipe]
    pairs = {**arguments, "--output": tmp_path / "out", **change}
    # As `python training/RECIPE`, and then which slow modules it has imported.
    script = str(ROOT / "training" / recipe)
    code = (
        f"import runpy, sys\nsys.argv[0] = {script!r}\nsys.path.insert(0, {str(ROOT / 'training')!r})\n"
        f"try:\n    runpy.run_path({script!r}, run_name='__main__')\n"
        "finally:\n    print([name for name in ('torch', 'open_clip', 'av') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *(str(word) for pair in pairs.items() for word in pair)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stdout == "[]\n"
    # Of the processor: on a machine that does nothing else that is the time it takes.
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 4


def test_times_of_shards_are_joined(tmp_path, home, monkeypatch):
    """align_dataset.py, with an alignment that takes no CLIP."""
    data = load_dataset(str(home / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "captions").mkdir()
    data.select_columns(["video_id", "captions"]).to_parquet(tmp_path / "captions" / "train-00000-of-00001.parquet")
    (tmp_path / "videos").mkdir()
    for index in range(NUM_VIDEOS):
        (tmp_path / "videos" / f"video{index}.mp4").write_bytes(b"video %d" % index)
    calls = []

    def align(clip, video, captions, **options):
        calls.append(video.stem)
        return [{"start": float(video.stem[-1]), "end": 9.0, "text": text, "gain": 0.5} for text in captions]

    monkeypatch.setattr("sail_hf.clip_sail.SailClip.align", align)

    def run(*options):
        arguments = ["--dataset", tmp_path / "captions", "--videos", tmp_path / "videos", "--clip", home / "clip"]
        align_dataset.main([str(word) for word in [*arguments, "--output", tmp_path / "out", *options]])

    run("--shard", "1/2")
    run("--shard", "2/2")
    assert len(calls) == NUM_VIDEOS and not (tmp_path / "out").exists()
    damaged = finished(tmp_path / "out")[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run()
    assert len(calls) == NUM_VIDEOS + 1
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache2"))
    assert [row["timestamps"][0][0] for row in rows] == list(range(NUM_VIDEOS))
    assert not (tmp_path / "out.work").exists()


def test_digest_of_a_file_is_the_same_for_its_copies(tmp_path):
    from work_folder import file_digest

    content = torch.randint(0, 256, (200_000,), dtype=torch.uint8).numpy().tobytes()
    (tmp_path / "a.mp4").write_bytes(content)
    (tmp_path / "b.mp4").write_bytes(content)
    os.utime(tmp_path / "b.mp4", (1, 1))
    assert file_digest(tmp_path / "a.mp4") == file_digest(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert file_digest(tmp_path / "a.mp4") != file_digest(tmp_path / "b.mp4")
