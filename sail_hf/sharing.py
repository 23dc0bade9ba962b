"""Saved folders that load without this package, by `trust_remote_code=True`: they hold its code, and say what is where."""

import json
import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

TASK = "dense-video-captioning"
# What `config.json` says of the code in its folder. The installed package does not read it: its own code is at hand.
CODE_ENTRIES = ("auto_map", "custom_pipelines")


class SavedWithCode:
    """Makes `save_pretrained` of a configuration or processor write the code too; models save their configuration."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As in transformers, with everything that a process without this package needs to load the folder."""
        super().save_pretrained(save_directory, **kwargs)
        write_code(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)


def write_code(folder: str | os.PathLike) -> None:
    """Copy the code that runs a saved model into its folder, and name its classes in the JSON files that are there."""
    # Also what makes transformers fetch all of these files with any one of them: it follows relative imports.
    from .configuration_sail import SailConfig
    from .modeling_sail import SailForDenseVideoCaptioning, SailModel
    from .pipeline_sail import DenseVideoCaptioningPipeline
    from .processing_sail import SailProcessor
    from .video_processing_sail import SailVideoProcessor

    folder = Path(folder)
    for file in {__file__, *get_relative_import_files(__file__)}:
        shutil.copyfile(file, folder / Path(file).name)
    models = {"AutoModel": SailModel, "AutoModelForMultimodalLM": SailForDenseVideoCaptioning}
    processors = _auto_map({"AutoProcessor": SailProcessor, "AutoVideoProcessor": SailVideoProcessor})
    pipeline = {"impl": _reference(DenseVideoCaptioningPipeline), "pt": ["AutoModelForMultimodalLM"]}
    code = dict(zip(CODE_ENTRIES, (_auto_map({"AutoConfig": SailConfig, **models}), {TASK: pipeline}), strict=True))
    if (path := folder / "config.json").exists():
        path.write_text(
            json.dumps(json.loads(path.read_text(encoding="utf-8")) | code, indent=2) + "\n", encoding="utf-8"
        )
    if (path := folder / "processor_config.json").exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["auto_map"] = content["video_processor"]["auto_map"] = processors
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _auto_map(classes: dict[str, type]) -> dict[str, str]:
    return {auto_class: _reference(cls) for auto_class, cls in classes.items()}


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
