"""`sail app`: drop a video into the browser, see its events on a page there, correct and download them. Needs Gradio."""

import html
import os
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .cli_videos import Documents, Events, calm_libraries, pick_device, stem_of, write_file
from .export import FORMATS
from .hub_names import check_model_name

if TYPE_CHECKING:
    from gradio import Blocks

    from .pipeline_sail import DenseVideoCaptioningPipeline

DESCRIBE, TIME, FIND = "describe its events", "time my sentences", "find my sentences"
# Uploads and results are deleted after so many seconds.
_KEPT_FOR = 3600


def run(args: Namespace) -> int:
    """Serve the app until Ctrl-C. Returns the exit status."""
    for name in args.model:
        check_model_name(name)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(f"`sail app` needs Gradio ({error}): pip install 'sail-hf[app]'") from error
    device = pick_device(args.device)
    from transformers import pipeline

    options = {"device": device, "trust_remote_code": False}
    with calm_libraries(args):
        pipes = {name: pipeline("dense-video-captioning", model=name, **options) for name in args.model}
    with tempfile.TemporaryDirectory(prefix="sail-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # files of this folder are served, and no others
        size = f"{args.max_upload}mb"
        app = build_app(pipes)
        app.launch(server_name=args.host, server_port=args.port, max_file_size=size, quiet=args.quiet, ssr_mode=False)
    return 0


def build_app(pipes: Mapping[str, "DenseVideoCaptioningPipeline"]) -> "Blocks":
    """The app of pipelines by their names, which visitors choose from."""
    import gradio

    def respond(video: str | None, name: str, task: str, text: str) -> tuple[str, list[str]]:
        try:
            if video is None:
                raise ValueError("Drop a video first.")
            return show(video, events_for(pipes[name], video, task, text))
        except Exception as error:  # whatever is wrong with a video, the visitor is told
            message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            # Where uploads lie is nobody's business.
            message = message.replace(str(video), Path(video or "").name)
            raise gradio.Error(html.escape(message), print_exception=False) from error

    names = list(pipes)
    with gradio.Blocks(title="SAIL", analytics_enabled=False, delete_cache=(_KEPT_FOR, _KEPT_FOR)) as app:
        gradio.Markdown("# SAIL: the events of a video")
        with gradio.Row():
            video = gradio.File(label="Video", file_types=["video"])
            with gradio.Column():
                name = gradio.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
                task = gradio.Radio([DESCRIBE, TIME, FIND], value=DESCRIBE, label="Task")
                text = gradio.Textbox(label="My sentences, one a line", lines=3)
                button = gradio.Button("Go", variant="primary")
        page = gradio.HTML()
        files = gradio.File(label="Downloads", file_count="multiple", interactive=False)
        button.click(respond, [video, name, task, text], [page, files], api_name="events")
    return app


def events_for(pipe: "DenseVideoCaptioningPipeline", video: str, task: str, text: str) -> Events:
    """What a task makes of a video and sentences, one a line; by time.

    Raises:
        ValueError: sentences that are needed and missing, or given and not needed; whatever the pipeline raises.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if task == DESCRIBE:
        if lines:
            raise ValueError(f"Choose '{TIME}' or '{FIND}', or leave the sentences out.")
        return pipe(video)
    if not lines:
        raise ValueError("Write the sentences, one a line.")
    if task == TIME:
        return pipe(video, captions=lines)
    found = pipe.model.model.get_clip().find(video, lines)
    return sorted((event for of_line in found for event in of_line), key=lambda event: event["start"])


def show(video: str, events: Events) -> tuple[str, list[str]]:
    """The page of an uploaded video's events, in a frame of its own, and their documents, in a folder beside the video.

    A video that browsers may not know is shown as a copy; the page is among the documents where it can hold the video.
    """
    from .video_cutting import plays_everywhere, write_playable
    from .video_reading import open_video
    from .visualization import check_embeddable, embedded, format_html

    folder, shown, name = Path(tempfile.mkdtemp(dir=Path(video).parent)), Path(video), stem_of(video)
    with open_video(video) as reader:
        duration = reader.duration
    documents = Documents([Path(video).name], [form for form in FORMATS if form != "html"], str(folder))
    documents.add(Path(video).name, events)
    files = documents.files_of(video)
    if not plays_everywhere(video):
        shown = folder / f"{name}.playable.mp4"
        write_playable(video, shown)
    try:
        check_embeddable(shown)
    except ValueError:
        pass
    else:
        write_file(folder / f"{name}.html", format_html(events, embedded(shown), name, duration))
        files.append(folder / f"{name}.html")
    page = format_html(events, f"gradio_api/file={quote(str(shown))}", name, duration)
    rights = 'allowfullscreen sandbox="allow-scripts allow-downloads allow-modals"'
    style = 'style="width: 100%; height: 80vh; border: 0"'
    return f'<iframe title="events" {rights} {style} srcdoc="{html.escape(page)}"></iframe>', list(map(str, files))
