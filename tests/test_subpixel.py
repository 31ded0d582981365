"""Sub-pixel outlines against contourpy, by hand, and as properties: valid, apart, whatever the cut and the batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from contourpy import LineType, contour_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage
from test_join import SmallBlocks, join

from geoseg import spool
from geoseg.errors import InputError, SettingError
from geoseg.field import Field
from geoseg.footprints import finish
from geoseg.polygonize import buildings_of
from geoseg.spool import Spool
from geoseg.subpixel import GRID, MARGIN, crossings
from geoseg.vectorise import outline_rules, polygonize_file

Polygons = NDArray[np.object_]


@dataclass(frozen=True)
class Held:
    """A probability in memory."""

    grey: NDArray[Any]
    threshold: float

    def at(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
        framed = np.pad(self.grey.astype(float), 1, constant_values=np.nan)
        result: NDArray[np.float64] = framed[rows + 1, cols + 1]
        return result


def pixel_outlines(grey: NDArray[Any], threshold: float) -> Polygons:
    mask = np.nan_to_num(grey.astype(float)) >= threshold
    found = buildings_of(mask, mask.astype(np.uint8))
    polygons = np.empty(len(found), dtype=object)
    polygons[:] = [building.polygon for building in found]
    return polygons


@st.composite
def greys(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Draw probabilities whose frame is background."""
    shape = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    field = ndimage.uniform_filter(rng.random(shape), draw(st.sampled_from([1, 2, 3])))
    spread = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    return np.pad(np.rint(spread * 255).astype(np.uint8), 1)


def vertices(polygons: Polygons) -> NDArray[np.float64]:
    rings = shapely.get_rings(polygons)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    return xy[np.append(ring[1:] == ring[:-1], np.zeros(min(len(ring), 1), bool))]


@settings(max_examples=200, deadline=None)
@given(greys(), st.integers(1, 254))
def test_the_vertices_are_those_of_marching_squares(grey: NDArray[np.uint8], level: int) -> None:
    threshold = level + 0.3
    ours = vertices(crossings(pixel_outlines(grey, threshold), Held(grey, threshold)))
    made = contour_generator(z=grey.astype(float), line_type=LineType.Separate)
    lines = [np.asarray(line)[:-1] + 0.5 for line in made.lines(threshold)]
    theirs = np.concatenate(lines) if lines else np.zeros((0, 2))
    # Ours keep away from the centres, and lie on a fine grid.
    place = theirs - 0.5
    between = np.abs(place - np.rint(place)) > 1e-6
    kept = np.floor(place) + np.clip(place - np.floor(place), MARGIN, 1 - MARGIN)
    theirs = np.where(between, kept, np.rint(place)) + 0.5
    assert len(ours) == len(theirs)
    for one, other in ((ours, theirs), (theirs, ours)):
        gap = shapely.STRtree(shapely.points(one)).query_nearest(shapely.points(other), return_distance=True)[1]
        assert gap.max(initial=0) <= 1 / GRID


def test_without_saddles_the_outlines_are_contourpy_s() -> None:
    y, x = np.mgrid[:40, :50]
    hills = np.exp(-((x - 14.2) ** 2 + (y - 17.1) ** 2) / 60) + np.exp(-((x - 36.7) ** 2 + (y - 22.4) ** 2) / 40)
    grey = np.rint(255 * np.clip(hills - 0.9 * np.exp(-((x - 14.2) ** 2 + (y - 17.1) ** 2) / 4), 0, 1)).astype(np.uint8)
    ours = crossings(pixel_outlines(grey, 100.0), Held(grey, 100.0))
    assert sorted(len(one.interiors) for one in ours) == [0, 1]
    theirs = [
        shapely.Polygon(points[ends[0] : ends[1]] + 0.5, [points[a:b] + 0.5 for a, b in pairwise(ends[1:])])
        for points, ends in zip(
            *contour_generator(z=grey.astype(float), fill_type="OuterOffset").filled(100.0, 1e9), strict=True
        )
    ]
    for one in ours:
        assert min(shapely.area(one ^ other) for other in theirs) < 0.04


@settings(max_examples=200, deadline=None)
@given(greys(), st.integers(1, 254), st.booleans())
def test_valid_whole_and_apart(grey: NDArray[np.uint8], level: int, holes: bool) -> None:
    field = grey.astype(float)
    if holes:
        field[np.random.default_rng(level).random(field.shape) < 0.1] = np.nan
    plain = pixel_outlines(field, level)
    fine = crossings(plain, Held(field, level))
    assert shapely.is_valid(fine).all()
    np.testing.assert_array_equal(shapely.get_num_interior_rings(fine), shapely.get_num_interior_rings(plain))
    # Each is its own building's: no more than half a pixel away, and nobody else's ground.
    assert shapely.hausdorff_distance(plain, fine).max(initial=0) <= np.hypot(1, 1) / 2 + 1e-9
    one, other = shapely.STRtree(fine).query(fine, predicate="intersects")
    assert (one == other).all()


def test_by_hand() -> None:
    grey = np.array([[0, 0, 0, 0], [0, 200, 100, 0], [0, 150, 50, 0], [0, 0, 0, 0]], float)
    (fine,) = crossings(pixel_outlines(grey, 100.0), Held(grey, 100.0))
    # Half-way from 200 to 0; a third of the way from 150 to 0, and so on; as near to the centre of 100 as it gets.
    expected = {
        (1.5, 1.0),
        (2.5, 1.5 - 1 / 64),
        (2.5 + 1 / 64, 1.5),
        (2.5, 1.5 + 1 / 64),
        (2.0, 2.5),
        (1.5, 2.5 + 341 / 1024),
    }
    expected |= {(1.5 - 341 / 1024, 2.5), (1.0, 1.5)}
    assert set(fine.exterior.coords) == expected


def test_beside_nothing_the_edge_stays() -> None:
    grey = np.array([[200, np.nan], [200, 0]])
    (fine,) = crossings(pixel_outlines(grey, 100.0), Held(grey, 100.0))
    assert set(fine.exterior.coords) == {(0.5, 0.0), (1.0, 0.5), (1.0, 1.5), (0.5, 2.0), (0.0, 1.5), (0.0, 0.5)}


def test_what_is_no_pixel_outline_is_refused() -> None:
    held = Held(np.zeros((9, 9)), 1.0)
    for polygon in (shapely.box(0, 0, 1.5, 3), shapely.Point(4, 4).buffer(2)):
        with pytest.raises(SettingError, match="pixel edges"):
            crossings(np.array([polygon], dtype=object), held)
    assert crossings(np.zeros(0, dtype=object), held).shape == (0,)


def city(shape: tuple[int, int] = (300, 400), seed: int = 4) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random(shape), 3)
    return np.rint(255 * np.clip((field - np.quantile(field, 0.5)) / np.ptp(field) * 3 + 0.3, 0, 1)).astype(np.uint8)


def written(path: Path, grey: NDArray[Any], **more: Any) -> Path:
    facts = {"height": grey.shape[0], "width": grey.shape[1], "count": 1, "dtype": grey.dtype, "driver": "GTiff"}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(4e5, 5e6, 0.3, 0.3), **facts, **more) as file:
        file.write(grey, 1)
        file.scales = (1 / 255,) if grey.dtype == np.uint8 else (1.0,)
    return path


def test_a_field_is_its_raster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = city((70, 90))
    grey[20:30, 40:50] = 7
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(-3, 73, 500), rng.integers(-3, 93, 500)
    with Field.open(written(tmp_path / "p.tif", grey, nodata=7), 100.0) as field:
        whole = field.at(rows, cols)
        monkeypatch.setattr("geoseg.field.TILE", 16)
        np.testing.assert_array_equal(field.at(rows, cols), whole)
        assert field.at(rows[:0], cols[:0]).shape == (0,)
    np.testing.assert_array_equal(
        whole,
        Held(np.where(grey == 7, np.nan, grey), 0).at(
            *(np.clip(axis, -1, size) for axis, size in ((rows, 70), (cols, 90)))
        ),
    )
    with pytest.raises(InputError, match="cannot be read"):
        Field.open(tmp_path / "none.tif", 1.0)


@pytest.mark.parametrize(("simplify", "square"), [(0.0, True), (1.0, True), (1.0, False)])
def test_cuts_and_batches_do_not_matter(
    simplify: float, square: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = city()
    mask = grey >= 128
    whole = buildings_of(mask, grey)
    rules = outline_rules(4.0, 2.0, simplify, square, Held(grey, 128.0))
    outlines = []
    for buildings, batch in (
        (whole, 10_000),
        (whole[::-1], 3),
        (join(mask, grey, SmallBlocks(mask.shape, (37, 41))), 20),
    ):
        monkeypatch.setattr(spool, "BATCH", batch)
        with Spool(tmp_path / "spool", grey.shape[1]) as kept:
            kept.add(buildings)
            done = finish(kept.batches(rules.beside_px), Affine.identity(), None, rules)
            outlines.append([outline for part in done for outline in shapely.to_wkb(part.polygons)])
    assert len(outlines[0]) > 40
    assert outlines[1] == outlines[0]
    assert outlines[2] == outlines[0]
    made = shapely.from_wkb(np.array(outlines[0], object))
    assert shapely.is_valid(made).all()
    one, other = shapely.STRtree(made).query(made, predicate="intersects")
    assert shapely.area(shapely.intersection(made[one[one < other]], made[other[one < other]])).sum() < 1e-9


def test_the_setting(tmp_path: Path) -> None:
    import geopandas

    grey = city()
    probability = written(tmp_path / "p.tif", grey)
    floats = written(tmp_path / "f.tif", (grey / np.float32(255)).astype(np.float32))
    mask = written(tmp_path / "m.tif", (grey >= 128).astype(np.int16))

    def outlines(raster: Path, **options: Any) -> list[bytes]:
        polygonize_file(raster, tmp_path / "o.gpkg", threshold=None if raster == mask else 128 / 255, **options)
        return list(geopandas.read_file(tmp_path / "o.gpkg", layer="buildings").geometry.to_wkb())

    finer, edges = outlines(probability, outline="subpixel"), outlines(probability)
    assert finer != edges
    assert outlines(floats, outline="subpixel") == finer
    assert outlines(probability, outline="pixel") == edges
    assert outlines(mask) == edges
    plain, between = (outlines(probability, simplify=0.0, outline=one) for one in ("pixel", "subpixel"))
    assert plain == outlines(mask, simplify=0.0)
    assert between != plain
    with pytest.raises(SettingError, match="a mask has no outlines between pixels"):
        outlines(mask, outline="subpixel")
    with pytest.raises(SettingError, match="outline 'finest' is not one of pixel, subpixel"):
        outlines(mask, outline="finest")
