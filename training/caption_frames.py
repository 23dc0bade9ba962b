"""Captions every frame of a data set with a vision-language model, for the method `sbs`.

    python training/caption_frames.py generate --dataset data/mine --videos videos --output frames.jsonl \
        --llm MODEL --base_url http://localhost:8000/v1
    python training/caption_frames.py merge --dataset data/mine --logs frames.jsonl --clip ViT-L-14

SBS (arXiv 2609.04183) captions once, off line, the T frames that a video's features were taken from. `generate` asks any
server with OpenAI's chat interface that takes images (vLLM, SGLang, `transformers serve`, ...), one request a frame: about
320,000 for ActivityNet's training videos. It appends each answer to a log as soon as it is there, and goes on from that log
when started again; `--shard 1/4` to `4/4` share the work. `merge` refuses if one is missing or there twice, and adds to the
data set, which training/extract_features.py has made:

* `frame_captions` (T sentences), `frame_captioner`, `frame_captioner_revision`, `frame_prompt`: where they come from;
* `frame_caption_features` (T, D): CLIP's text projections of them, not normalised.

Features that others have made (`--features`) were taken from frames at about the same times.
"""

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import groupby
from pathlib import Path

import torch
from answer_log import Question, ask, collect_answers, complete_log, find_answers, name_some, run_command
from datasets import Dataset, Features, List, Value
from feature_sources import ahead, outcome, reason
from llm_engines import Sampling, ServerEngine
from PIL import Image
from pyarrow import Table, parquet
from tqdm import tqdm
from transformers.hf_argparser import HfArg
from work_folder import own_device, take_shard

from sail_hf.clip_sail import SailClip, load_clip
from sail_hf.data import find_video, find_videos, written_whole
from sail_hf.video_reading import open_video, uniform_times

# Pixels that the longer side of a frame has at most when it is sent: what such models look at.
IMAGE_SIDE = 512
ROWS_AT_ONCE = 256
TEXTS_AT_ONCE = 1024
PROVENANCE = ("frame_captioner", "frame_captioner_revision", "frame_prompt")


@dataclass(frozen=True)
class Frame(Question):
    """The `index`-th of the T frames of a video; `image`: its JPEG as a data URI, once it is read."""

    unit = "frame"
    prompt: str
    image: str | None = None

    @property
    def messages(self) -> list[dict]:
        image = {"type": "image_url", "image_url": {"url": self.image}}
        return [{"role": "user", "content": [image, {"type": "text", "text": self.prompt}]}]


@dataclass
class GenerateArguments:
    dataset: str = HfArg(help="Folder of a data set with features.")
    videos: str = HfArg(help="Folder of its videos, named by id.")
    llm: str = HfArg(help="The server's name of the vision-language model.")
    base_url: str = HfArg(help="Server with OpenAI's interface (http://host:8000/v1); key: OPENAI_API_KEY.")
    output: str = HfArg(default="", help="Log of the answers (.jsonl), made or continued.")
    split: str = "train"
    llm_revision: str | None = HfArg(default=None, help="Its branch, tag or commit, to be told with the captions.")
    prompt: str = HfArg(
        default="Describe this image briefly in one sentence.",
        help="SBS's question; for BLIP-2 it is 'What is happening in this image?'.",
    )
    temperature: float = HfArg(default=0.0, help="0: always the likeliest token.")
    max_new_tokens: int = 30
    seed: int = 0
    max_attempts: int = HfArg(default=1, help="Answers to ask for, until one is usable.")
    concurrency: int = HfArg(default=64, help="Requests under way at the server.")
    shard: str = HfArg(default="1/1", help="Part of the videos to do here, such as 2/4.")
    extra_body: str = HfArg(default="{}", help="Further fields of each request, as JSON.")
    dry_run: bool = HfArg(default=False, help="Print counts and the question, ask nothing.")


def generate(arguments: GenerateArguments) -> None:
    """Asks for the caption of every frame that the log does not have yet.

    Raises:
        UnansweredError: some frames got no usable answer; all others are in the log.
        OSError, ValueError: the data set or a video is missing.
    """
    path = split_file(arguments.dataset, arguments.split)
    num_frames, ids = frames_of(path), parquet.read_table(path, columns=["video_id"])["video_id"].to_pylist()
    files = find_videos(arguments.videos)
    found = {video_id: find_video(files, video_id) for video_id in ids}
    if missing := [video_id for video_id in ids if found[video_id] is None]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} videos of {path} are not in {arguments.videos}, e.g. {', '.join(missing[:5])}"
        )
    mine = take_shard(ids, arguments.shard)
    frames = [Frame(video_id, i, arguments.prompt) for video_id in mine for i in range(num_frames)]
    print(f"{len(ids)} videos of {num_frames} frames, {len(frames)} frames in shard {arguments.shard}")
    if arguments.dry_run:
        print(f"\n[user]\n(a frame, at most {IMAGE_SIDE} pixels wide and high)\n{arguments.prompt}")
        return
    if not arguments.output:
        raise ValueError("give the log to write by --output")
    sampling = Sampling(arguments.temperature, top_p=1.0, top_k=0, max_new_tokens=arguments.max_new_tokens)
    settings = {
        "llm": arguments.llm,
        "llm_revision": arguments.llm_revision,
        "prompt": arguments.prompt,
        "num_frames": num_frames,
        "image_side": IMAGE_SIDE,
        "seed": arguments.seed,
        **asdict(sampling),
    }
    extra_body = json.loads(arguments.extra_body)
    engine = ServerEngine(arguments.base_url, arguments.llm, sampling, arguments.concurrency, extra_body)

    def answer(waiting, log, progress):
        batches = by_videos(waiting, 2 * arguments.concurrency)
        read = ahead(lambda batch: [outcome(with_images, part, found, num_frames) for part in batch], batches, 1)
        for batch, parts in read:
            for part, result in zip(batch, parts, strict=True):
                if isinstance(result, Exception):
                    progress.write(f"  skipped {name_some([part[0][0]])} and on: {reason(result)}")
            readable = [item for part in parts if not isinstance(part, Exception) for item in part]
            ask(engine, readable, log, arguments.seed, arguments.max_attempts, progress)

    complete_log(frames, arguments.output, settings, arguments.max_attempts, answer)


def split_file(dataset: str, split: str) -> Path:
    """The Parquet file of a split; FileNotFoundError where there is none."""
    path = Path(dataset, f"{split}-00000-of-00001.parquet")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: expected a data set that extract_features.py made")
    return path


def frames_of(path: Path) -> int:
    """T, the frames of a video that the data set's features are of (ValueError: it has none)."""
    columns = Features.from_arrow_schema(parquet.read_schema(path))
    if not hasattr(columns.get("video_features"), "shape"):
        raise ValueError(f"{path} has no video_features as extract_features.py makes them: extract features first")
    return columns["video_features"].shape[0]


def by_videos(waiting: list[tuple[Frame, int]], at_least: int) -> Iterator[list[list[tuple[Frame, int]]]]:
    """The frames of one video after the other, in batches of at least so many frames."""
    batch = []
    for _, part in groupby(waiting, key=lambda item: item[0].video_id):
        batch.append(list(part))
        if sum(map(len, batch)) >= at_least:
            yield batch
            batch = []
    if batch:
        yield batch


def with_images(part: list[tuple[Frame, int]], files: dict[str, Path], num_frames: int) -> list[tuple[Frame, int]]:
    """Frames of one video with their images: the frames that training/extract_features.py takes."""
    with open_video(files[part[0][0].video_id]) as reader:
        times = uniform_times(num_frames, 0, reader.duration)
        images = reader.frames_at(times[frame.index] for frame, _ in part)
        return [(replace(frame, image=data_uri(image)), i) for (frame, i), image in zip(part, images, strict=True)]


def data_uri(image) -> str:
    """A frame `(H, W, 3)`, uint8, as a JPEG in a data URI."""
    picture, jpeg = Image.fromarray(image), BytesIO()
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    picture.save(jpeg, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


@dataclass
class MergeArguments:
    dataset: str = HfArg(help="Folder of a data set with features.")
    logs: list[str] = HfArg(help="Logs of all shards.")
    split: str = "train"
    clip: str = HfArg(default="ViT-L-14", help="The CLIP that the data set's features are of.")
    pretrained: str = HfArg(default="openai", help="open_clip's tag of its weights.")


def merge(arguments: MergeArguments) -> None:
    """Puts the answers of all shards into a split of a data set, with where they come from and their features.

    Raises:
        ValueError: a frame has no answer, or several; the logs' settings differ; another CLIP than the data set's.
    """
    path = split_file(arguments.dataset, arguments.split)
    settings, records = collect_answers(arguments.logs)
    num_frames = frames_of(path)
    if settings.get("num_frames") != num_frames:
        raise ValueError(f"{path} has {num_frames} frames a video, the logs were made with {settings}")
    ids = parquet.read_table(path, columns=["video_id"])["video_id"].to_pylist()
    frames = [Frame(video_id, i, settings["prompt"]) for video_id in ids for i in range(num_frames)]
    answers = iter(find_answers(frames, records))
    captions = {video_id: [next(answers)["text"] for _ in range(num_frames)] for video_id in ids}
    provenance = dict(zip(PROVENANCE, (settings["llm"], settings["llm_revision"], settings["prompt"]), strict=True))
    add_frame_captions(path, captions, provenance, load_clip(arguments.clip, arguments.pretrained).to(own_device()))
    if stale := len(records) - len(frames):
        print(f"{stale} answers in the logs belong to no frame of this split, and were left out")


def add_frame_captions(
    path: Path, captions: dict[str, list[str]], provenance: dict[str, str | None], clip: SailClip
) -> None:
    """Adds the columns of this module to a Parquet file, or replaces them, whole or not at all.

    Args:
        captions: T sentences by video id.
        provenance: values of the columns `PROVENANCE`.
        clip: the one that made the file's features.

    Raises:
        ValueError: the CLIP is another one than that of the file's caption features.
    """
    check_clip(path, clip)
    texts = sorted({text for of_video in captions.values() for text in of_video})
    parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    encoded = [clip.encode_texts(part).half() for part in tqdm(parts, desc="encoding sentences")]
    features = dict(zip(texts, torch.cat(encoded).numpy(), strict=True))
    size = clip.vision_config.model_cfg["embed_dim"]
    new = Features(
        {
            "frame_captions": List(Value("string")),
            **dict.fromkeys(PROVENANCE, Value("string")),
            # Unlike those of an `Array2D`, its nulls are read as `None`: splits without frame captions have them.
            "frame_caption_features": List(List(Value("float16"), length=size)),
        }
    )
    file = parquet.ParquetFile(path)
    kept = {name: kind for name, kind in Features.from_arrow_schema(file.schema_arrow).items() if name not in new}
    columns = Features({**kept, **new})
    with written_whole(path) as temporary, parquet.ParquetWriter(temporary, columns.arrow_schema) as writer:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(kept)):
            of_rows = [captions[video_id] for video_id in batch["video_id"].to_pylist()]
            rows = [
                {
                    **provenance,
                    "frame_captions": of_row,
                    "frame_caption_features": [features[text] for text in of_row],
                }
                for of_row in of_rows
            ]
            added = Dataset.from_list(rows, features=new).with_format("arrow")[:]
            arrays = [*batch.columns, *(added[name].combine_chunks() for name in new)]
            writer.write_table(Table.from_arrays(arrays, schema=columns.arrow_schema))
    print(f"{path}: {sum(map(len, captions.values()))} captions of frames, {len(texts)} different ones")


def check_clip(path: Path, clip: SailClip) -> None:
    """Raise ValueError where the caption features of a file's first video are not those of this CLIP."""
    columns = Features.from_arrow_schema(parquet.read_schema(path))
    if "caption_features" not in columns:
        raise ValueError(f"{path} has no caption_features to tell its CLIP by: the features of `sbs` are CLIP's")
    batch = next(parquet.ParquetFile(path).iter_batches(1, columns=["captions", "caption_features"]))
    (row,) = Table.from_batches([batch]).to_pylist()
    stored, own = torch.tensor(row["caption_features"]).float(), clip.encode_texts(row["captions"])
    if stored.shape != own.shape or torch.cosine_similarity(stored, own).min() < 0.99:
        raise ValueError(
            f"the CLIP {clip.vision_config.clip} is not the one that {path} was made with: its features of "
            f"{row['captions'][0]!r} are others. Give that one by --clip and --pretrained"
        )


COMMANDS = {"generate": (GenerateArguments, generate), "merge": (MergeArguments, merge)}


def main(argv: list[str]) -> None:
    run_command("caption_frames.py", COMMANDS, argv)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
