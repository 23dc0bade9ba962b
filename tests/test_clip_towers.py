"""A CLIP's configuration shapes its towers and nothing else: it chooses no code, no options of a loader, no files."""

import copy
import json
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import CLIP_CFG, make_clip, make_model, make_processor

from sail_hf import SailConfig, SailModel, SailVisionConfig
from sail_hf.clip_sail import load_clip
from sail_hf.clip_towers import build_towers, check_model_cfg, clip_tokenizer

TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast
open({marker!r}, "w").write("this code ran")
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def evil(tmp_path):
    """A folder whose tokenizer is code that leaves `marker` behind; the module `evil_module` does so too."""
    folder = tmp_path / "evil"
    folder.mkdir()
    code = TOKENIZER_CODE.format(marker=str(tmp_path / "marker"))
    (folder / "tokenization_evil.py").write_text(code)
    (folder / "configuration_evil.py").write_text(code)
    auto_map = {"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": auto_map}))
    auto_map = {"AutoConfig": "configuration_evil.EvilTokenizer"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    return folder


def changed(part: str, **keys) -> dict:
    cfg = copy.deepcopy(CLIP_CFG)
    (cfg if part == "model_cfg" else cfg[part]).update(keys)
    return cfg


def attacks(folder) -> dict[str, dict]:
    trusted = {"tokenizer_kwargs": {"trust_remote_code": True}}
    return {
        "a folder's tokenizer": changed("text_cfg", hf_tokenizer_name=str(folder), **trusted),
        "trust": changed("text_cfg", hf_tokenizer_name="gpt2", **trusted),
        "a folder alone": changed("text_cfg", hf_tokenizer_name=str(folder)),
        "a folder's model": changed("text_cfg", hf_model_name=str(folder)),
        "a file of merges": changed("text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
        "timm from the Hub": changed("vision_cfg", timm_model_name="hf-hub:org/name"),
        "timm from a folder": changed("vision_cfg", timm_model_name=f"local-dir:{folder}"),
        "a class": changed("vision_cfg", act_kwargs={"cls": "os.system"}),
        "what is unknown": changed("model_cfg", multimodal_cfg={"width": 8}),
        "code for a word": changed("text_cfg", pool_type={"eval": "1"}),
    }


ATTACKS = list(attacks("x"))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_models_configuration_runs_no_code(evil, name):
    cfg = attacks(evil)[name]
    vision = SailVisionConfig(model_cfg=cfg, include_text_tower=True)
    for use in (lambda: build_towers(vision), lambda: clip_tokenizer(cfg)):
        with pytest.raises(ValueError, match="of a CLIP must"):
            use()
    with pytest.raises(ValueError, match="of a CLIP must"):
        SailModel(SailConfig(vision_config=vision, feature_size=24))
    assert not (evil.parent / "marker").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_clip_folder_runs_no_code(evil, tmp_path, name):
    make_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_cfg": attacks(evil)[name]}))
    # Where the name of a tokenizer is given, open_clip takes the one in the folder.
    for file in evil.iterdir():
        (tmp_path / "clip" / file.name).write_text(file.read_text())
    for source in (str(tmp_path / "clip"), f"local-dir:{tmp_path / 'clip'}"):
        with pytest.raises(ValueError, match="of a CLIP must"):
            load_clip(source)
    assert not (tmp_path / "marker").exists()


def test_the_tokenizer_in_a_clip_folder_is_loaded_without_its_code(evil, tmp_path):
    make_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "open_clip_config.json"
    cfg = changed("text_cfg", hf_tokenizer_name="org/name")
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_cfg": cfg}))
    for file in evil.iterdir():
        (tmp_path / "clip" / file.name).write_text(file.read_text())
    with pytest.raises(ValueError, match="could not be loaded"):
        load_clip(str(tmp_path / "clip"))
    assert not (tmp_path / "marker").exists() and "tokenization_evil" not in str(sorted(sys.modules))


def test_weights_are_needed_and_are_no_pickles(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    make_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        load_clip(str(tmp_path))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match="more than tensors"):
        load_clip(str(tmp_path))
    assert not (tmp_path / "marker").exists()


KEYS = "embed_dim vision_cfg text_cfg hf_tokenizer_name hf_model_name tokenizer_kwargs trust_remote_code".split()
KEYS += "timm_model_name act_kwargs norm_kwargs clean bpe_path auto_map cache_dir layers width image_size".split()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_generated_configuration_runs_code(evil, data):
    """Each is refused by a ValueError, or holds only what is listed: then no value of it is a path."""
    values = st.sampled_from(
        [str(evil), "gpt2", True, 1, None, "hf-hub:a/b", "os.system", 16, {"trust_remote_code": True}]
    )
    keys = st.sampled_from(KEYS)
    tree = st.recursive(values, lambda inner: st.dictionaries(keys, inner, max_size=4), max_leaves=8)
    cfg = copy.deepcopy(CLIP_CFG)
    for part in (cfg, cfg["text_cfg"], cfg["vision_cfg"]):
        part.update(data.draw(st.dictionaries(keys, tree, max_size=2)))
    try:
        check_model_cfg(cfg)
        clip_tokenizer(cfg)
    except (ValueError, OSError):
        pass
    else:
        assert "trust_remote_code" not in json.dumps(cfg) and not cfg["text_cfg"].get("hf_model_name") == str(evil)
    assert not (evil.parent / "marker").exists()


def test_what_open_clip_ships_is_allowed():
    """But for the models that caption by themselves, whose towers return something else."""
    import open_clip

    for name in open_clip.list_models():
        cfg = open_clip.get_model_config(name)
        if "multimodal_cfg" in cfg:
            continue
        check_model_cfg(cfg)


@pytest.fixture
def laion(monkeypatch):
    """open_clip, but that weights of ViT-B-32 are random and small towers: a list of what it was asked for."""
    import open_clip

    asked = []
    tiny = copy.deepcopy(CLIP_CFG)

    def create_model(name, pretrained=None, force_quick_gelu=False, **options):
        asked.append((name, pretrained, force_quick_gelu))
        model = open_clip.CustomTextCLIP(**tiny)
        model.visual.preprocess_cfg = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
        torch.manual_seed(len(pretrained))
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.1)
        return model

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(tiny))
    return asked


def test_weights_of_a_tag_are_remembered(laion, tmp_path):
    """What a SAIL was made with is what it loads again for its text tower."""
    clip = load_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert laion == [("ViT-B-32", "laion2b_s34b_b79k", False)]
    assert (clip.vision_config.clip, clip.vision_config.pretrained) == ("ViT-B-32", "laion2b_s34b_b79k")
    processor = make_processor()
    model = make_model(processor, vision_config=clip.vision_config)
    model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    model.save_pretrained(tmp_path / "model")
    loaded = SailModel.from_pretrained(tmp_path / "model")
    assert loaded.config.vision_config.pretrained == "laion2b_s34b_b79k"
    texts = ["A man runs.", "A dog sleeps."]
    assert torch.allclose(loaded.get_clip().encode_texts(texts), clip.encode_texts(texts))
    assert laion[1:] == [("ViT-B-32", "laion2b_s34b_b79k", False)]
    # OpenAI's weights of the same name are other ones, and were trained with another activation.
    loaded = SailModel.from_pretrained(tmp_path / "model")
    loaded.config.vision_config.pretrained = "openai"
    with pytest.raises(ValueError, match="has other weights"):
        loaded.get_clip()
    assert laion[2:] == [("ViT-B-32", "openai", True)]


def test_tags_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="weights 'laion2b_s34b_b79'; the weights of 'ViT-B-32' are: openai, laion"):
        load_clip("ViT-B-32", "laion2b_s34b_b79")
    make_clip(tmp_path)
    for name in (str(tmp_path), f"local-dir:{tmp_path}", "hf-hub:org/name"):
        with pytest.raises(ValueError, match="brings its own weights: leave out 'laion2b_s34b_b79k'"):
            load_clip(name, "laion2b_s34b_b79k")
    assert load_clip(str(tmp_path)).vision_config.pretrained == SailVisionConfig().pretrained == "openai"
