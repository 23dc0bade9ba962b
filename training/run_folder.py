"""The folder of a run: what its checkpoints were trained as, which of them are whole, and where training goes on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from sail_hf.data import write_json

RUN_FILE = "sail_run.json"
MAX_LISTED = 6


class OtherRunError(ValueError):
    """The checkpoint to go on from belongs to another run."""


class Seal(TrainerCallback):
    """Writes into every checkpoint, once it is complete, the run's fingerprint and the checksums of its files."""

    def __init__(self, fingerprint: dict[str, Any]):
        self.fingerprint = fingerprint

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # the other processes' random states are files of it, too
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            write_json(folder / RUN_FILE, {"run": self.fingerprint, "sha256": checksums(folder)})


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, less the one that they are written to."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != RUN_FILE:
            with file.open("rb") as stream:
                found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; `None` if it is as it was written."""
    try:
        sealed = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, KeyError, TypeError):
        return f"{RUN_FILE} cannot be read"
    found = checksums(checkpoint)
    if missing := sealed.keys() - found.keys():
        return f"{min(missing)} is missing"
    changed = [name for name, digest in sealed.items() if found[name] != digest]
    return f"{changed[0]} is not what was written" if changed else None


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """The last checkpoint that is as it was written; says which later ones are not, and why."""
    for path in reversed(sort_checkpoints(str(folder))):
        if (reason := damage(Path(path))) is None:
            return Path(path)
        print(f"{path} is passed over: {reason}.")
    return None


def checkpoint_of(folder: str | Path, fingerprint: dict[str, Any]) -> Path | None:
    """The checkpoint that a run goes on from; `None`: from the beginning.

    Raises:
        OtherRunError: it belongs to a run with another model, data or schedule; the message names the differences.
    """
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return None
    theirs = flat(json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))["run"])
    mine = flat(json.loads(json.dumps(fingerprint)))
    # A field that one of them lacks comes from another version of a library.
    different = [name for name in theirs if name in mine and theirs[name] != mine[name]]
    if different:
        listed = "; ".join(f"{name} {theirs[name]!r} there, {mine[name]!r} now" for name in different[:MAX_LISTED])
        more = f"; and {len(different) - MAX_LISTED} more" if len(different) > MAX_LISTED else ""
        raise OtherRunError(
            f"{checkpoint} belongs to another run: {listed}{more}. To go on with it, ask for the same; to begin anew, "
            "--resume false (which moves it out of the way) or another --output_dir."
        )
    return checkpoint


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        found.update(flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return found


def set_aside(folder: str | Path) -> Path | None:
    """Move the checkpoints of an earlier run into a folder of their own and return it; `None` where there are none."""
    checkpoints = [Path(path) for path in sort_checkpoints(str(folder))]
    if not checkpoints:
        return None
    place = next(p for n in range(1, 10**6) if not (p := Path(folder, f"replaced-{n}")).exists())
    place.mkdir()
    for checkpoint in checkpoints:
        checkpoint.rename(place / checkpoint.name)
    return place
