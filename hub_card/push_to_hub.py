"""Pushes a trained model or a data set to the Hub, in one commit, and checks what arrived.

    python hub_card/push_to_hub.py model outputs/run ORG/NAME --scores scores.json --evaluated_on "YouCook2 val"
    python hub_card/push_to_hub.py dataset data/captions ORG/NAME --source "ActivityNet Captions, ..."

A model goes with its processor, generation config, the code that runs it (so that strangers need not install this
package) and a card; a data set with a card that makes it load in one line. `--dry_run FOLDER` writes everything there
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
from dataclasses import fields
from pathlib import Path, PureWindowsPath

from cards import TASK, Stated, dataset_card, find_splits, model_card, read_scores
from datasets import load_dataset
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id


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


def push_folder(folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    """Makes the repository, if need be, equal to a folder, in one commit. Returns the commit's id."""
    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
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


COMMANDS = {"model": (stage_model, check_model), "dataset": (stage_dataset, check_dataset)}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("model", "a folder that training saved"), ("dataset", "a folder of Parquet files")):
        command = commands.add_parser(name, help=f"push {text}")
        command.add_argument("folder", help=text)
        command.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hub, made if it is not there")
        command.add_argument("--dry_run", "--dry-run", metavar="FOLDER", help="write what would be pushed there")
        command.add_argument("--license", default="other", help="as the Hub spells it (default: other)")
        command.add_argument("--license_name", help="name of a licence that is 'other', for people")
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
        else:
            command.add_argument("--source", help="where the captions come from, and on what terms")
    return parser.parse_args(argv)


def refuse_paths(arguments: argparse.Namespace) -> None:
    """Raises ValueError where the card would show a path of this machine."""
    for option in ("evaluated_on", "trained_on", "dataset", "base_model", "source", "license_name"):
        found = getattr(arguments, option, None) or []
        for text in [found] if isinstance(found, str) else found:
            if PureWindowsPath(text).anchor or text.startswith((".", "~")) or Path(text).exists():
                raise ValueError(f"--{option} {text} is a path of this machine: expected a name on the Hub, or words")


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    validate_repo_id(arguments.repo_id)
    if "/" not in arguments.repo_id:
        raise ValueError(f"expected ORG/NAME, found {arguments.repo_id!r}")
    refuse_paths(arguments)
    if not Path(arguments.folder).is_dir():
        raise FileNotFoundError(f"there is no folder {arguments.folder}")
    if arguments.dry_run and Path(arguments.dry_run).exists():
        raise FileExistsError(f"{arguments.dry_run} exists: choose another --dry_run folder, or remove it")
    stage, check = COMMANDS[arguments.command]
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch, "staged")
        staged.mkdir()
        stage(arguments, staged)
        check(arguments, str(staged), None, str(Path(scratch, "cache")))
        if arguments.dry_run:
            shutil.move(staged, arguments.dry_run)
            print(f"{arguments.dry_run} holds what would be pushed; it loads and gives the same")
            return
        commit = push_folder(staged, arguments.repo_id, arguments.command, arguments.private)
        print(f"pushed {arguments.repo_id}, commit {commit}")
        check(arguments, arguments.repo_id, commit, str(Path(scratch, "hub_cache")))
        print("loaded it from the Hub: it gives the same")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, RuntimeError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
