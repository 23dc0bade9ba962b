import json
from collections import Counter

import numpy as np
import pytest
import torch
import world as world_module
from drawing import SIZE, draw_background
from train_clip import ClipArguments, load_pictures, retrieval_accuracy, train_clip
from world import (
    ACTIONS,
    ACTORS,
    FPS,
    HAPPENINGS,
    NOTHING,
    SCENES,
    actor_in,
    draw_frames,
    draw_picture,
    event_sentence,
    render_playground,
    sample_script,
    write_video,
)

from sail_hf.clip_sail import load_clip
from sail_hf.data import read_annotations
from sail_hf.video_processing_sail import SailVideoProcessor
from sail_hf.video_reading import open_video


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A rendered playground: three training videos, one test video, 40 + 8 stills."""
    folder = tmp_path_factory.mktemp("world") / "playground"
    render_playground(folder, 3, 1, seed=7, num_workers=1, num_train_pictures=40, num_test_pictures=8)
    return folder


@pytest.fixture(scope="module")
def scripts():
    return [sample_script(0, "train", index) for index in range(400)]


# The distribution that the module's docstring states


def test_scripts_follow_the_stated_distribution(scripts):
    counts = Counter(len(script.events) for script in scripts)
    assert sorted(counts) == [2, 3, 4, 5, 6]
    # 80 of each are expected, with a standard deviation of 8.
    assert all(48 <= count <= 112 for count in counts.values())
    lengths = np.concatenate([[event.end - event.start for event in script.events] for script in scripts]) / FPS
    assert lengths.min() >= 2 and lengths.max() <= 10
    # Log-uniform: half of the events are shorter than the geometric mean of the limits.
    assert abs((lengths < np.sqrt(20)).mean() - 0.5) < 0.05
    for script in scripts:
        edges = [0, *(edge for event in script.events for edge in (event.start, event.end)), script.num_frames]
        gaps = np.diff(edges)[::2] / FPS
        assert gaps.min() >= 1.25 and gaps.max() <= 4
        for chosen in ([event.actor for event in script.events], [event.action for event in script.events]):
            assert len(set(chosen)) == len(chosen)
    for options, chosen in (
        (ACTORS, [event.actor for script in scripts for event in script.events]),
        (ACTIONS, [event.action for script in scripts for event in script.events]),
        (SCENES, [script.scene for script in scripts]),
        (HAPPENINGS, [happening.kind for script in scripts for happening in script.happenings]),
    ):
        assert set(chosen) == set(options)


def test_events_of_a_video_are_of_unequal_length(scripts):
    ratios = [max(lengths) / min(lengths) for s in scripts if (lengths := [e.end - e.start for e in s.events])]
    assert np.median(ratios) > 2


def test_happenings_stay_in_the_gaps_and_out_of_the_captions(scripts):
    shares = []
    for script in scripts:
        gaps = zip(script.events, script.events[1:], script.transitions, strict=False)
        for before, after, transition in gaps:
            between = [h for h in script.happenings if before.end < h.start and h.end < after.start]
            templates = HAPPENINGS[between[0].kind] if between else NOTHING
            place = SCENES[script.scene]
            assert transition in [template.format(scene=script.scene, place=place) for template in templates]
            shares.append(len(between))
        for happening in script.happenings:
            assert all(happening.end <= event.start or event.end <= happening.start for event in script.events)
        assert len(script.transitions) == len(script.events) - 1
        assert all(actor_in(sentence) is None for sentence in script.transitions)
    assert abs(np.mean(shares) - 0.6) < 0.06


# The grammar


def test_every_caption_names_its_actor_and_one_action():
    rng = np.random.default_rng(0)
    for actor in ACTORS:
        for action, phrases in ACTIONS.items():
            for _ in range(20):
                sentence = event_sentence(rng, "snow", actor, action)
                assert sentence[0].isupper() and sentence.endswith(".")
                assert actor_in(sentence) == actor
                assert sum(phrase in sentence for group in ACTIONS.values() for phrase in group) == 1
                assert any(phrase in sentence for phrase in phrases)
                article, following = sentence.split()[:2]
                assert article == "The" or article == ("An" if following[0] in "aeiou" else "A")


def test_paraphrases_vary():
    rng = np.random.default_rng(0)
    sentences = Counter(event_sentence(rng, "snow", "fox", "kite") for _ in range(600))
    assert len(sentences) == 4 * 3 * 2
    with_place = sum(count for sentence, count in sentences.items() if sentence.endswith(" in the snow."))
    assert abs(with_place / 600 - 0.3) < 0.08


def test_actor_in():
    assert actor_in("Then the DUCK, a yellow one, meets a fox.") == "duck"
    assert actor_in("A man ducks.") is None
    assert actor_in("") is None


# Frames and files


def test_same_seed_same_frames_and_file(tmp_path):
    script = sample_script(3, "test", 5)
    assert script == sample_script(3, "test", 5)
    assert script != sample_script(4, "test", 5) and script != sample_script(3, "train", 5)
    frames = list(draw_frames(script))
    assert len(frames) == script.num_frames
    assert all((frame == again).all() for frame, again in zip(frames, draw_frames(script), strict=True))
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", frames[:20])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_actors_are_on_stage_during_their_events_only():
    for index in range(6):
        script = sample_script(0, "train", index)
        background = np.asarray(draw_background(script.scene, script.looks)).astype(int)
        changed = [(np.abs(frame - background).sum(-1) > 30).mean() for frame in draw_frames(script)]
        for event in script.events:
            assert min(changed[event.start : event.end]) > 0.03
        gap = np.ones(script.num_frames, dtype=bool)
        for part in (*script.events, *script.happenings):
            gap[part.start : part.end] = False
        assert gap.any() and max(np.array(changed)[gap]) == 0


def test_videos_show_what_the_script_says(world):
    rows = {row["video_id"]: row for row in read_annotations([world / "train.json", world / "test.json"])}
    assert sorted(rows) == ["test_0000", "train_0000", "train_0001", "train_0002"]
    for name, row in rows.items():
        split, index = name.split("_")
        script = sample_script(7, split, int(index))
        assert row["captions"] == [event.sentence for event in script.events]
        assert row["transitions"] == script.transitions
        frames = list(draw_frames(script))
        with open_video(world / "videos" / f"{name}.mp4") as reader:
            assert reader.duration == pytest.approx(row["duration"]) and reader.fps == pytest.approx(FPS)
            for (start, end), event in zip(row["timestamps"], script.events, strict=True):
                # The first and the last frame of the event, and the frames just outside.
                times = [start, end - 0.01, start - 0.01, end]
                drawn = [frames[i] for i in (event.start, event.end - 1, event.start - 1, event.end)]
                for found, expected in zip(
                    reader.frames_at(sorted(times)), [drawn[2], *drawn[:2], drawn[3]], strict=True
                ):
                    assert found.shape == (SIZE, SIZE, 3)
                    # Compression blurs colors a little.
                    assert np.abs(found.astype(int) - expected).mean() < 6


def test_videos_are_h264(world):
    import av

    with av.open(str(world / "videos" / "train_0000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


def test_rendering_again_makes_only_what_is_missing(world):
    videos = {path: path.stat().st_mtime_ns for path in (world / "videos").iterdir()}
    lost = world / "videos" / "train_0001.mp4"
    content = lost.read_bytes()
    lost.unlink()
    # What an interrupted run leaves behind does not count as a video.
    (world / "videos" / "train_0001.mp4.part").write_bytes(content[:100])
    render_playground(world, 3, 1, seed=7, num_workers=1, num_train_pictures=40, num_test_pictures=8)
    assert lost.read_bytes() == content
    assert sorted(videos) == sorted((world / "videos").iterdir())
    assert all(path.stat().st_mtime_ns == time for path, time in videos.items() if path != lost)


def test_another_seed_in_the_same_folder_is_refused(world):
    with pytest.raises(ValueError, match=r"playground.*'seed': 7.*expected.*'seed': 8"):
        render_playground(world, 3, 1, seed=8)


def test_pictures_load_as_a_data_set(world):
    images, texts = load_pictures(str(world / "pictures"), "train", 48)
    assert images.shape == (40, 3, 48, 48) and images.dtype == torch.uint8
    assert texts == [draw_picture(7, "train", index)[1] for index in range(40)]
    drawn = np.asarray(draw_picture(7, "train", 0)[0].resize((48, 48)), dtype=int)
    assert np.abs(images[0].permute(1, 2, 0).numpy() - drawn).mean() < 8


def test_pictures_show_events_happenings_and_empty_scenes():
    texts = [draw_picture(0, "train", index)[1] for index in range(300)]
    assert abs(np.mean([actor_in(text) is not None for text in texts]) - 0.7) < 0.08
    nothing = {template.format(scene=scene, place=place) for template in NOTHING for scene, place in SCENES.items()}
    assert abs(np.mean([text in nothing for text in texts]) - 0.12) < 0.06


# The small CLIP


@pytest.fixture(scope="module")
def tiny_clip(world, tmp_path_factory):
    """A CLIP that has learned 32 stills by heart."""
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    args = ClipArguments(
        pictures=str(world / "pictures"),
        output=str(folder),
        image_size=48,
        patch_size=12,
        embed_dim=24,
        width=32,
        vision_layers=1,
        text_layers=1,
        num_epochs=60,
        batch_size=20,
        learning_rate=3e-3,
    )
    train_clip(args)
    return folder


def test_clip_learns_and_loads(world, tiny_clip):
    clip = load_clip(str(tiny_clip))
    config = clip.vision_config
    assert (config.image_size, config.image_mean, config.image_std) == (48, [0.5] * 3, [0.5] * 3)
    assert sorted(path.name for path in tiny_clip.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    stills = [draw_picture(7, "train", index) for index in range(40)]
    # Through the preprocessing that videos get.
    pixels = SailVideoProcessor.from_vision_config(config).process_frames(np.asarray(image) for image, _ in stills)
    pictures = torch.nn.functional.normalize(clip.encode_images(pixels), dim=-1)
    texts = torch.nn.functional.normalize(clip.encode_texts([text for _, text in stills]), dim=-1)
    assert pictures.shape == texts.shape == (40, 24)
    best = (pictures @ texts.T).argmax(-1)
    assert np.mean([stills[i][1] == stills[best[i]][1] for i in range(40)]) > 0.7  # by chance: about 0.03


def test_retrieval_accuracy_compares_within_groups(world, tiny_clip):
    by_heart = retrieval_accuracy(str(tiny_clip), str(world / "pictures"), split="train")
    assert 0.8 < by_heart <= 1  # by chance: 0.25
    # A picture alone has no other text to be closer to.
    assert retrieval_accuracy(str(tiny_clip), str(world / "pictures"), group_size=1) == 1


def test_clip_loads_in_open_clip(tiny_clip):
    import open_clip

    model = open_clip.create_model(f"local-dir:{tiny_clip}")
    assert model.visual.preprocess_cfg["mean"] == [0.5] * 3
    clip = load_clip(f"local-dir:{tiny_clip}")
    pixels = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(pixels), clip.encode_images(pixels))


def test_pictures_without_text_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a", "caption": "b"}) + "\n")
    with pytest.raises(ValueError, match=r"expected rows of `image` and `text`.*found.*caption"):
        load_pictures(str(tmp_path), "train", 32)


def test_command_line_renders(tmp_path):
    amounts = "--num_train 1 --num_test 0 --num_train_pictures 0 --num_test_pictures 0 --num_workers 1"
    world_module.main(["--output", str(tmp_path / "w"), *amounts.split()])
    assert [path.name for path in (tmp_path / "w" / "videos").iterdir()] == ["train_0000.mp4"]
    assert json.loads((tmp_path / "w" / "test.json").read_text()) == {}
