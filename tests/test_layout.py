"""Where files come to lie, and how large a pixel is on the ground, against PROJ."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Geod
from rasterio.warp import transform as transform_points
from rasters import NORTH_UP, UTM, noise, only, smooth, write

from geoseg.errors import InputError, SettingError
from geoseg.layout import ground_size
from geoseg.mosaic import open_mosaic
from geoseg.raster import close_files


@pytest.mark.parametrize(
    "transform",
    [
        NORTH_UP,
        Affine(0.5, 0, 500000, 0, 0.5, 4_000_000),
        NORTH_UP @ Affine.rotation(30),
        Affine(-0.5, 0.1, 500000, 0.2, 0.6, 4_000_000),
    ],
    ids=["north", "south", "rotated", "sheared"],
)
def test_any_affine_is_read_as_it_is(tmp_path: Path, transform: Affine) -> None:
    values = noise((3, 31, 47))
    path = write(tmp_path / "a.tif", values[:, :, :20], transform=transform)
    shift = transform @ Affine.translation(20, 0)
    right = write(tmp_path / "b.tif", values[:, :, 20:], transform=shift)
    mosaic, problems = open_mosaic([path, right])
    assert problems == []
    assert mosaic.transform.almost_equals(transform)
    assert [layer.aligned for layer in mosaic.layers] == [True]
    assert np.array_equal(mosaic.read(mosaic.extent).values, values)


def test_no_georeference(tmp_path: Path) -> None:
    one = write(tmp_path / "a.png", noise((3, 9, 8)), transform=None, crs=None, driver="PNG")
    two = write(tmp_path / "b.tif", noise((3, 9, 8)), transform=None, crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
        mosaic, problems = open_mosaic([one, two])
        close_files()
        got = mosaic.read(mosaic.extent)
    assert np.array_equal(got.values, noise((3, 9, 8)))
    assert not mosaic.georeferenced
    assert mosaic.crs is None
    assert mosaic.ground_gsd is None
    assert [(Path(p.path).name, "no georeference" in p.message) for p in problems] == [("b.tif", True)]
    with pytest.raises(SettingError, match="no CRS"):
        open_mosaic([one], gsd=0.3)


def test_placed_but_without_crs(tmp_path: Path) -> None:
    values = smooth((40, 60))
    one = write(tmp_path / "a.tif", values[:, :, :30], crs=None)
    two = write(
        tmp_path / "b.tif",
        values[:, :, 30:],
        crs=None,
        transform=NORTH_UP @ Affine.translation(30.4, 0),
    )
    mosaic, problems = open_mosaic([one, two])
    assert problems == []
    assert mosaic.georeferenced
    assert [layer.aligned for layer in mosaic.layers] == [True, False]
    got = mosaic.read(mosaic.extent)
    assert got.valid[:, :60].mean() > 0.98
    assert np.abs(got.values[:, :, 32:59].astype(int) - values[:, :, 32:59]).max() < 12


def test_lattices_are_told_apart(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{i}.tif", noise((3, 8, 8)), transform=NORTH_UP @ Affine.translation(*shift))
        for i, shift in enumerate([(0, 0), (8, 0.5), (16, 3.508), (24, 0.2), (32, 7), (40, 0.496), (48, 1.199)])
    ]
    mosaic, _ = open_mosaic(paths)
    assert [source.layer for source in mosaic.sources] == [0, 1, 1, 2, 0, 1, 2]
    assert mosaic.shape == (15, 56)


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        ("EPSG:3857", Affine(0.3, 0, 9_510_000, 0, -0.3, 3_205_000)),
        ("EPSG:4326", Affine(2e-6, 0, 15.5, 0, -2e-6, 60.2)),
        ("EPSG:2263", Affine(1.0, 0, 990_000, 0, -1.0, 200_000)),
        (UTM, NORTH_UP @ Affine.rotation(20)),
    ],
)
def test_ground_gsd(tmp_path: Path, crs: str, affine: Affine) -> None:
    path = write(tmp_path / "a.tif", noise((3, 60, 80)), crs=crs, transform=affine)
    mosaic = only(path)
    # Independent: the diagonal of the whole image on WGS84, in equal steps.
    corner_x, corner_y = zip(affine @ (0, 30), affine @ (80, 30), affine @ (40, 0), affine @ (40, 60), strict=True)
    lon, lat = transform_points(crs, "EPSG:4326", list(corner_x), list(corner_y))
    geod = Geod(ellps="WGS84")
    along = geod.inv(lon[0], lat[0], lon[1], lat[1])[2] / 80
    across = geod.inv(lon[2], lat[2], lon[3], lat[3])[2] / 60
    assert mosaic.ground_gsd == pytest.approx((along * across) ** 0.5, rel=1e-4)
    coarse = only(path, gsd=1.5)
    assert coarse.ground_gsd == pytest.approx(1.5, rel=1e-3)
    height, width = coarse.shape
    size = ground_size(coarse.wkt, coarse.transform, width / 2, height / 2)
    assert size == pytest.approx((1.5, 1.5), rel=0.01)
    assert coarse.read(coarse.extent).valid.mean() > 0.9


def test_foot_is_converted() -> None:
    size = ground_size(rasterio.crs.CRS.from_epsg(2263).to_wkt(), Affine(1, 0, 990_000, 0, -1, 200_000), 0, 0)
    assert size == pytest.approx((0.3048, 0.3048), rel=1e-3)


def test_too_far_apart(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tif", noise((3, 4, 4)), transform=Affine(1e-3, 0, 0, 0, -1e-3, 0))
    two = write(tmp_path / "b.tif", noise((3, 4, 4)), transform=Affine(1e-3, 0, 9e6, 0, -1e-3, 0))
    with pytest.raises(InputError, match="so far apart"):
        open_mosaic([one, two])
