"""Kills recipes at random moments, again and again: `python tests/soak/soak_kills.py --kills 20`.

`augment_captions.py` is killed as often by tests/test_augment_kills.py. A recipe runs in a process of its own, is killed (SIGKILL) at a random moment and started anew, until it was killed often
enough; then it may end. What it leaves must be, bit for bit, what a run that nobody stopped leaves. Prints a line for each
kill, and a table.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import yaml

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
VIDEOS = 12
RECIPES = ("extract_features", "train", "train_with_time_warp", "align_dataset")
sys.path[:0] = [str(TESTS), str(ROOT / "training")]


@dataclass
class Recipe:
    """A module with a `main` and its arguments, to which the folder that it writes is added, and files that count of it."""

    module: str
    arguments: list[str]
    files: list[str]

    def digest(self, output: Path) -> dict[str, str]:
        found = sorted({file for pattern in self.files for file in output.glob(pattern)})
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def make_inputs(folder: Path) -> None:
    """Videos, captions, a CLIP, a decoder, and a data set with features in `folder`."""
    from extract_features import ExtractArguments, extract_features
    from numbered_video import render
    from tiny import make_clip, make_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    (folder / "videos").mkdir()
    captions, sentences = {}, ["A man lifts a bar.", "He puts it down.", "People clap."]
    for index in range(VIDEOS):
        render(folder / "videos" / f"v{index}.mp4", num_frames=30 + index)
        times = [[i, i + 0.5] for i in range(3)]
        captions[f"v{index}"] = {"duration": 4.5, "timestamps": times, "sentences": sentences}
        captions[f"v{index}"]["transitions"] = ["He waits.", "He bows."]
    (folder / "captions.json").write_text(json.dumps(captions))
    make_clip(folder / "clip")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "decoder")
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer) - 3, n_embd=16, n_layer=1, n_head=2, n_positions=128, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder / "decoder")
    data, of_videos = str(folder / "data"), {"videos": str(folder / "videos"), "clip": str(folder / "clip")}
    annotations = [str(folder / "captions.json")]
    extract_features(ExtractArguments(annotations=annotations, **of_videos, output=data, num_frames=8))
    fields = {
        **{name: str(folder / name) for name in ("clip", "decoder")},
        "dataset": data,
        "num_frames": 8,
        "num_queries": 4,
        "model_config": {
            "encoder_layers": 1,
            "encoder_ffn_dim": 32,
            "mask_decoder_ffn_dim": 32,
            "attention_head_dim": 8,
        },
        "captioning_epochs": 4,
        "localization_epochs": 4,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(fields))


def make_recipe(name: str, folder: Path) -> Recipe:
    """A recipe of `RECIPES` on the inputs of [`make_inputs`]."""
    path = {part: str(folder / part) for part in ("captions.json", "videos", "clip", "data")}
    of_videos = ["--videos", path["videos"], "--clip", path["clip"]]
    if name == "extract_features":
        of_videos += ["--annotations", path["captions.json"], "--num_frames", "8", "--output"]
        return Recipe(name, of_videos, ["*.parquet", "skipped.json"])
    if name == "align_dataset":
        return Recipe(name, [*of_videos, "--dataset", path["data"], "--output"], ["*.parquet", "skipped.json"])
    warp = ["--time_warp", "0.3"] if name == "train_with_time_warp" else []
    arguments = [str(folder / "train.yaml"), *warp, "--output_dir"]
    return Recipe("train", arguments, ["model.safetensors", "config.json", "tokenizer.json"])


def run(module: str, arguments: list[str]) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    importlib.import_module(module).main(arguments)


def processes() -> multiprocessing.context.BaseContext:
    """Starts processes that have the imports behind them, so that kills hit the work and not the start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "extract_features", "align_dataset"])
    # The server looks for them by its environment alone.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path])):
        forkserver.ensure_running()
    return context


def start(recipe: Recipe, output: Path) -> multiprocessing.Process:
    process = processes().Process(target=run, args=(recipe.module, [*recipe.arguments, str(output)]))
    process.start()
    return process


def finish(recipe: Recipe, output: Path) -> float:
    """Runs a recipe to its end. Returns the seconds."""
    begin = time.monotonic()
    process = start(recipe, output)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{recipe.module} ended with {process.exitcode}")
    return time.monotonic() - begin


def soak(name: str, folder: Path, kills: int, seed: int = 0) -> dict:
    """Kills a recipe `kills` times; what came of it.

    A run that ends before its kill is compared too, and the next one starts in a new folder.

    Returns:
        number of `kills`, of `runs` that ended, whether all of them were `equal` to one that was let be, and the `seconds`
        of that one.
    """
    recipe = make_recipe(name, folder)

    def new_output() -> Path:
        return Path(tempfile.mkdtemp(dir=folder)) / "output"

    finish(recipe, new_output())  # starts the server of processes
    whole = new_output()
    seconds = finish(recipe, whole)
    expected = recipe.digest(whole)
    assert expected, f"{whole} holds nothing to compare"
    moments, done, equal, output = random.Random(f"{seed} {name}"), 0, [], new_output()
    while done < kills or output is not None:
        output = output or new_output()
        process = start(recipe, output)
        delay = moments.uniform(0.05 * seconds, 1.1 * seconds)
        process.join(delay if done < kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            done += 1
            print(f"{name}: kill {done} after {delay:.2f} s of {seconds:.2f}", flush=True)
            continue
        if process.exitcode != 0:
            raise RuntimeError(f"{name} ended with {process.exitcode} after {done} kills")
        equal.append(recipe.digest(output) == expected)
        output = None
    return {"kills": done, "runs": len(equal), "equal": all(equal), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each recipe (default: 20)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        results = {name: soak(name, Path(folder), args.kills, args.seed) for name in args.recipes}
    print(f"\n{'recipe':<22}{'kills':>6}{'runs':>6}{'equal':>7}{'s':>7}")
    for name, result in results.items():
        numbers = f"{result['kills']:>6}{result['runs']:>6}{str(result['equal']):>7}{result['seconds']:>7.1f}"
        print(f"{name:<22}{numbers}")
    return int(not all(result["equal"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
