"""What the commands of `sail` share: which videos are meant, where documents go, and a run over videos that some may fail."""

import glob
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from .data import find_videos, written_whole
from .export import FORMATS

Events = list[dict]


# --- Which videos -------------------------------------------------------------------------------------------------


def is_url(video: str) -> bool:
    return video.lower().startswith(("http://", "https://"))


def expand_videos(names: Sequence[str]) -> list[str]:
    """The videos that are meant by names, addresses, folders, patterns (`"*.mp4"`) and lists in files (`@list.txt`).

    Raises:
        OSError, ValueError: a list that cannot be read, a folder or a pattern without videos.
    """
    found: list[str] = []
    for name in names:
        if is_url(name) or os.path.isfile(name):
            found.append(name)
        elif name.startswith("@"):
            try:
                lines = Path(name[1:]).read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{name[1:]} is no UTF-8 text: {error}") from error
            found += expand_videos([line.strip() for line in lines if line.strip() and not line.startswith("#")])
        elif os.path.isdir(name):
            inside = sorted(set(find_videos(name).values()))
            if not inside:
                raise ValueError(f"The folder {name} holds no videos.")
            found += map(str, inside)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise ValueError(f"No file matches {name}.")
            found += matches
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def trouble_with(video: str) -> str | None:
    """What makes a video unusable before it is opened."""
    try:
        video.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8 text: rename the file"
    return None if is_url(video) or os.path.isfile(video) else "no such file"


def stem_of(video: str) -> str:
    return Path(unquote(urlsplit(video).path) if is_url(video) else video).stem


# --- Where documents go -------------------------------------------------------------------------------------------


def formats_of(formats: Sequence[str] | None, output: str | None) -> Sequence[str]:
    """`--format`, or what the ending of the file `--output` says, or json."""
    name = "" if output is None else Path(output).name.lower()
    named = [key for key, form in FORMATS.items() if name.endswith(f".{form.ending}")]
    longest = sorted(named, key=lambda key: len(FORMATS[key].ending))[-1:]
    return formats or longest or ["json"]


def check_writable(folder: str | Path) -> None:
    """Raise ValueError where nothing can be written in a folder that is there or is to be made."""
    folder = Path(folder)
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ValueError(f"Nothing can be written in {folder}: {place} is no folder, or one to read alone.")


@dataclass
class Documents:
    """The documents of a run: a file for each video and format in a folder, a file for all, or the standard output.

    Args:
        videos: all that are asked for.
        formats: names of `FORMATS`, or None for what `output` says by its ending.
        output: `--output`: a folder, a file where it has an ending and is no folder, or None for the standard output.
        embed: `--embed`: pages hold their video.
        transcode: `--transcode`: pages show a copy that every browser plays, where the video itself is none.

    Raises:
        ValueError: more documents than fit the place, an ending that says another format, a place nobody can write to,
            two videos with one file, options of pages without a page or of a video that is no file.
    """

    videos: Sequence[str]
    formats: Sequence[str] | None
    output: str | None
    embed: bool = False
    transcode: bool = False
    held: dict[str, Events] = field(default_factory=dict)  # what goes into one document, written at the end

    def __post_init__(self):
        self.formats = formats_of(self.formats, self.output)
        self.is_folder = self.output is not None and (
            os.path.isdir(self.output) or self.output.endswith(("/", os.sep)) or not Path(self.output).suffix
        )
        if not self.is_folder:
            place = "standard output" if self.output is None else self.output
            if len(self.formats) > 1:
                raise ValueError(f"{len(self.formats)} formats do not fit into {place}: give --output FOLDER.")
            if len(self.videos) > 1 and not FORMATS[self.formats[0]].several:
                raise ValueError(
                    f"{len(self.videos)} videos do not fit into one {self.formats[0]} document: give --output FOLDER."
                )
        if self.output is not None:
            self._check_place()
        if self.embed or self.transcode:
            self._check_pages()
        taken: dict[Path, str] = {}
        for video in self.videos if self.is_folder else ():
            for file in self.files_of(video):
                if (other := taken.setdefault(file, video)) != video:
                    raise ValueError(f"{other} and {video} would both be written to {file}: run them one by one.")

    def _check_place(self) -> None:
        if not self.is_folder:
            endings = {form.ending for form in FORMATS.values()}
            own = FORMATS[self.formats[0]].ending
            ending = Path(self.output).suffix.removeprefix(".").lower()
            if ending in endings and not own.endswith(ending):
                raise ValueError(
                    f"{self.output} does not end as {self.formats[0]} does: give one of --format, --output."
                )
        check_writable(Path(self.output) if self.is_folder else Path(self.output).parent)

    def _check_pages(self) -> None:
        if "html" not in self.formats:
            raise ValueError("--embed and --transcode are for pages: give --format html.")
        from .visualization import check_embeddable

        for video in self.videos:
            if is_url(video):
                raise ValueError(f"--embed and --transcode read files, and {video} is an address: download it first.")
            if not self.transcode and not trouble_with(video):
                check_embeddable(video)

    def files_of(self, video: str) -> list[Path]:
        """The files of a video, where there is one for each."""
        return [Path(self.output) / f"{stem_of(video)}.{FORMATS[name].ending}" for name in self.formats]

    def add(self, video: str, events: Events) -> None:
        """Write the events of a video, or keep them for the document of all."""
        if self.is_folder:
            for name, file in zip(self.formats, self.files_of(video), strict=True):
                write_file(file, self._render(name, {video: events}))
        else:
            self.held[video] = events

    def finish(self) -> None:
        """Write the document of all."""
        if not self.held:
            return
        text = self._render(self.formats[0], self.held)
        if self.output is None:
            sys.stdout.write(text)
        else:
            write_file(Path(self.output), text)

    def _render(self, name: str, results: dict[str, Events]) -> str:
        if name == "html":
            ((video, events),) = results.items()
            return self._page(video, events)
        # A document of several videos stays one where all but one failed.
        of_all = len(self.videos) > 1 and not self.is_folder
        return FORMATS[name].several(results) if of_all else FORMATS[name].document(results)

    def _page(self, video: str, events: Events) -> str:
        """The page finds the video from where it lies, and has the duration that a browser may not find out."""
        from .video_cutting import plays_everywhere, write_playable
        from .video_reading import open_video
        from .visualization import embedded, format_html

        if is_url(video):
            return format_html(events, video, stem_of(video))
        folder = os.curdir if self.output is None else self.output if self.is_folder else Path(self.output).parent
        with open_video(video) as reader:
            duration = reader.duration
        shown = Path(video)
        if self.transcode and not plays_everywhere(video):
            shown = Path(folder) / f"{stem_of(video)}.playable.mp4"
            if not shown.exists() or shown.stat().st_mtime < Path(video).stat().st_mtime:
                write_playable(video, shown)
        source = embedded(shown) if self.embed else quote(os.path.relpath(shown, folder))
        return format_html(events, source, stem_of(video), duration)


def write_file(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# --- A run over videos --------------------------------------------------------------------------------------------


def run_over(
    results: Iterator[tuple[str, Events | Exception]],
    documents: Documents,
    reasons: dict[str, str],
    title: str,
    quiet: bool,
) -> int:
    """Give what comes for each video to `documents`, show progress, say at the end what failed; Ctrl-C keeps what is done.

    Args:
        results: each video with its events, or with what went wrong.
        reasons: what is known to have failed before; grows.

    Returns:
        The exit status: 0, 1 where something failed, 130 where the run was interrupted.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    status, done = 0, 0
    bar = tqdm(total=len(documents.videos), initial=len(reasons), desc=title, unit="video", disable=quiet)
    with bar as progress, logging_redirect_tqdm():
        try:
            for video, events in results:
                try:
                    if isinstance(events, Exception):
                        raise events
                    documents.add(video, events)
                    done += 1
                except Exception as error:  # whatever is wrong with one video, it must not end a run over thousands
                    reasons[video] = (
                        str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                    )
                progress.update()
        except KeyboardInterrupt:
            status = 130
    failed = report_failures(reasons, len(documents.videos))
    if status:
        print(f"sail: interrupted; {done} of {len(documents.videos)} videos are done and kept.", file=sys.stderr)
    return status or failed


def report_failures(reasons: dict[str, str], total: int) -> int:
    """List what failed on the standard error. Returns the exit status."""
    lines = []
    for video, reason in reasons.items():
        line = reason if reason.startswith(video) else f"{video}: {reason}"
        lines.append(line.encode(errors="backslashreplace").decode())  # a name may be no text
    if len(lines) == total == 1:
        print(f"sail: error: {lines[0]}", file=sys.stderr)
    elif lines:
        print("\n  ".join([f"sail: {len(lines)} of {total} videos failed:", *lines]), file=sys.stderr)
    return int(bool(reasons))


def usable(videos: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The videos that can be tried, and why the others cannot."""
    reasons = {video: reason for video in videos if (reason := trouble_with(video))}
    return [video for video in videos if video not in reasons], reasons


# --- Devices and what libraries print -----------------------------------------------------------------------------


def pick_device(name: str | None) -> str:
    """The device by its name; by default a GPU of any maker, if there is one.

    Raises:
        ValueError: torch has no such device.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # a CPU build of torch asserts that it has CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def calm_libraries(args: Namespace) -> Iterator[None]:
    """While models are loaded, no bars and no notes of libraries, unless asked for; then bars inside long videos, unless quiet."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger(__package__).setLevel(logging.ERROR if args.quiet else logging.NOTSET)
    has_bars = transformers_logging.is_progress_bar_enabled()
    if not args.verbose:
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    yield
    if has_bars and not args.quiet:
        transformers_logging.enable_progress_bar()
