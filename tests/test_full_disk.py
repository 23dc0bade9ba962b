"""Where nothing more can be written, a recipe ends with a sentence, and what was there before is as it was."""

import hashlib
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import align_dataset
import extract_features
import pytest
from soak.soak_kills import make_inputs

from sail_hf.data import write_json, written_whole

if sys.platform == "win32":
    pytest.skip("limits on files are POSIX's", allow_module_level=True)
import resource  # noqa: E402


@contextmanager
def files_of_at_most(size: int):
    """As on a disk that is full: what would be larger is refused by the operating system, after its first bytes."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN, "Python turns the signal into an OSError"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def recipes(folder: Path) -> dict:
    of_videos = ["--videos", str(folder / "videos"), "--clip", str(folder / "clip")]
    captions = str(folder / "captions.json")
    return {
        "extract_features": (extract_features.main, [*of_videos, "--annotations", captions, "--num_frames", "8"]),
        "align_dataset": (align_dataset.main, [*of_videos, "--dataset", str(folder / "data")]),
    }


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(".part")
    }


def test_a_full_disk_loses_nothing(inputs, tmp_path):
    main, arguments = recipes(inputs)["extract_features"]
    output = tmp_path / "output"
    main([*arguments, "--output", str(output)])
    before = contents(output)
    assert before
    (tmp_path / "output.work").rename(tmp_path / "done")  # so that there is all to do again
    with files_of_at_most(100), pytest.raises(SystemExit, match="error: .*(could not be written|too large)"):
        main([*arguments, "--output", str(output)])
    assert contents(output) == before


def test_a_full_disk_leaves_nothing_half_done(inputs, tmp_path):
    main, arguments = recipes(inputs)["align_dataset"]
    main([*arguments, "--output", str(tmp_path / "other")])  # so that the cache of `datasets` is filled
    output = tmp_path / "output"
    with files_of_at_most(2000), pytest.raises(SystemExit, match="error: .*too large"):
        main([*arguments, "--output", str(output)])
    assert not output.exists()
    main([*arguments, "--output", str(output)])
    assert contents(output)


@pytest.mark.parametrize("name", ["extract_features", "align_dataset"])
def test_a_folder_that_cannot_be_written_is_a_sentence(inputs, tmp_path, name):
    main, arguments = recipes(inputs)[name]
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="error: .*(Not a directory|No such file|exists)"):
        main([*arguments, "--output", str(tmp_path / "file" / "output")])


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with files_of_at_most(10), pytest.raises(OSError, match="too large"):
        write_json(tmp_path / "a.json", {"new": "x" * 1000})
    assert (tmp_path / "a.json").read_text().split() == ['{', '"old":', '1', '}']  # fmt: skip


def test_tensors_that_cannot_be_written_are_an_error_of_the_disk(tmp_path):
    import torch
    from safetensors.torch import save_file

    with files_of_at_most(10), pytest.raises(OSError, match="could not be written"):
        with written_whole(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(100)}, temporary)
    assert not (tmp_path / "a.safetensors").exists()
