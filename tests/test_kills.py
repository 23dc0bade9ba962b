"""Runs that are killed end as if they had not been; a short form of tests/soak/soak_kills.py."""

import sys
from pathlib import Path

import pytest
from extract_features import main
from soak.soak_kills import make_inputs, make_recipe, soak

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not Windows's")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    make_inputs(folder)
    return folder


# test_augment_kills.py kills augment_captions.py more often.
@pytest.mark.parametrize("recipe", ["extract_features", "train", "train_with_time_warp", "align_dataset"])
def test_a_killed_run_goes_on(inputs, recipe):
    result = soak(recipe, inputs, kills=2)
    assert result["kills"] == 2 and result["equal"]


def test_workers_change_no_bit(inputs, tmp_path):
    recipe = make_recipe("extract_features", inputs)
    digests = []
    for workers in ("1", "3"):
        main([*recipe.arguments, str(tmp_path / workers), "--num_workers", workers])
        digests.append(recipe.digest(tmp_path / workers))
    assert digests[0] == digests[1] and digests[0]
