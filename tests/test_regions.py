"""Patches of frames: CLIP's features of them, what CLIP saw of a frame, and boxes of where patches are hot."""

import open_clip
import pytest
import torch
from tiny import CLIP_CFG
from torch import tensor

from sail_hf.clip_towers import encode_with_patches
from sail_hf.configuration_sail import SailVisionConfig
from sail_hf.grounding_sail import frame_boxes, heat_boxes, seen_boxes
from sail_hf.video_processing_sail import SailVideoProcessor

VISION = {**CLIP_CFG["vision_cfg"], "patch_size": 8}
TIMM = {"image_size": 32, "timm_proj": "linear"}


def tower(**vision):
    torch.manual_seed(0)
    return open_clip.CustomTextCLIP(24, vision, CLIP_CFG["text_cfg"]).visual.eval()


def test_a_tower_that_pools_the_mean_of_its_patches_is_their_mean():
    pixels = torch.randn(2, 3, 32, 32)
    visual = tower(**VISION, pool_type="avg")
    features, patches = encode_with_patches(visual, pixels)
    assert patches.shape == (2, 16, 24)
    torch.testing.assert_close(features, visual(pixels))
    torch.testing.assert_close(patches.mean(1), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "vision", [VISION, {**TIMM, "timm_model_name": "test_vit", "timm_pool": ""}], ids=["open_clip", "timm"]
)
def test_patches_come_in_rows_from_the_top_left(vision):
    """What changes in one corner of the picture changes that corner's patch most, and its features are the tower's own."""
    if "timm_model_name" in vision:
        vision = {**vision, "image_size": 160}
    visual, side = tower(**vision), vision["image_size"]
    pixels = torch.randn(1, 3, side, side)
    changed = pixels.clone()
    changed[..., : side // 4, -side // 4 :] += 3.0  # the upper right
    (features, before), (_, after) = encode_with_patches(visual, pixels), encode_with_patches(visual, changed)
    torch.testing.assert_close(features, visual(pixels))
    grid = int(before.shape[1] ** 0.5)
    row, column = divmod(int((before - after).norm(dim=-1)[0].argmax()), grid)
    assert row < grid / 4 and column >= grid * 3 / 4


@pytest.mark.parametrize(
    "vision, kind",
    [
        ({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, "ModifiedResNet"),
        ({**TIMM, "timm_model_name": "resnet18", "timm_pool": "avg"}, "ResNet"),
        ({**VISION, "attentional_pool": True, "attn_pooler_queries": 2}, "VisionTransformer"),
    ],
)
def test_towers_without_patches_are_named(vision, kind):
    with pytest.raises(ValueError, match=f"vision tower is a Vision Transformer without .* this one's is a {kind}"):
        encode_with_patches(tower(**vision), torch.zeros(1, 3, 32, 32))


# --- what CLIP saw ------------------------------------------------------------------------------------------------


def test_a_crop_leaves_the_middle_and_squashing_leaves_all():
    crop = SailVideoProcessor.from_vision_config(SailVisionConfig(image_size=32))
    squash = SailVideoProcessor.from_vision_config(SailVisionConfig(image_size=32, resize_mode="squash"))
    assert crop.seen_bounds(180, 320) == pytest.approx((7 / 32, 0, 25 / 32, 1))
    assert crop.seen_bounds(300, 100) == pytest.approx((0, 1 / 3, 1, 2 / 3))
    assert squash.seen_bounds(180, 320) == (0, 0, 1, 1)
    # Less than the resized picture is left of both sides.
    smaller = SailVideoProcessor(size={"shortest_edge": 40}, crop_size={"height": 30, "width": 20})
    assert smaller.seen_bounds(100, 200) == pytest.approx((0.375, 0.125, 0.625, 0.875))


def test_what_is_seen_is_what_the_crop_keeps():
    """A bright square of the frame lies in the pixels where the bounds say."""
    frame = torch.zeros(180, 320, 3, dtype=torch.uint8)
    frame[60:90, 160:200] = 255
    processor = SailVideoProcessor.from_vision_config(SailVisionConfig(image_size=90))
    pixels = processor.process_frames([frame.numpy()])[0].mean(0)
    rows, columns = (pixels > pixels.min() + 0.5 * (pixels.max() - pixels.min())).nonzero(as_tuple=True)
    found = tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 90
    box = tensor([160 / 320, 60 / 180, 200 / 320, 90 / 180])
    bounds = tensor(processor.seen_bounds(180, 320))
    torch.testing.assert_close(seen_boxes(box, bounds), found, atol=1.5 / 90, rtol=0)
    torch.testing.assert_close(frame_boxes(seen_boxes(box, bounds), bounds), box)


# --- heat ---------------------------------------------------------------------------------------------------------


def test_the_box_of_heat_is_where_it_is_hotter_than_half_of_the_peak():
    heat = torch.zeros(3, 4, 4)
    heat[0, 1:3, 0:3] = 1.0
    heat[1, 2, 3] = 0.5
    heat[1, 2, 2] = 0.2  # less than half
    # A stray patch as hot as the rest, two empty ones away from it: reaching it costs more than it is worth.
    heat[2, 0:2, 0:2], heat[2, 3, 3] = 0.1, 0.1
    boxes, inside = heat_boxes(heat.flatten(1))
    torch.testing.assert_close(boxes, tensor([[0, 1, 3, 3], [3, 2, 4, 3], [0, 0, 2, 2]]) / 4)
    torch.testing.assert_close(inside, tensor([6.0, 0.5, 0.4]))


def test_the_box_of_heat_is_the_best_of_all_rectangles():
    heat = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    boxes, _ = heat_boxes(heat)
    for frame, box in zip(heat.unflatten(-1, (3, 3)), boxes * 3, strict=True):
        excess = frame - frame.max() / 2
        edges = [(low, high) for low in range(3) for high in range(low + 1, 4)]
        values = {(x0, y0, x1, y1): excess[y0:y1, x0:x1].sum().item() for y0, y1 in edges for x0, x1 in edges}
        assert tuple(box.round().int().tolist()) == max(values, key=values.get)
