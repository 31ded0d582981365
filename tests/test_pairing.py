"""Pairs of files by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoseg.errors import InputError
from geoseg.pairing import pair_files


def test_pairs_without_and_with_doubt(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with pytest.raises(InputError, match="no raster and no vector file"):
        pair_files(one, two)
    for name in ("a_rgb.tif", "a_mask.tif"):
        (one / name).touch()
    (two / "b.tif").touch()
    with pytest.raises(InputError, match=r"holds a and .* holds b: no stem is in both"):
        pair_files(one, two)
    (two / "a_prediction.gpkg").touch()
    pairs, notes = pair_files(two, one)
    assert [(p.name, p.predicted.name, p.reference.name) for p in pairs] == [("a", "a_prediction.gpkg", "a_mask.tif")]
    assert pairs[0].imagery == one / "a_rgb.tif"
    assert notes == (f"{two}: b without a partner in {one}, left out",)
    (two / "a_prob.tif").touch()
    with pytest.raises(InputError, match=r"a_prediction.gpkg and a_prob.tif all stand for 'a'"):
        pair_files(two, one)
