"""The spool gives back what it took, in the order of first pixels, and says what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely import box
from test_footprints import Fake, square

from geoseg.errors import OutputError, SettingError
from geoseg.spool import BATCH, Spool, polygons_array


def test_spool_gives_back_in_the_order_of_first_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    buildings = [square(int(r), int(c), 3) for r in range(0, 400, 4) for c in range(0, 400, 4)]
    order = rng.permutation(len(buildings))
    path = tmp_path / "spool.sqlite"
    with Spool(path, width=400) as spool:
        for part in np.array_split(order, 7):
            spool.add(buildings[index] for index in part)
        assert len(spool) == len(buildings)
        for _ in range(2):
            batches = list(spool.batches())
            assert max(map(len, batches)) == BATCH
            polygons = np.concatenate([batch.polygons for batch in batches])
            expected = polygons_array(building.polygon for building in buildings)
            assert shapely.equals_exact(polygons, expected).all()
            assert np.concatenate([batch.pixels for batch in batches]).tolist() == [9] * 10_000
            assert sum(int(batch.probability_sum.sum()) for batch in batches) == 90_000 * 204
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_spool_batches_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.spool.BATCH_BYTES", 250)
    with Spool(tmp_path / "spool", width=100) as spool:
        spool.add(square(row, 0, 1) for row in range(7))  # 93 bytes each
        assert [len(batch) for batch in spool.batches()] == [3, 3, 1]


def test_spool_takes_numbers_beyond_32_bits(tmp_path: Path) -> None:
    huge = Fake(box(0, 0, 1, 1), 5_000_000_000, 255 * 5_000_000_000, (100_000, 99_999))
    with Spool(tmp_path / "spool", width=100_000) as spool:
        spool.add([huge])
        (batch,) = spool.batches()
    assert batch.pixels[0] == 5_000_000_000
    assert batch.probability_sum[0] == 255 * 5_000_000_000


def test_spool_refuses_twins_and_strangers(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", width=10) as spool:
        spool.add([square(0, 3, 1)])
        with pytest.raises(SettingError, match="same first pixel"):
            spool.add([square(0, 3, 2)])
    with Spool(tmp_path / "spool", width=10) as spool, pytest.raises(SettingError, match="10 col"):
        spool.add([square(0, 10, 1)])


def test_spool_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"half a database")
    with Spool(tmp_path / "spool", width=10) as spool:
        assert len(spool) == 0
        assert list(spool.batches()) == []


def test_spool_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="spool"):
        Spool(tmp_path / "no" / "spool", width=10)
