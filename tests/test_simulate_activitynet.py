"""The comparison at ActivityNet's size: what its world is, that it learns and scores by the package's own paths, and goes on."""

import json

import numpy as np
import pytest
import simulate_activitynet
import torch
from simulate_activitynet import SimulateArguments, TextClip, choose_noise, main, own_noise, show
from simulate_alignment import read_rows, unit
from transformers import AutoTokenizer

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.alignment_sail import ALIGNMENTS

NOUNS = "man woman dog child horse boat guitar kitchen river mountain crowd cat".split()
VERBS = "runs jumps sings cooks paints climbs swims dances sleeps throws drives plays".split()


def write_annotations(folder):
    """40 videos of 60 s with 2 to 4 events, in two files; the second has other times and lacks a video."""
    rng = np.random.default_rng(0)
    videos = {}
    for v in range(40):
        bounds = [0, *sorted(rng.choice(np.arange(6, 54, 6), rng.integers(1, 4), replace=False).tolist()), 60]
        events = [[start + 1.0, end - 1.0] for start, end in zip(bounds, bounds[1:], strict=False)]
        words = zip(rng.permutation(NOUNS), rng.permutation(VERBS), events, strict=False)
        sentences = [f"A {noun} {verb}." for noun, verb, _ in words]
        videos[f"v_{v}"] = {"duration": 60.0, "timestamps": events, "sentences": sentences}
    train = {f"t_{video[2:]}": row for video, row in videos.items()}
    second = {v: row | {"timestamps": [[0.0, 60.0]] * len(row["sentences"])} for v, row in list(videos.items())[1:]}
    for name, content in (("train", train), ("val_1", videos), ("val_2", second)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def command(folder, **options):
    fixed = ["--train", str(folder / "train.json"), "--output", str(folder / "out")]
    fixed += [
        "--annotations",
        str(folder / "val_1.json"),
        str(folder / "val_2.json"),
        "--methods",
        "sail-align",
        "fixed",
    ]
    options = {"accuracy": 80, "first_steps": 4, "second_steps": 2, **options}
    return [*fixed, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole comparison, of two methods that hardly train."""
    folder = tmp_path_factory.mktemp("simulated")
    write_annotations(folder)
    main(command(folder))
    args = SimulateArguments(
        annotations=[str(folder / f"val_{i}.json") for i in (1, 2)],
        train=str(folder / "train.json"),
        output=folder / "out",
    )
    world = json.loads((args.output / "world.json").read_text())
    clip = simulate_activitynet.make_clip(args.files(), args.seed)
    clip.noise = world["noise"]
    return args, world, clip


def test_noise_makes_as_many_frames_right_as_asked_for(tmp_path):
    write_annotations(tmp_path)
    rows = read_rows(str(tmp_path / "train.json"))
    clip, rng = (
        TextClip([c for row in rows for c in row["captions"]], np.random.default_rng(0)),
        np.random.default_rng(1),
    )
    videos = [show(row, clip, rng) for row in rows]
    levels = [choose_noise(videos, accuracy) for accuracy in (90, 70)]
    assert 0 < levels[0] < levels[1]
    for level, accuracy in zip(levels, (90, 70), strict=True):
        assert 100 * np.concatenate([video.hits(level) for video in videos]).mean() == pytest.approx(accuracy, abs=1)
    assert all(video.hits(0.0).all() for video in videos)


def test_the_same_sentence_has_the_same_features():
    clip = TextClip(["a dog runs", "a cat sleeps"], np.random.default_rng(0))
    clip.noise = 0.3
    first, again, other = clip.encode_texts(["A dog runs.", "A dog runs.", "Zebras?"])
    assert torch.equal(first, again) and not torch.equal(first, other)
    # What no one has heard of is noise alone, half as large as a frame's.
    np.testing.assert_allclose(other, 0.3 * own_noise(["Zebras?"])[0], rtol=1e-5)
    assert own_noise([str(i) for i in range(200)]).std() == pytest.approx(0.5, abs=0.02)


def test_the_data_set_is_the_recipes_own(made):
    args, world, clip = made
    rows = simulate_activitynet.scored_videos(args)
    assert np.linalg.norm(rows["video_features"], axis=-1).mean() == pytest.approx(10, rel=0.1)
    assert world["percent_right"]["train"] == pytest.approx(
        80, abs=6
    )  # of 40 videos, under other noise than chosen on
    row = rows[3]
    np.testing.assert_allclose(row["caption_features"], clip.encode_texts(list(row["captions"])), atol=2e-3)
    assert len(row["transition_features"]) == len(row["captions"]) - 1
    # The scene and noise of its length: 45 degrees apart.
    scene = unit(clip.encode(list(row["captions"]), 0.0, np.random.default_rng(0)).mean(0))
    assert np.mean(unit(np.array(row["transition_features"])) @ scene) == pytest.approx(2**-0.5, abs=0.1)


def test_the_decoder_knows_words(made):
    args, _, clip = made
    model = SailForDenseVideoCaptioning.from_pretrained(args.output / "start")
    tokenizer = AutoTokenizer.from_pretrained(args.output / "start")
    (token,) = tokenizer(" guitar")["input_ids"]
    embedding = model.get_input_embeddings().weight[token].detach().numpy()
    assert unit(embedding) @ unit(clip.vectors[clip.index["guitar"]]) == pytest.approx(1, abs=1e-5)


def test_sentences_are_aligned_as_generate_does(made, monkeypatch):
    args, _, clip = made
    found = simulate_activitynet.caption(args, "sail-align", clip)
    model = SailForDenseVideoCaptioning.from_pretrained(args.output / "sail-align").eval()
    monkeypatch.setattr(model.model, "get_clip", lambda: clip)
    features = torch.from_numpy(simulate_activitynet.scored_videos(args)[:]["video_features"]).float()
    tokenizer = AutoTokenizer.from_pretrained(args.output / "sail-align")
    for alignment in ALIGNMENTS:
        spans = simulate_activitynet.align(found.similarities, alignment)
        out = model.generate(features, tokenizer=tokenizer, localization="alignment", alignment=alignment)
        assert out.num_events.tolist() == [len(of_video) for of_video in spans]
        for i, of_video in enumerate(spans):
            centers, widths = of_video.mean(1), of_video[:, 1] - of_video[:, 0]
            np.testing.assert_allclose(out.event_centers[i, : len(centers)], centers, atol=1e-5)
            np.testing.assert_allclose(out.event_widths[i, : len(centers)], widths, atol=1e-5)


def test_true_captions_beat_equal_spans_and_rows_say_what_they_are(made):
    args, _, _ = made
    true = json.loads((args.output / "true_captions.json").read_text())
    assert true["ordered"]["f1"] > true["ordered"]["f1_equal_spans"] + 0.1 and true["ordered"]["lift"] > 0.1
    assert true["ordered"]["event_count_accuracy"] == 1 and true["ordered"]["num_videos"] == 40
    fixed = json.loads((args.output / "fixed" / "scores.json").read_text())["masks"]
    assert fixed["f1"] == pytest.approx(fixed["f1_equal_spans"], abs=0.02)  # in float32: ties of whole seconds
    table = (args.output / "table.md").read_text()
    assert table.startswith("SIMULATED") and "| sail-align, masks |" in table
    assert len({line.count("|") for line in table.splitlines() if "|" in line}) == 1


def test_the_same_command_goes_on_and_another_is_refused(made, capsys):
    args, _, _ = made
    folder = args.output.parent
    before = {path: path.stat().st_mtime_ns for path in args.output.rglob("*.safetensors")}
    main(command(folder))
    assert before == {path: path.stat().st_mtime_ns for path in args.output.rglob("*.safetensors")}
    with pytest.raises(SystemExit):
        main(command(folder, accuracy=70))
    assert "choose another --output" in capsys.readouterr().err
