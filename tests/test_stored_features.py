"""Features that others have made: every form that they are shared in, ids, what is refused, and the data set that results."""

import json
from pathlib import Path

import extract_features
import numpy as np
import pytest
import torch
from datasets import load_dataset
from safetensors.torch import save_file
from stored_features import StoredFeatures
from tiny import make_clip

from sail_hf.video_processing_sail import resample_features

IDS = ["v_AAAAAAAAAA1", "v_BBBBBBBBBB2", "v_CCCCCCCCCC3"]
CAPTIONS = {IDS[0]: ["A man stands.", "He sits down."], IDS[1]: ["A dog runs."], IDS[2]: ["Water boils.", "It cools."]}
NUM_FRAMES, SIZE = 4, 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return folder


def arrays(seed: int = 0, size: int = SIZE) -> dict[str, np.ndarray]:
    """Features of 9, 3 and 4 seconds at one a second."""
    generator = np.random.default_rng(seed)
    lengths = zip(IDS, (9, 3, 4), strict=True)
    return {video_id: generator.normal(size=(n, size)).astype(np.float32) for video_id, n in lengths}


def write_npy(folder: Path, features: dict, name: str = "{}.npy") -> Path:
    folder.mkdir(parents=True)
    for video_id, value in features.items():
        np.save(folder / name.format(video_id), value)
    return folder


def write_as(form: str, path: Path, features: dict) -> Path:
    bare = {video_id.removeprefix("v_"): value for video_id, value in features.items()}
    tensors = {video_id: torch.from_numpy(value) for video_id, value in features.items()}
    if form == "v_ID.npy":
        return write_npy(path, features)
    if form == "ID.npy":
        return write_npy(path, bare)
    if form == "v_ID_clip.npy":
        return write_npy(path, features, "{}_clip.npy")
    if form == "ID.mp4.npy":
        return write_npy(path / "below", bare, "{}.mp4.npy").parent
    if form == "prefix_ID.npy":
        return write_npy(path, bare, "some-prefix_{}.npy")
    if form == "ID_resnet.npy and ID_bn.npy":
        write_npy(path, {name: value[:, :16] for name, value in bare.items()}, "{}_resnet.npy")
        for name, value in bare.items():
            np.save(path / f"{name}_bn.npy", value[:, 16:])
        return path
    if form == "a folder of .npz":
        path.mkdir()
        for name, value in bare.items():
            np.savez(path / f"{name}.npz", features=value)
        return path
    if form == "a folder of .pth":
        path.mkdir()
        for name, value in tensors.items():
            torch.save(value, path / f"{name}.pth")
        return path
    file = path.with_suffix({"legacy .pth": ".pth"}.get(form, form))
    if form == ".npz":
        np.savez(file, **features)
    elif form in (".pth", "legacy .pth"):
        torch.save(tensors, file, _use_new_zipfile_serialization=form == ".pth")
    elif form == ".safetensors":
        save_file(tensors, file)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(file, "w") as written:
            for name, value in features.items():
                written[f"{name}/c3d_features" if form == ".hdf5" else name] = value
    return file


FORMS = ["v_ID.npy", "ID.npy", "v_ID_clip.npy", "ID.mp4.npy", "prefix_ID.npy", "ID_resnet.npy and ID_bn.npy"]
FORMS += ["a folder of .npz", "a folder of .pth", ".npz", ".pth", "legacy .pth", ".safetensors", ".h5", ".hdf5"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_features(tmp_path, form):
    features = arrays()
    stored = StoredFeatures(write_as(form, tmp_path / "features", features))
    for video_id, value in features.items():
        for name in (video_id, video_id.removeprefix("v_"), f"{video_id}.mp4"):
            found = stored.read(stored.find(name))
            assert found.dtype == np.float32 and np.array_equal(found, value)
    assert stored.find("v_DDDDDDDDDD4") is None


def test_the_last_characters_count_only_where_they_are_of_one_video(tmp_path):
    value = np.ones((2, 3), np.float32)
    folder = write_npy(tmp_path / "x", {"1_AAAAAAAAAA1": value, "2_AAAAAAAAAA1": value, "1_BBBBBBBBBB2": value})
    stored = StoredFeatures(folder)
    assert stored.find("AAAAAAAAAA1") is None and stored.find("v_BBBBBBBBBB2") == "1_BBBBBBBBBB2"
    assert stored.find("short") is None


def test_a_youtube_id_may_end_like_a_part_of_tsn(tmp_path):
    stored = StoredFeatures(write_npy(tmp_path / "x", {"v_AAAAAAAA_bn": np.ones((2, 3), np.float32)}))
    assert stored.find("AAAAAAAA_bn") == "AAAAAAAA_bn"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((2, 3), np.nan), "not all finite"),
        (np.array([[1.0, np.inf]]), "not all finite"),
        (np.zeros((2, 3)), "all zeros"),
        (np.ones(3), r"shape \(L, D\), found \(3,\)"),
        (np.ones((0, 3)), "shape"),
        (np.ones((2, 3), int), "an array of int64"),
    ],
)
def test_what_are_no_features_is_refused(tmp_path, value, message):
    stored = StoredFeatures(write_npy(tmp_path / "x", {"one": value}))
    with pytest.raises(ValueError, match=message):
        stored.read("one")


def test_files_that_could_run_code_or_are_damaged_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "marker",)

    folder = tmp_path / "x"
    folder.mkdir()
    np.save(folder / "pickled.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    torch.save({"id": Evil()}, folder / "code.pth")
    (folder / "damaged.npy").write_bytes(b"\x93NUMPY")
    # A header that promises more than there is.
    np.save(folder / "short.npy", np.ones((50, 50), np.float32))
    (folder / "short.npy").write_bytes((folder / "short.npy").read_bytes()[:500])
    stored = StoredFeatures(folder)
    for name in ("pickled", "code", "damaged", "short"):
        with pytest.raises(ValueError):
            stored.read(name)
    with pytest.raises(ValueError, match="code.pth holds more than tensors"):
        StoredFeatures(folder / "code.pth")
    for name, message in (("damaged.pth", "or is damaged"), ("damaged.npz", "cannot be read")):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            StoredFeatures(tmp_path / name)
    assert not (tmp_path / "marker").exists()


def test_hdf5_opens_no_other_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    np.ones((4, 6), np.float32).tofile(tmp_path / "private.bin")
    with h5py.File(tmp_path / "private.h5", "w") as file:
        file["data"] = np.ones((4, 6), np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["link"] = h5py.ExternalLink("private.h5", "data")
        file.create_dataset("raw", (4, 6), "f4", external=[(str(tmp_path / "private.bin"), 0, 96)])
        layout = h5py.VirtualLayout((4, 6), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "private.h5", "data", (4, 6))
        file.create_virtual_dataset("virtual", layout)
        file["own"] = np.ones((4, 6), np.float32)
        file["several/a"] = file["several/b"] = np.ones((4, 6), np.float32)
    stored = StoredFeatures(tmp_path / "x.h5")
    assert stored.read("own").shape == (4, 6)
    for name in ("link", "raw", "virtual"):
        with pytest.raises(ValueError, match="another file, which is not opened"):
            stored.read(name)
    with pytest.raises(ValueError, match="expected one array, found the group"):
        stored.read("several")


def test_without_h5py_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"need h5py: pip install 'sail-hf\[features\]'"):
        StoredFeatures(tmp_path / "x.h5")


def test_features_that_are_there_twice_are_refused(tmp_path):
    folder = write_npy(tmp_path / "clip" / "clip_visual", arrays(), "{}_clip.npy").parent
    write_npy(folder / "clip_text", arrays())
    with pytest.raises(
        ValueError, match=r"AAAAAAAAAA1 twice \(clip_text/v_AAAAAAAAAA1 and clip_visual/v_AAAAAAAAAA1_clip\)"
    ):
        StoredFeatures(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no features"):
        StoredFeatures(tmp_path / "empty")


# --- The recipe ---------------------------------------------------------------------------------------------------


def annotate(path: Path, captions: dict = CAPTIONS, **fields) -> Path:
    content = {
        video_id: {"duration": 9.0, "timestamps": [[0, 1]] * len(texts), "sentences": texts, **fields}
        for video_id, texts in captions.items()
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def extract(tmp_path: Path, features: Path, *options) -> dict[str, dict]:
    if not (tmp_path / "train.json").exists():
        annotate(tmp_path / "train.json")
    words = ["--annotations", tmp_path / "train.json", "--features", features, "--output", tmp_path / "data"]
    extract_features.main([str(word) for word in [*words, "--num_frames", NUM_FRAMES, *options]])
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    return {row["video_id"]: row for row in data.with_format("numpy")}


def test_a_data_set_of_stored_features(tmp_path, clip, capsys):
    features = arrays()
    rows = extract(tmp_path, write_npy(tmp_path / "features", features), "--clip", clip)
    loaded = make_clip(tmp_path / "same_clip")
    assert list(rows) == IDS
    for video_id, row in rows.items():
        expected = resample_features(features[video_id], NUM_FRAMES)
        assert np.allclose(row["video_features"], expected, atol=5e-3)
        assert np.allclose(row["caption_features"], loaded.encode_texts(CAPTIONS[video_id]), atol=2e-3)
        assert row["duration"] == 9.0
    printed = capsys.readouterr().out
    assert "T = 4 frames of size D = 24" in printed and "warning" not in printed
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["video_features"].shape == (NUM_FRAMES, SIZE)


@pytest.mark.parametrize("size", [500, 512, 3072])
def test_features_that_are_not_clips_have_no_text_columns(tmp_path, size):
    rows = extract(tmp_path, write_npy(tmp_path / "features", arrays(size=size)))
    assert rows[IDS[0]]["video_features"].shape == (NUM_FRAMES, size)
    assert "caption_features" not in rows[IDS[0]] and "transition_features" not in rows[IDS[0]]


def test_caption_features_from_files(tmp_path, clip):
    texts = {video_id: np.full((len(c), SIZE), 1 / np.sqrt(SIZE), np.float32) for video_id, c in CAPTIONS.items()}
    texts[IDS[2]] = texts[IDS[2]][:1]
    del texts[IDS[1]]
    annotate(tmp_path / "train.json", {**CAPTIONS, IDS[2]: CAPTIONS[IDS[2]]})
    options = ("--caption_features", write_npy(tmp_path / "clip_text_new", texts))
    rows = extract(tmp_path, write_npy(tmp_path / "features", arrays()), *options)
    assert list(rows) == IDS[:1]
    assert np.allclose(rows[IDS[0]]["caption_features"], texts[IDS[0]], atol=1e-3)
    skipped = json.loads((tmp_path / "data" / "skipped.json").read_text())["train"]
    assert [item["video_id"] for item in skipped] == IDS[1:]
    assert "no caption features" in skipped[0]["reason"]
    assert skipped[1]["reason"] == "it has 2 captions, but 1 caption features"


def test_what_is_missing_or_unusable_is_listed_never_zeros(tmp_path, clip, capsys):
    features = arrays()
    features[IDS[0]][2, 5] = np.nan
    features[IDS[2]] = features[IDS[2]][:, :20]
    annotate(tmp_path / "train.json", {**CAPTIONS, "v_DDDDDDDDDD4": ["Nothing."]})
    rows = extract(tmp_path, write_npy(tmp_path / "features", features), "--clip", clip)
    assert list(rows) == [IDS[1]]
    skipped = {
        item["video_id"]: item["reason"]
        for item in json.loads((tmp_path / "data" / "skipped.json").read_text())["train"]
    }
    assert "not all finite" in skipped[IDS[0]] and "size 24, found 20" in skipped[IDS[2]]
    assert "no features of that id" in skipped["v_DDDDDDDDDD4"]


def test_features_that_half_precision_cannot_hold_are_listed(tmp_path):
    features = arrays()
    features[IDS[0]][0, 0] = 1e6
    assert list(extract(tmp_path, write_npy(tmp_path / "features", features))) == IDS[1:]


def test_normalised_features_are_noticed(tmp_path, capsys):
    features = {name: value / np.linalg.norm(value, axis=1, keepdims=True) for name, value in arrays().items()}
    features[IDS[2]] *= 10
    half = {name: value.astype(np.float16) for name, value in features.items()}
    extract(tmp_path, write_npy(tmp_path / "features", half))
    assert "warning: the features of 2 videos have length 1" in capsys.readouterr().out


def test_wrong_size_for_the_clip_says_both(tmp_path, clip):
    with pytest.raises(SystemExit, match="not one video could be used.*expected features of size 24, found 500"):
        extract(tmp_path, write_npy(tmp_path / "features", arrays(size=500)), "--clip", clip)


def test_no_duration_is_said(tmp_path, capsys):
    annotate(tmp_path / "train.json", duration=None)
    rows = extract(tmp_path, write_npy(tmp_path / "features", arrays()))
    assert rows[IDS[0]]["duration"] is None or np.isnan(rows[IDS[0]]["duration"])
    assert "note: 3 annotations have no duration" in capsys.readouterr().out


def test_one_video_under_two_ids_is_an_error(tmp_path):
    annotate(tmp_path / "train.json", {**CAPTIONS, IDS[0].removeprefix("v_"): ["A man."]})
    with pytest.raises(SystemExit, match="'v_AAAAAAAAAA1' and 'AAAAAAAAAA1' are the same video"):
        extract(tmp_path, write_npy(tmp_path / "features", arrays()))


def test_dry_run_says_what_would_be_skipped_and_computes_nothing(tmp_path, capsys):
    features = arrays()
    features[IDS[0]][:] = np.nan
    del features[IDS[1]]
    annotate(tmp_path / "train.json")
    words = ["--annotations", tmp_path / "train.json", "--features", write_npy(tmp_path / "features", features)]
    words += ["--clip", "ViT-L-14", "--output", tmp_path / "data", "--dry_run"]
    extract_features.main([str(word) for word in words])
    printed = capsys.readouterr().out
    assert "train: 1 of 3 videos would be used; 5 captions in all" in printed
    assert f"skipped {IDS[0]}: its features are not all finite" in printed
    assert f"skipped {IDS[1]}: no features of that id" in printed
    assert not list(tmp_path.glob("data*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--videos", "x"], "either --videos or --features"),
        (["--pretrained", "laion2b_s34b_b79k"], "needs the --clip"),
        (["--caption_features", "nowhere"], "no --caption_features nowhere"),
        (["--shard", "5/4"], "--shard 1/n to n/n, found '5/4'"),
        (["--clip", "ViT-L-15"], "ViT-L-15 is no folder, no model of open_clip"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, options, message):
    features = write_npy(tmp_path / "features", arrays())
    with pytest.raises(SystemExit, match=message):
        extract(tmp_path, features, *options)
