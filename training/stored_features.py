"""Features of videos that others have made, by id, in the forms in which they are shared.

* A folder, sub-folders included, with a file for each video: `ID.npy`, `v_ID.npy`, `ID_clip.npy`, `ID.mp4.npy`, or the
  same as `.npz`, `.pth`, `.safetensors` or `.h5` with one array inside; `ID_resnet.npy` and `ID_bn.npy` are joined.
* One file for all videos, arrays by id: a dictionary in a `.pth`, `.npz`, `.safetensors`, or HDF5 (`.h5`, `.hdf5`).

Ids match with and without `v_`, `_clip` and a video's extension, or else by their last 11 characters, which are
YouTube's, where these belong to one video only. No file can run code, or have another file opened.
"""

import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from sail_hf.data import VIDEO_EXTENSIONS

FORMS = (".npy", ".npz", ".pth", ".pt", ".safetensors", ".h5", ".hdf5")
# Of TSN features, in the order in which they are joined.
_PAIR = ("_resnet", "_bn")
_ID_LENGTH = 11

Reader = Callable[[], Any]


class StoredFeatures:
    """Features in a folder or file.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: another form, a video that is there twice, or a file that cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"there is no folder or file of features {path}")
        named = dict(_of_folder(self.path) if self.path.is_dir() else _of_file(self.path))
        if not named:
            raise ValueError(f"{path} holds no features: expected {', '.join(FORMS)}")
        self._parts: dict[str, list[Reader]] = {}
        names: dict[str, str] = {}
        self._by_end: dict[str, set[str]] = defaultdict(set)
        for name, parts in _joined(named):
            key = bare_id(Path(name).name)
            if key in self._parts:
                raise ValueError(
                    f"{path} holds features of {key} twice ({names[key]} and {name}): give a folder of one kind of features"
                )
            self._parts[key], names[key] = parts, name
            if end := _end(Path(name).name):
                self._by_end[end].add(key)

    def find(self, video_id: str) -> str | None:
        """The key of a video's features; `None` where there are none, or more than one."""
        if (key := bare_id(video_id)) in self._parts:
            return key
        keys = self._by_end.get(_end(video_id), ())
        return next(iter(keys)) if len(keys) == 1 else None

    def read(self, key: str) -> np.ndarray:
        """Features `(L, D)` float32 under a key that [`find`] gave.

        Raises:
            ValueError: they are no such array, not finite, all zeros, or their file is damaged.
        """
        try:
            parts = [_array(read()) for read in self._parts[key]]
        except UnpicklingError:
            raise ValueError("its file holds more than tensors, or is damaged: it is not read") from None
        except ValueError:
            raise
        except Exception as error:  # whatever a library says of a damaged file
            raise ValueError(f"its features cannot be read: {type(error).__name__}: {_first_line(error)}") from error
        for array in parts:
            if array.ndim != 2 or not array.size:
                raise ValueError(f"expected features of shape (L, D), found {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError("its features are not all finite numbers (NaN or infinite)")
            if not array.any():
                raise ValueError("its features are all zeros, which stand for a video that was missing")
        if len({len(array) for array in parts}) > 1:
            found = " and ".join(str(len(array)) for array in parts)
            raise ValueError(f"expected as many rows in each of the two files that are joined, found {found}")
        return np.concatenate(parts, axis=1)


def bare_id(name: str) -> str:
    """A video's id without `v_`, `_clip` and a video's extension."""
    return _without_endings(name).removeprefix("v_")


def _without_endings(name: str) -> str:
    if Path(name).suffix.lower() in VIDEO_EXTENSIONS:
        name = name[: -len(Path(name).suffix)]
    return name.removesuffix("_clip")


def _end(name: str) -> str:
    name = _without_endings(name)
    return name[-_ID_LENGTH:] if len(name) >= _ID_LENGTH else ""


def _of_folder(folder: Path) -> Iterator[tuple[str, Reader]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in FORMS and file.is_file():
            yield file.relative_to(folder).with_suffix("").as_posix(), partial(_only_array, file)


def _of_file(path: Path) -> Iterator[tuple[str, Reader]]:
    try:
        arrays = open_arrays(path)
    except UnpicklingError:  # whose text advises to run what the file holds
        raise ValueError(f"{path} holds more than tensors, or is damaged: it is not read") from None
    except Exception as error:  # whatever a library says of a damaged file
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error
    return ((name or path.stem, read) for name, read in arrays.items())


def _joined(named: dict[str, Reader]) -> Iterator[tuple[str, list[Reader]]]:
    """Names with the parts of their features: two where both of a pair are there, else one."""
    first, second = _PAIR
    stems = {name.removesuffix(first) for name in named if name.endswith(first)}
    stems &= {name.removesuffix(second) for name in named if name.endswith(second)}
    for stem in stems:
        yield stem, [named[stem + first], named[stem + second]]
    paired = {stem + ending for stem in stems for ending in _PAIR}
    yield from ((name, [read]) for name, read in named.items() if name not in paired)


def open_arrays(path: Path) -> dict[str, Reader]:
    """Readers of the arrays in a file, by name; `""` for one that has no name."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": partial(np.load, path, mmap_mode="r", allow_pickle=False)}
    if suffix == ".npz":
        arrays = np.load(path, allow_pickle=False)
        return {name: partial(arrays.__getitem__, name) for name in arrays.files}
    if suffix == ".safetensors":
        from safetensors import safe_open

        file = safe_open(path, "pt")
        return {name: partial(file.get_tensor, name) for name in file.keys()}
    if suffix in (".pth", ".pt"):
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        entries = content if isinstance(content, dict) else {"": content}
        return {str(name): partial(lambda value: value, value) for name, value in entries.items()}
    if suffix in (".h5", ".hdf5"):
        try:
            import h5py
        except ImportError:
            raise ValueError("HDF5 files need h5py: pip install 'sail-hf[features]'") from None
        file = h5py.File(path, "r")
        return {name: partial(_from_hdf5, file, name) for name in file}
    raise ValueError(f"expected {', '.join(FORMS)}")


def _only_array(path: Path) -> Any:
    arrays = open_arrays(path)
    if len(arrays) != 1:
        raise ValueError(f"expected one array in {path.name}, found {len(arrays)}")
    return next(iter(arrays.values()))()


def _from_hdf5(group: Any, name: str) -> np.ndarray:
    """A data set of HDF5, or the only one in a group; what lies in other files is not opened."""
    import h5py

    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError("its features are a link to another file, which is not opened")
    item = group[name]
    if isinstance(item, h5py.Group):
        if len(item) != 1:
            raise ValueError(f"expected one array, found the group {list(item)[:5]}")
        return _from_hdf5(item, next(iter(item)))
    if item.external or item.is_virtual:
        raise ValueError("its features lie in another file, which is not opened")
    return item[()]


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().float().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise ValueError(f"expected features of shape (L, D), found {found}")
    return value.astype(np.float32)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
