"""A model folder from a stranger is refused or inert: none of its code runs, and it asks for no more than the limits allow."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import make_clip, make_config, make_processor
from transformers import pipeline

from sail_hf import SailConfig, SailForDenseVideoCaptioning, SailProcessor
from sail_hf.chunking import chunk_bounds
from sail_hf.cli import main
from sail_hf.clip_sail import load_clip
from sail_hf.trust import LIMITS, check_limit
from sail_hf.video_processing_sail import SailVideoProcessor
from sail_hf.video_reading import VideoError
from sail_hf.visualization import format_html

# Whatever a transformers class is looked for under, importing this module leaves a file behind.
EVIL = """
open({marker!r}, "w").write("this code ran")
from transformers import Pipeline, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin
class Config(PreTrainedConfig): pass
class Model: pass
class Tokenizer(PreTrainedTokenizerFast): pass
class Processor(ProcessorMixin): pass
class Pipe(Pipeline): pass
def generate(*_, **__): pass
"""
AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
    "AutoModelForMultimodalLM": "evil.Model",
    "AutoProcessor": "evil.Processor",
    "AutoVideoProcessor": "evil.Processor",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}
VIDEO = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A saved model with both towers of its CLIP."""
    folder = tmp_path_factory.mktemp("sound")
    clip, processor = make_clip(folder / "clip"), make_processor()
    clip.vision_config.include_text_tower = True
    model = SailForDenseVideoCaptioning(make_config(processor, vision_config=clip.vision_config))
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy of it with `evil.py`, which leaves `marker` beside the folder when it runs."""
    shutil.copytree(sound, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    return tmp_path / "model"


def changed(folder: Path, file: str, *path: str, **entries) -> None:
    """Put entries into a JSON file of the folder, at a path of keys."""
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    place = content
    for key in path:
        place = place[key]
    place.update(entries)
    (folder / file).write_text(json.dumps(content))


def evil_pickle(folder: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return (open, (str(folder.parent / "marker"), "w"))

    return pickle.dumps({"a": Evil()})


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(evil_pickle(folder))


def weights_elsewhere(folder: Path) -> None:
    keys = safe_open(folder / "model.safetensors", "pt").keys()
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    changed(folder, "adapter_config.json", base_model_name_or_path=str(folder), peft_type="LORA", target_modules=["x"])
    (folder / "adapter_model.bin").write_bytes(evil_pickle(folder))


def own_code(folder: Path) -> None:
    for file in folder.glob("*.py"):
        shutil.copy(folder / "evil.py", file) if file.name != "evil.py" else None


def generate_code(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")


CONFIG, VIDEO_PROCESSOR = "config.json", ("processor_config.json", "video_processor")
PIPELINE = {"dense-video-captioning": {"impl": "evil.Pipe", "pt": ["AutoModelForMultimodalLM"]}}
# What says how the folder is changed, and what an error must say, or `None` where the folder works and its code does nothing.
ATTACKS = {
    "code of the model": (lambda f: changed(f, CONFIG, auto_map=AUTO_MAP, custom_pipelines=PIPELINE), None),
    "the folder's copy of the package": (own_code, None),
    "code of the decoder": (lambda f: changed(f, CONFIG, "text_config", auto_map=AUTO_MAP), None),
    "code of the CLIP": (lambda f: changed(f, CONFIG, "vision_config", auto_map=AUTO_MAP), None),
    "another model": (lambda f: changed(f, CONFIG, model_type="evil", auto_map=AUTO_MAP), "custom code|evil"),
    "another decoder": (
        lambda f: changed(f, CONFIG, "text_config", model_type="evil", auto_map=AUTO_MAP),
        "'text_config' must be of a causal language model of transformers, found 'evil'",
    ),
    "a wrapper of timm": (
        lambda f: changed(f, CONFIG, text_config={"model_type": "timm_wrapper", "architecture": "hf-hub:evil/x"}),
        "causal language model",
    ),
    "code of the processor": (
        lambda f: changed(f, "processor_config.json", auto_map=AUTO_MAP, processor_class="Processor"),
        "custom code",
    ),
    "code of the video processor": (
        lambda f: changed(f, *VIDEO_PROCESSOR, auto_map=AUTO_MAP, video_processor_type="Processor"),
        "custom code",
    ),
    "code of the tokenizer": (
        lambda f: changed(
            f, "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Evil", trust_remote_code=True
        ),
        "custom code",
    ),
    "files of the tokenizer": (
        lambda f: changed(f, "tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="/etc/passwd"),
        None,
    ),
    "code of generation": (generate_code, None),
    "a repository for generation": (
        lambda f: changed(f, "generation_config.json", penalty_alpha=0.6, top_k=4, num_beams=1),
        "trust_remote_code",
    ),
    "a kernel": (lambda f: changed(f, CONFIG, attn_implementation="evil/kernel"), "no file may choose"),
    "the decoder's kernel": (
        lambda f: changed(f, CONFIG, "text_config", attn_implementation="evil/kernel"),
        "no file may choose",
    ),
    "experts' kernel": (lambda f: changed(f, CONFIG, experts_implementation="a/b:c"), "no file may choose"),
    "fused layers": (lambda f: changed(f, CONFIG, fusion_config={"evil": True}), "no file may choose"),
    "quantisation": (
        lambda f: changed(f, CONFIG, quantization_config={"quant_method": "torchao", "quant_type": "os.system"}),
        "must be of bitsandbytes",
    ),
    "quantisation of the decoder": (
        lambda f: changed(f, CONFIG, "text_config", quantization_config={"quant_method": "gptq", "bits": 4}),
        "must be of bitsandbytes",
    ),
    "a function for a dtype": (lambda f: changed(f, CONFIG, dtype="load"), "must name a dtype"),
    "weights by name": (lambda f: changed(f, CONFIG, transformers_weights="../x.safetensors"), "no file may choose"),
    "weights elsewhere": (weights_elsewhere, "names weights outside of its folder"),
    "pickled weights": (pickled_weights, "damaged, or more than tensors"),
    "a pickled adapter": (adapter, "evil|adapter|tensors|weights_only|not supported"),
    "a word for a part": (lambda f: changed(f, CONFIG, text_config="evil"), "cannot be used"),
    # Sizes.
    "a wide model": (lambda f: changed(f, CONFIG, encoder_ffn_dim=10**9), "parameters, above the limit"),
    "a wide decoder": (lambda f: changed(f, CONFIG, "text_config", n_embd=10**6), "parameters, above the limit"),
    "positions": (lambda f: changed(f, CONFIG, "text_config", n_positions=10**10), "parameters, above the limit"),
    "a wide CLIP": (
        lambda f: changed(f, CONFIG, "vision_config", "model_cfg", "vision_cfg", width=10**9),
        "parameters, above the limit|cannot be built",
    ),
    "a CLIP of wide features": (
        lambda f: changed(f, CONFIG, "vision_config", "model_cfg", "vision_cfg", width=2**18),
        "parameters, above the limit",
    ),
    "layers": (lambda f: changed(f, CONFIG, encoder_layers=10**9), "layers, above the limit of 1,000"),
    "layers of the decoder": (
        lambda f: changed(f, CONFIG, "text_config", n_layer=10**9),
        "layers, above the limit of 1,000",
    ),
    "layers of the CLIP": (
        lambda f: changed(f, CONFIG, "vision_config", "model_cfg", "text_cfg", layers=10**9),
        "layers, above the limit of 1,000",
    ),
    "frames": (lambda f: changed(f, *VIDEO_PROCESSOR, num_frames=10**9), "frames 1,000,000,000 is above the limit"),
    "a wide crop": (
        lambda f: changed(f, *VIDEO_PROCESSOR, crop_size={"height": 10**6, "width": 10**6}),
        "pixels 1,000,000,000,000 is above the limit",
    ),
    "large frames": (
        lambda f: changed(f, *VIDEO_PROCESSOR, size={"shortest_edge": 10**6}),
        "pixels 1,000,000,000,000 is above the limit",
    ),
    "beams": (lambda f: changed(f, "generation_config.json", num_beams=10**9), "beams, above the limit of 64"),
    "words": (
        lambda f: changed(f, "generation_config.json", full_max_new_tokens=10**9),
        "new tokens, above the limit of 1,024",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_folder_runs_no_code(folder, name, monkeypatch):
    attack, says = ATTACKS[name]
    attack(folder)

    def use():
        pipe = pipeline("dense-video-captioning", model=str(folder))
        assert pipe(VIDEO, fps=4)
        pipe(VIDEO, fps=4, captions=["A man lifts a bar.", "He puts it down."])

    if says is None:
        use()
    else:
        with pytest.raises((ValueError, OSError), match=says):
            use()
    assert not (folder.parent / "marker").exists()


@pytest.mark.parametrize(
    "name", ["code of the tokenizer", "another model", "a kernel", "the folder's copy of the package"]
)
def test_the_command_runs_no_code(folder, name, tmp_path, capsys):
    from numbered_video import render

    attack, says = ATTACKS[name]
    attack(folder)
    status = main(["caption", str(render(tmp_path / "a.mp4")), "--model", str(folder)])
    assert status == (0 if says is None else 1)
    assert not (tmp_path / "marker").exists()


def test_the_folders_code_runs_where_it_is_trusted(folder):
    """So that the attack itself is known to work."""
    attack, _ = ATTACKS["code of the tokenizer"]
    attack(folder)
    SailProcessor.from_pretrained(folder, trust_remote_code=True)
    assert (folder.parent / "marker").exists()


KEYS = """auto_map custom_pipelines attn_implementation experts_implementation quantization_config quant_method text_config
    vision_config model_cfg model_type _name_or_path transformers_weights trust_remote_code num_frames encoder_layers dtype
    architectures tokenizer_class torch_dtype num_queries feature_size""".split()


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_generated_configuration_runs_code(sound, evil_folder, data):
    """500 configurations: each is a configuration of ours or a ValueError, whatever stands where."""
    values = st.sampled_from(
        [
            str(evil_folder),
            "evil",
            "gpt2",
            "sail",
            True,
            -1,
            0,
            8,
            10**9,
            0.5,
            None,
            "org/name",
            "os.system",
            "float16",
        ]
    )
    leaves = values | st.just(AUTO_MAP) | st.lists(values, max_size=2)
    tree = st.recursive(leaves, lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=8)
    content = copy.deepcopy(json.loads((sound / CONFIG).read_text()))
    for part in (content, content["text_config"], content["vision_config"]):
        part.update(data.draw(st.dictionaries(st.sampled_from(KEYS), tree, max_size=2)))
    try:
        config = SailConfig.from_dict(content)
    except ValueError:
        pass
    else:
        assert type(config) is SailConfig and type(config).__module__ == "sail_hf.configuration_sail"
        assert "/" not in str(config._attn_implementation) and not hasattr(config, "auto_map")
    assert not (evil_folder / "marker").exists()


@pytest.fixture(scope="module")
def evil_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    (folder / "evil.py").write_text(EVIL.format(marker=str(folder / "marker")))
    (folder / CONFIG).write_text(json.dumps({"model_type": "evil", "auto_map": AUTO_MAP}))
    return folder


# --- Limits -------------------------------------------------------------------------------------------------------


def test_a_clip_folder_of_extreme_size_is_refused(tmp_path):
    make_clip(tmp_path)
    for part, key, value, says in (
        ("vision_cfg", "width", 10**9, "cannot be built"),
        ("vision_cfg", "width", 2**18, "parameters, above the limit"),
        ("text_cfg", "vocab_size", 10**12, "parameters, above the limit"),
        ("vision_cfg", "layers", 10**9, "layers, above the limit"),
        ("vision_cfg", "patch_size", 0, "cannot be built"),
    ):
        path = tmp_path / "open_clip_config.json"
        sound = path.read_text()
        changed(tmp_path, path.name, "model_cfg", part, **{key: value})
        with pytest.raises(ValueError, match=says):
            load_clip(str(tmp_path))
        path.write_text(sound)


def test_limits_are_adjustable_and_say_how(monkeypatch):
    with pytest.raises(ValueError, match="100,001 chunks, above the limit of 100,000.*set SAIL_MAX_CHUNKS"):
        check_limit("chunks", 100_001, "It has")
    monkeypatch.setenv("SAIL_MAX_CHUNKS", "200000")
    check_limit("chunks", 100_001, "It has")
    monkeypatch.setenv("SAIL_MAX_CHUNKS", "many")
    with pytest.raises(ValueError, match="a number in the environment variable SAIL_MAX_CHUNKS, found 'many'"):
        check_limit("chunks", 1, "It has")


@pytest.mark.parametrize(("duration", "length"), [(1e9, 1), (60, 1e-9), (60, 1e-300), (60, 5e-324), (1e300, 1e-300)])
def test_chunks_are_limited(duration, length):
    with pytest.raises(ValueError, match="divides a video of .* s into .* chunks, above the limit of 100,000"):
        chunk_bounds(duration, length, None)


def test_frames_are_not_resized_past_the_limit():
    for size in ({"shortest_edge": 10**6}, {"height": 10**6, "width": 10**6}, {"longest_edge": 10**6}):
        with pytest.raises((VideoError, ValueError), match="is above the limit|longest_edge"):
            SailVideoProcessor(size=size).process_frames([VIDEO[0]])


@pytest.mark.parametrize("source", ["javascript:alert(1)", " JaVa\tscript:alert(1)", "data:text/html,x", "vbscript:x"])
def test_a_page_shows_files_and_addresses_alone(source):
    with pytest.raises(ValueError, match="Expected an http"):
        format_html([], source)


def test_documented_limits_are_those_that_hold():
    from sail_hf.video_limits import VideoLimits

    text = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    for name, value in {**LIMITS, **VideoLimits.__dataclass_fields__}.items():
        if name != "allow_private_addresses":
            number = value if name in LIMITS else value.default
            assert f"| `SAIL_MAX_{name.upper()}` | {number:,.0f} |" in text
    assert "SAIL_ALLOW_PRIVATE_ADDRESSES" in text


def test_a_folder_half_written_by_a_killed_run_is_saved_into(folder, tmp_path):
    """Configuration and processor are saved one after the other, into the same folder."""
    (folder / "processor_config.json").write_text("")
    SailForDenseVideoCaptioning.from_pretrained(folder).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    SailProcessor.from_pretrained(folder)
