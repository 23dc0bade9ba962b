"""Saved folders that load without this package, by `trust_remote_code=True`: they hold its code, and say what is where."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .trust import check_configuration

TASK = "dense-video-captioning"


class SavedWithCode:
    """Makes `save_pretrained` of a configuration or processor write the code too; models save their configuration."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As in transformers, with everything that a process without this package needs to load the folder."""
        super().save_pretrained(save_directory, **kwargs)
        write_code(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)


class LoadedByPackage:
    """Makes a configuration or video processor check its file, and the installed package pass over what that says of code.

    `pipeline` would ask for leave to run the folder's code, where this package's own is at hand.
    """

    @classmethod
    def from_dict(cls, content: dict[str, Any], **kwargs):
        """As in transformers; ValueError for a file that [`check_configuration`] refuses, or that is none."""
        check_configuration(content)
        if __package__ == "sail_hf":
            content = {name: value for name, value in content.items() if name not in ("auto_map", "custom_pipelines")}
        try:
            return super().from_dict(content, **kwargs)
        except Exception as error:  # of whatever kind a value of a wrong kind leads to
            raise ValueError(f"The file of a {cls.__name__} cannot be used: {error}") from error


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
    code = {"auto_map": _auto_map({"AutoConfig": SailConfig, **models}), "custom_pipelines": {TASK: pipeline}}
    for name, entries in (("config.json", code), ("processor_config.json", {"auto_map": processors})):
        if (path := folder / name).exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8")) | entries
            except ValueError:  # a killed run left half of it, and what is saved next replaces it
                continue
            if "video_processor" in content:
                content["video_processor"]["auto_map"] = processors
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _auto_map(classes: dict[str, type]) -> dict[str, str]:
    return {auto_class: _reference(cls) for auto_class, cls in classes.items()}


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
