"""The sample on disk: tiles, outlines, and a word about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError
from rasterio.windows import Window
from shapely.affinity import affine_transform

from geoseg.errors import OutputError, SettingError
from geoseg.sample.canvas import CHUNK, draw
from geoseg.sample.city import City
from geoseg.sample.plans import buildings
from geoseg.tiling import Rect

CRS = "EPSG:32633"
ORIGIN = (412_000.0, 5_318_000.0)
"""Easting and northing of the upper left corner of the city, metres."""
MIN_SIZE = 32
"""Smallest tile, pixels a side: what the network takes at least."""
_ROWS_AT_ONCE = 10_000
"""Buildings written in one go."""


@dataclass(frozen=True, slots=True)
class SamplePaths:
    """What :func:`write_sample` wrote; tiles row by row."""

    root: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    buildings: Path
    readme: Path


def write_sample(
    out: Path,
    *,
    size: int = 1024,
    grid: tuple[int, int] = (2, 2),
    seed: int = 0,
    gsd: float = 0.3,
    progress: Callable[[int, int], None] | None = None,
) -> SamplePaths:
    """Write a synthetic city as ``grid`` (rows, columns) adjacent tiles of ``size`` pixels a side.

    ``out/images/tile_{row}_{col}.tif`` is uint8 RGB (JPEG inside, EPSG:32633, north up, ``gsd``
    metres a pixel), ``out/truth/tile_{row}_{col}.tif`` uint8 0/255 on the same grid,
    ``out/buildings.gpkg`` the outlines (layer ``buildings``: ``id``, ``area_m2``, ``kind``), whole
    also where they pass the edge of the city. ``progress(done, total)`` counts tiles. The same
    arguments give the same city.

    Raises :class:`SettingError` for an impossible size, grid, seed or pixel size, and
    :class:`OutputError` when ``out`` cannot be written or holds tiles of another grid.
    """
    rows, cols = _checked(size, grid)
    city, out = City(seed, gsd), Path(out)
    names = [f"tile_{r}_{c}.tif" for r in range(rows) for c in range(cols)]
    corners = [(r * size, c * size) for r in range(rows) for c in range(cols)]
    paths = SamplePaths(
        root=out,
        images=tuple(out / "images" / name for name in names),
        masks=tuple(out / "truth" / name for name in names),
        buildings=out / "buildings.gpkg",
        readme=out / "README.md",
    )
    try:
        _prepare(out, set(names))
        for k, corner in enumerate(corners):
            _write_tile(paths.images[k], paths.masks[k], corner, size, city)
            if progress:
                progress(k + 1, len(corners))
        _write_buildings(paths.buildings, Rect(0, 0, rows * size, cols * size), city)
        with _complete(paths.readme) as part:
            part.write_text(_readme(size, rows, cols, city), encoding="utf-8")
    except OutputError:
        raise
    except (OSError, RasterioError, DataSourceError, DataLayerError) as error:
        raise OutputError(f"cannot write the sample to {out}: {error}") from error
    return paths


def _checked(size: int, grid: tuple[int, int]) -> tuple[int, int]:
    if size < MIN_SIZE:
        raise SettingError(f"a tile needs at least {MIN_SIZE} pixels a side, not {size}")
    rows, cols = grid
    if rows < 1 or cols < 1:
        raise SettingError(f"a grid of tiles needs at least one row and one column, not {rows}x{cols}")
    return rows, cols


def _prepare(out: Path, names: set[str]) -> None:
    """Make the folders; refuse to mix with tiles that the new grid would not replace."""
    for folder in (out / "images", out / "truth"):
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(p.name for p in folder.glob("*.tif") if p.name not in names)
        if others:
            raise OutputError(f"{folder} holds {len(others)} other tiles ({others[0]}, …); choose an empty folder")


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, and the final one only to what was finished."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_tile(image: Path, mask: Path, corner: tuple[int, int], size: int, city: City) -> None:
    """Draw and write one tile by strips of whole blocks of the file."""
    row0, col0 = corner
    left, top = ORIGIN[0] + col0 * city.gsd, ORIGIN[1] - row0 * city.gsd
    common = {
        "driver": "GTiff", "width": size, "height": size, "dtype": "uint8", "crs": CRS,
        "transform": Affine(city.gsd, 0, left, 0, -city.gsd, top),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer",
    }  # fmt: skip
    jpeg = {"compress": "jpeg", "jpeg_quality": 90, "photometric": "ycbcr", "count": 3}
    deflate = {"compress": "deflate", "zlevel": 9, "count": 1}
    with (
        _complete(image) as image_part,
        _complete(mask) as mask_part,
        rasterio.open(image_part, "w", **common, **jpeg) as rgb_file,
        rasterio.open(mask_part, "w", **common, **deflate) as mask_file,
    ):
        for row in range(0, size, CHUNK):
            height = min(CHUNK, size - row)
            rect = Rect(row0 + row, col0, row0 + row + height, col0 + size)
            rgb, truth = draw(rect, city)
            window = Window(0, row, size, height)
            rgb_file.write(rgb, window=window)
            mask_file.write(truth.astype(np.uint8) * 255, 1, window=window)


@contextmanager
def _fixed_date() -> Iterator[None]:
    """Keep the time of day out of the GeoPackage, so that the same city is the same file."""
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def _write_buildings(path: Path, rect: Rect, city: City) -> None:
    """Write the outlines batch by batch, so that memory does not grow with the city."""
    to_map = (city.gsd, 0, 0, -city.gsd, *ORIGIN)
    found = buildings(rect, city)
    with _complete(path) as part, _fixed_date():
        first = 1
        while True:
            batch = list(islice(found, _ROWS_AT_ONCE))
            if not batch and first > 1:
                break
            outlines = [affine_transform(b.polygon, to_map) for b in batch]
            frame = gpd.GeoDataFrame(
                {
                    "id": np.arange(first, first + len(batch), dtype=np.int64),
                    "area_m2": np.array([b.polygon.area * city.gsd**2 for b in batch], np.float64),
                    "kind": np.array([b.kind for b in batch], dtype=object),
                },
                geometry=outlines,
                crs=CRS,
            )
            pyogrio.write_dataframe(
                frame,
                part,
                layer="buildings",
                driver="GPKG",
                geometry_type="Polygon",
                append=first > 1,
                dataset_options=None if first > 1 else {"VERSION": "1.3"},
            )
            first += len(batch)
            if len(batch) < _ROWS_AT_ONCE:
                break


def _readme(size: int, rows: int, cols: int, city: City) -> str:
    return f"""# Sample tiles

A synthetic city: {rows} by {cols} adjacent tiles of {size} by {size} pixels,
{city.gsd:g} m a pixel, {CRS}, seed {city.seed}. Nothing in it exists; no photograph went into it.

- `images/tile_ROW_COL.tif`: what a camera looking straight down would see, RGB.
- `truth/tile_ROW_COL.tif`: 255 where the centre of the pixel lies on a building, else 0.
- `buildings.gpkg`, layer `buildings`: the exact outlines (`id`, `area_m2`, `kind`), whole where
  they cross the border of a tile or the edge of the city.

Made again by `geoseg sample OUT --size {size} --grid {rows}x{cols} --seed {city.seed}`.

Licence: CC0 1.0 (public domain dedication).
"""
