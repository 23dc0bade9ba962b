"""training/compare_methods.py: what its variants are, and the table it makes of several seeds."""

import json

import pytest
from compare_methods import (
    VARIANTS,
    CompareArguments,
    check_same_settings,
    folder_name,
    format_comparison,
    rows_of,
)


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    check_same_settings(CompareArguments(output=tmp_path, seeds=[0]))
    check_same_settings(CompareArguments(output=tmp_path, seeds=[1]))
    with pytest.raises(SystemExit, match=r"'learning_rate': 0.0003.*'learning_rate': 0.001.*another --output"):
        check_same_settings(CompareArguments(output=tmp_path, learning_rate=1e-3))


def test_rows_and_means_over_seeds(tmp_path):
    seeds = []
    for seed, f1 in enumerate((0.4, 0.6)):
        for variant in VARIANTS:
            masks = {"f1": f1, "lift": f1 / 2, "center_correlation": None, "width_correlation": 0.5}
            masks |= {"f1_equal_spans": 0.3, "f1_three_spans": 0.2, "f1_equal_spans_reference_counts": 0.35}
            kinds = {"masks": masks, "alignment": {**masks, "f1": 0.9}, "true captions, aligned": {**masks, "f1": 1.0}}
            folder = tmp_path / f"{seed}" / folder_name(variant)
            folder.mkdir(parents=True)
            (folder / "scores.json").write_text(json.dumps(kinds if variant == "sail" else {"masks": masks}))
        seeds.append(rows_of(tmp_path / f"{seed}"))
    table = format_comparison(seeds).splitlines()
    assert len(table) == 2 + 3 + len(VARIANTS) + 2
    assert "| sail, masks | 50.0 ± 14.1 | 25.0 ± 7.1 |  | 0.50 ± 0.00 |  |" in table
    assert "| equal spans, true counts | 35.0 ± 0.0 |  |  |  |  |" in table
    assert "| true captions aligned | 100.0 ± 0.0 | 25.0 ± 7.1 |  | 0.50 ± 0.00 |  |" in table
    assert "| sail, masks | 40.0 | 20.0 |  | 0.50 |  |" in format_comparison(seeds[:1])
