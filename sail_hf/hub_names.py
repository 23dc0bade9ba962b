"""Names of models, checked as fast as a person expects: without heavy imports, by one short request at most."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

_SECONDS = 2


def check_model_name(name: str) -> None:
    """Raise ValueError where `name` is no folder or Hub name of a SAIL model."""
    if Path(name).is_dir():
        path = Path(name) / "config.json"
        if not path.is_file():
            raise ValueError(f"{name} holds no model: it has no config.json.")
    else:
        path = hub_file(name, "config.json")
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name} holds no model: its config.json is damaged ({error}).") from error
    if model_type != "sail":
        raise ValueError(f"{name} is a model of type {model_type!r}, expected 'sail'.")


def check_clip_name(name: str) -> None:
    """Raise ValueError where `name` is no folder, model of open_clip or Hub name (`hf-hub:org/name`) of a CLIP."""
    if name.startswith("hf-hub:"):
        hub_file(name.removeprefix("hf-hub:"), "open_clip_config.json")
    elif not Path(name.removeprefix("local-dir:")).is_dir():
        # Importing open_clip for its list of names takes seconds.
        folder = Path(find_spec("open_clip").submodule_search_locations[0]) / "model_configs"
        if not (folder / f"{name.replace('/', '-')}.json").is_file():
            raise ValueError(f"{name} is no folder, no model of open_clip and not of the form hf-hub:org/name.")


def check_dataset_name(name: str) -> None:
    """Raise ValueError where `name` is no folder, and no data set that is stored here or that the Hub knows."""
    if Path(name).is_dir():
        return
    from datasets import config
    from huggingface_hub import HfApi, constants

    _check_form(name)
    if (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("the Hub is switched off (HF_HUB_OFFLINE)")
        HfApi().dataset_info(name, timeout=_SECONDS)
    except Exception as error:  # of the Hub or of the connection: there is no data set of that name
        raise ValueError(
            f"{name} is no folder, and no data set of that name could be loaded: {_line(error)}"
        ) from error


def _check_form(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"{name} is no folder, and no name of the form org/name.")


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def hub_file(name: str, file: str) -> Path:
    """A small file of a model on the Hub: the one stored here, or else fetched at once or not at all.

    Raises:
        ValueError: there is no such model, or the Hub does not answer within 2 seconds.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    _check_form(name)
    if isinstance(path := try_to_load_from_cache(name, file), str):
        return Path(path)
    try:
        # A download tries six times; a name that is wrong is so the first time.
        if not constants.HF_HUB_OFFLINE:
            get_hf_file_metadata(hf_hub_url(name, file), timeout=_SECONDS)
        return Path(hf_hub_download(name, file))
    except Exception as error:  # of the Hub, of the connection, of the disk: there is no model of that name
        raise ValueError(f"{name} is no folder, and no model of that name could be loaded: {_line(error)}") from error
