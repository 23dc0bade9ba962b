"""What recipes over many videos share: finished videos in OUTPUT.work, shares of the work, and one run at a time.

A run with `--shard 2/4` does the second of four shares and leaves it in the folder; the same command without `--shard`
does what is not there yet and puts all of it together. So a share that was lost costs time and nothing else. Machines
that have no disk in common copy their folders into one: a file's name says all that its content depends on.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sail_hf.data import written_whole

WHOLE = "1/1"
# Processes wait for the slowest of them, whatever that takes.
_PATIENCE = timedelta(days=365)
_CHECKSUM_BYTES = 32


class WorkFolder:
    """The finished videos of runs that make `output`, a file each in `<output>.work`."""

    def __init__(self, output: str | Path):
        self.output = Path(output)
        self.path = self.output.with_name(f"{self.output.name}.work")

    def read(self, key: str) -> bytes | None:
        """What was finished under `key`; `None` where there is nothing, or a file that is damaged."""
        try:
            content = self._file(key).read_bytes()
        except FileNotFoundError:
            return None
        checksum, payload = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        return payload if hashlib.sha256(payload).digest() == checksum else None

    def write(self, key: str, payload: bytes) -> None:
        """Keep `payload` under `key`, whole or not at all."""
        with written_whole(self._file(key)) as temporary:
            temporary.write_bytes(hashlib.sha256(payload).digest() + payload)

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.done"

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self, shard: str) -> Iterator[None]:
        """Keep out every other run into this output, except those of the other shards of as many.

        Raises:
            ValueError: such a run is under way; the sentence says on which machine and in which process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        count = shard.partition("/")[2]
        mine = self.path / f"{shard.replace('/', '-of-')}.lock"
        with self._lock(mine):
            mine.with_suffix(".holder").write_text(f"process {os.getpid()} on {socket.gethostname()}")
            for other in self.path.glob("*.lock"):
                if other.stem.partition("-of-")[2] != count:
                    with self._lock(other):
                        pass
            yield

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = path.with_suffix(".holder")
            who = holder.read_text() if holder.exists() else "another process"
            raise ValueError(
                f"{self.output} is being made by {who} (shard {path.stem.replace('-of-', '/')}): wait for it, or choose "
                "another --output"
            ) from None
        try:
            yield
        finally:
            lock.release()


def digest(*inputs: Any) -> str:
    """40 hexadecimal digits that stand for all of `inputs`, which JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:40]


def weights_digest(model: Any) -> str:
    """A digest of all weights of a `torch.nn.Module`, so that results of two models of one name are never mixed."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """A digest of a video's size and of its first and last 64 kB, where containers keep their index.

    Unlike the time of its last change it is the same for copies on other machines.
    """
    size, ends = path.stat().st_size, 2**16
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(ends))
        file.seek(max(0, size - ends))
        found.update(file.read(ends))
    return f"{size} {found.hexdigest()}"


def take_shard(items: list, shard: str) -> list:
    """The items of one share: `"2/4"` is every fourth, from the second on; ValueError for what is no share."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"expected --shard 1/n to n/n, found {shard!r}")
    return items[int(match[1]) - 1 :: int(match[2])]


def run_in_shares(run: Callable[[Any], None], args: Any) -> None:
    """`run(args)`. Under `accelerate launch`, each process runs its share of it, and then the first one the whole.

    Args:
        args: a dataclass with a field `shard`.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        from torch import distributed

        distributed.init_process_group("gloo", timeout=_PATIENCE)
        index, count = map(int, args.shard.split("/"))
        run(replace(args, shard=f"{(index - 1) * world + rank + 1}/{count * world}"))
        distributed.barrier()
        distributed.destroy_process_group()
        if rank or count > 1:
            return
    run(args)


def own_device() -> str:
    """The GPU of this process, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
