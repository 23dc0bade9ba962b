"""Files in and out: videos of a folder, and outputs that are written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Where a video exists in several forms, the first of these is taken.
VIDEO_EXTENSIONS = tuple(".mp4 .mkv .webm .mov .m4v .avi .mpg .mpeg .ts .flv .wmv .3gp .ogv".split())


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary file or folder name beside `path`; what is written there replaces `path` when the block ends well.

    Parent folders are made. What an earlier run left under the temporary name is removed; after an error, `path` is as
    it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    yield temporary
    os.replace(temporary, path)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def find_videos(folder: str | Path) -> dict[str, Path]:
    """Video files in a folder and its sub-folders by id: the path below the folder, or the name, without extension.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder of videos")
    files = [file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_EXTENSIONS and file.is_file()]
    files.sort(key=lambda file: (VIDEO_EXTENSIONS.index(file.suffix.lower()), file))
    found: dict[str, Path] = {}
    for file in files:
        found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        found.setdefault(file.stem, file)
    return found


def find_video(videos: dict[str, Path], video_id: str) -> Path | None:
    """ActivityNet's ids start with `v_`, the names of its files often do not, or the other way round."""
    for name in (video_id, video_id.removeprefix("v_"), f"v_{video_id}"):
        if name in videos:
            return videos[name]
    return None
