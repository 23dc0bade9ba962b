"""Pushes a trained model, a data set, the app or the metric to the Hub, in one commit, and checks what arrived.

    python hub_card/push_to_hub.py model outputs/run ORG/NAME --scores scores.json --evaluated_on "YouCook2 val"
    python hub_card/push_to_hub.py dataset data/captions ORG/NAME --source "ActivityNet Captions, ..."
    python hub_card/push_to_hub.py space ORG/MODEL ORG/NAME
    python hub_card/push_to_hub.py metric ORG/dense_video_captioning

A model goes with its processor, generation config, the code that runs it (so that strangers need not install this
package) and a card; a data set with a card that makes it load in one line; the app and the metric are Spaces that hold
the package's code. `--dry_run FOLDER` writes everything there
and pushes nothing. What is in the repository and not in the push is deleted by the same commit: until that commit is
there, the earlier revision stays as it was, whatever happens to the push. The token is the one of `hf auth login`, or
of HF_TOKEN.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import fields
from pathlib import Path, PureWindowsPath

from cards import TASK, Stated, dataset_card, find_splits, model_card, read_scores
from datasets import load_dataset
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

FOLDER = Path(__file__).parent
# `evaluate.load("ORG/NAME")` looks for NAME.py.
METRIC = "dense_video_captioning"


def stage_model(arguments: argparse.Namespace, staged: Path) -> None:
    """Writes a saved model into a folder, ready for the Hub."""
    from sail_hf import SailForDenseVideoCaptioning, SailProcessor

    folder = Path(arguments.folder)
    scores = read_scores(arguments.scores) if arguments.scores else None
    model = SailForDenseVideoCaptioning.from_pretrained(folder)
    leave_out_paths(model.config)
    model.save_pretrained(staged)
    SailProcessor.from_pretrained(folder).save_pretrained(staged)
    stated = Stated(**{field.name: getattr(arguments, field.name) for field in fields(Stated)})
    card = model_card(folder, arguments.repo_id, model.config, model.num_parameters(), scores, stated)
    card.save(staged / "README.md")
    if arguments.scores:
        shutil.copyfile(arguments.scores, staged / "scores.json")


def leave_out_paths(config) -> None:
    """Keep the names of folders that a decoder and a CLIP were loaded from, not where those lie: this is published."""
    config.text_config._name_or_path = folder_name(config.text_config._name_or_path)
    if config.vision_config is not None and not config.vision_config.clip.startswith("hf-hub:"):
        config.vision_config.clip = folder_name(config.vision_config.clip.removeprefix("local-dir:"))


def folder_name(path: str) -> str:
    return PureWindowsPath(path).name  # which takes both kinds of slashes


def check_model(arguments: argparse.Namespace, source: str, revision: str | None, cache: str) -> None:
    """Loads the model from `source` in a new process, as a stranger would, and compares what both make of a video.

    Raises:
        RuntimeError: it does not load, or its outputs differ from those of the folder.
    """
    from load_as_stranger import sample_outputs
    from transformers import pipeline

    from sail_hf import SailForDenseVideoCaptioning, SailProcessor

    command = [sys.executable, str(Path(__file__).with_name("load_as_stranger.py")), source]
    command += [revision] if revision else []
    caches = {"HF_HUB_CACHE": cache, "HF_MODULES_CACHE": f"{cache}-modules"}
    loaded = subprocess.run(command, env={**os.environ, **caches}, capture_output=True, text=True)
    if loaded.returncode:
        raise RuntimeError(f"{source} does not load:\n{loaded.stderr[-2000:]}")
    theirs = json.loads(loaded.stdout.splitlines()[-1])
    model = SailForDenseVideoCaptioning.from_pretrained(arguments.folder)
    ours = sample_outputs(pipeline(TASK, model=model, processor=SailProcessor.from_pretrained(arguments.folder)))
    if not same_events(ours, theirs):
        raise RuntimeError(f"{source} gives {theirs} where {arguments.folder} gives {ours}")


def same_events(ours: list[dict], theirs: list[dict]) -> bool:
    """Whether the sentences are the same, and times and scores up to rounding."""
    return [event["text"] for event in ours] == [event["text"] for event in theirs] and all(
        math.isclose(mine[name], their[name], abs_tol=1e-3)
        for mine, their in zip(ours, theirs, strict=True)
        for name in ("start", "end", "score")
    )


def stage_dataset(arguments: argparse.Namespace, staged: Path) -> None:
    """Writes a data set's Parquet files and card into a folder."""
    folder = Path(arguments.folder)
    for files in find_splits(folder).values():
        for file in files:
            target = staged / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    card = dataset_card(staged, arguments.repo_id, arguments.license, arguments.license_name, arguments.source)
    card.save(staged / "README.md")


def check_dataset(arguments: argparse.Namespace, source: str, revision: str | None, cache: str) -> None:
    """Loads the data set from `source` and compares it with the folder, row by row.

    Raises:
        RuntimeError: a split, a column or a row differs.
    """
    for (config, split), files in find_splits(Path(arguments.folder)).items():
        loaded = load_dataset(source, config, split=split, revision=revision, cache_dir=cache)
        local = load_dataset("parquet", data_files=[str(file) for file in files], split="train", cache_dir=cache)
        same = loaded.features == local.features and loaded.num_rows == local.num_rows
        batches = (data.with_format("arrow").iter(1000) for data in (loaded, local))
        if not same or not all(theirs.equals(ours) for theirs, ours in zip(*batches, strict=True)):
            raise RuntimeError(f"{config}, {split} in {source} is not what {arguments.folder} holds")


def stage_space(arguments: argparse.Namespace, staged: Path) -> None:
    """Writes the app into a folder, with the package that it runs, for a model on the Hub."""
    shutil.copytree(FOLDER / "space", staged, dirs_exist_ok=True)
    package, left_out = FOLDER.parent / "sail_hf", shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, staged / "sail_hf", ignore=left_out)
    card = SpaceCard.load(staged / "README.md")
    card.data.models = [arguments.model]
    card.save(staged / "README.md")
    write_requirements(staged, project()["dependencies"])


def check_space(arguments: argparse.Namespace, source: str, revision: str | None, cache: str) -> None:
    """Imports the app of `source` in a new process, where it must find its own copy of the package.

    Raises:
        RuntimeError: it does not import.
    """
    code = "import app, sail_hf.cli_app, os; assert os.path.dirname(sail_hf.__file__) == os.path.abspath('sail_hf')"
    folder = space_folder(source, revision, cache)
    # -B: a folder that is only staged would otherwise be pushed with what Python compiled there.
    loaded = subprocess.run([sys.executable, "-B", "-c", code], cwd=folder, capture_output=True, text=True)
    if loaded.returncode:
        raise RuntimeError(f"{source} does not run:\n{loaded.stderr[-2000:]}")


def stage_metric(arguments: argparse.Namespace, staged: Path) -> None:
    """Writes the metric into a folder, as `evaluate` loads it, with its card and its demo.

    Raises:
        ValueError: a repository of another name.
    """
    if not arguments.repo_id.endswith(f"/{METRIC}"):
        raise ValueError(f"expected ORG/{METRIC}, which is the name of the metric's file, found {arguments.repo_id}")
    from transformers.dynamic_module_utils import get_relative_import_files

    shutil.copytree(FOLDER / "metric", staged, dirs_exist_ok=True)
    metric = FOLDER.parent / "sail_hf" / "metric.py"
    shutil.copyfile(metric, staged / f"{METRIC}.py")
    for file in get_relative_import_files(metric):
        shutil.copyfile(file, staged / Path(file).name)
    readme = staged / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace(f"ORG/{METRIC}", arguments.repo_id), encoding="utf-8")
    own = [line for line in project()["dependencies"] if line.startswith(("datasets", "evaluate", "numpy", "tqdm"))]
    write_requirements(staged, [*own, *project()["optional-dependencies"]["metrics"]])


def check_metric(arguments: argparse.Namespace, source: str, revision: str | None, cache: str) -> None:
    """Loads the metric of `source` by `evaluate`, and compares a score with the package's.

    Raises:
        RuntimeError: it differs.
    """
    import evaluate

    from sail_hf import DenseVideoCaptioningMetric

    given = {
        "predictions": [[{"timestamp": [0.0, 4.0], "sentence": "A man runs."}]],
        "references": [{"timestamps": [[0.0, 5.0], [5.0, 9.0]], "sentences": ["A man.", "He."], "duration": 10.0}],
        "metrics": ["localization", "controls"],
    }
    file = space_folder(source, revision, cache) / f"{METRIC}.py"
    ours, theirs = DenseVideoCaptioningMetric().compute(**given), evaluate.load(str(file)).compute(**given)
    if ours != theirs:
        raise RuntimeError(f"{source} gives {theirs} where this package gives {ours}")


def project() -> dict:
    return tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def write_requirements(staged: Path, requirements: list[str]) -> None:
    """What a Space installs; Gradio is what its card says."""
    (staged / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def space_folder(source: str, revision: str | None, cache: str) -> Path:
    """The files of a Space on the Hub, or of a folder."""
    is_folder = Path(source).is_dir()
    return Path(
        source if is_folder else snapshot_download(source, repo_type="space", revision=revision, cache_dir=cache)
    )


def push_folder(folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    """Makes the repository, if need be, equal to a folder, in one commit. Returns the commit's id."""
    api = HfApi()
    sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
    head = api.repo_info(repo_id, repo_type=repo_type).sha
    there = set(api.list_repo_files(repo_id, repo_type=repo_type, revision=head)) - {".gitattributes"}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(there - set(files))]
    # With a parent, the commit fails rather than mixes where somebody else pushed meanwhile.
    commit = api.create_commit(
        repo_id, operations, commit_message=f"Upload {repo_type}", repo_type=repo_type, parent_commit=head
    )
    return commit.oid


# For each command: a kind of repository, what is written into a folder, and how that is checked.
COMMANDS = {
    "model": ("model", stage_model, check_model),
    "dataset": ("dataset", stage_dataset, check_dataset),
    "space": ("space", stage_space, check_space),
    "metric": ("space", stage_metric, check_metric),
}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    about = {"model": "a folder that training saved", "dataset": "a folder of Parquet files"}
    for name, text in {**about, "space": "the app, as a Space", "metric": "the metric of `evaluate`"}.items():
        command = commands.add_parser(name, help=f"push {text}")
        if name in about:
            command.add_argument("folder", help=text)
            command.add_argument("--license", default="other", help="as the Hub spells it (default: other)")
            command.add_argument("--license_name", help="name of a licence that is 'other', for people")
        elif name == "space":
            command.add_argument("model", metavar="ORG/MODEL", help="model on the Hub that the app runs")
        command.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hub, made if it is not there")
        command.add_argument("--dry_run", "--dry-run", metavar="FOLDER", help="write what would be pushed there")
        command.add_argument("--private", action="store_true", help="if the repository is made")
        if name == "model":
            command.add_argument("--scores", help="scores.json of training/evaluate.py, for the card")
            command.add_argument("--evaluated_on", help="what the scores were measured on, for people")
            command.add_argument("--trained_on", help="what the model was trained on, for people")
            command.add_argument("--dataset", metavar="ORG/NAME", help="data set on the Hub that it was trained on")
            command.add_argument(
                "--base_model",
                metavar="NAME",
                nargs="+",
                default=[],
                help="decoder, CLIP, ... on the Hub it started from",
            )
        if name == "dataset":
            command.add_argument("--source", help="where the captions come from, and on what terms")
    return parser.parse_args(argv)


def refuse_paths(arguments: argparse.Namespace) -> None:
    """Raises ValueError where the card would show a path of this machine."""
    for option in ("evaluated_on", "trained_on", "dataset", "base_model", "source", "license_name", "model"):
        found = getattr(arguments, option, None) or []
        for text in [found] if isinstance(found, str) else found:
            if PureWindowsPath(text).anchor or text.startswith((".", "~")) or Path(text).exists():
                raise ValueError(f"--{option} {text} is a path of this machine: expected a name on the Hub, or words")


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    for name in filter(None, (arguments.repo_id, getattr(arguments, "model", None))):
        validate_repo_id(name)
        if "/" not in name:
            raise ValueError(f"expected ORG/NAME, found {name!r}")
    refuse_paths(arguments)
    if not Path(getattr(arguments, "folder", FOLDER)).is_dir():
        raise FileNotFoundError(f"there is no folder {arguments.folder}")
    if arguments.dry_run and Path(arguments.dry_run).exists():
        raise FileExistsError(f"{arguments.dry_run} exists: choose another --dry_run folder, or remove it")
    repo_type, stage, check = COMMANDS[arguments.command]
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch, "staged")
        staged.mkdir()
        stage(arguments, staged)
        check(arguments, str(staged), None, str(Path(scratch, "cache")))
        if arguments.dry_run:
            shutil.move(staged, arguments.dry_run)
            print(f"{arguments.dry_run} holds what would be pushed; it loads and gives the same")
            return
        commit = push_folder(staged, arguments.repo_id, repo_type, arguments.private)
        print(f"pushed {arguments.repo_id}, commit {commit}")
        check(arguments, arguments.repo_id, commit, str(Path(scratch, "hub_cache")))
        print("loaded it from the Hub: it gives the same")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
