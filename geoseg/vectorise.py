"""From a raster on disk to building polygons, and how outlines are straightened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from geoseg.delivery import check_database, database_writer, run_name
from geoseg.errors import InputError, SettingError
from geoseg.field import Field
from geoseg.footprints import Footprints, Rules, finish
from geoseg.formats import check_format, format_of
from geoseg.join import Joiner
from geoseg.neighbours import kept_apart
from geoseg.outline import simplify
from geoseg.polygonize import block_parts
from geoseg.processes import how_many, shares
from geoseg.progress import Progress, open_progress
from geoseg.settings import Settings
from geoseg.spool import LARGE, Polygons, Spool
from geoseg.square import reach_of, square_up
from geoseg.subpixel import Chances, crossings
from geoseg.tiling import Tiling

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

SQUARE = 2.0
"""Tolerances of simplifying that squaring up has. Measured on outlines of networks (tests/benchmarks/outlines.py): less
leaves jogs that are no walls, more takes walls that are."""


@dataclass(frozen=True)
class Straightener:
    """How outlines are straightened, in a form that travels to other processes."""

    simplify_px: float
    """Tolerance in pixels; 0 leaves outlines as they are, whatever ``square`` says."""
    square: bool = True
    """Turn walls that are nearly parallel or at right angles until they are."""
    chances: Chances | None = None
    """A probability raster, to begin with sub-pixel outlines; None for pixel outlines."""

    @property
    def reach(self) -> int:
        """How near a building may be to have a say in another's outline, in pixels."""
        # Two outlines meet when both have moved towards each other as far as they may.
        moves = reach_of(SQUARE * self.simplify_px) + (0.0 if self.chances is None else 0.5)
        return math.ceil(2 * moves) + 2

    def __call__(self, polygons: Polygons) -> Polygons:
        """Return the outlines of buildings for their pixels' outlines."""
        if self.simplify_px <= 0:
            return self._finer(polygons)
        x0, y0, x1, y1 = shapely.bounds(polygons).T
        small = (x1 - x0 <= LARGE) & (y1 - y0 <= LARGE)
        outlines = polygons.copy()
        dense = self.chances is not None
        finer = self._finer(polygons[small])
        outlines[small] = square_up(finer, SQUARE * self.simplify_px, snap=self.square, dense=dense)
        outlines[~small] = self._straighten(polygons[~small])
        return kept_apart(polygons, outlines, self._straighten)

    def _straighten(self, polygons: Polygons) -> Polygons:
        return simplify(polygons, self.simplify_px)

    def _finer(self, polygons: Polygons) -> Polygons:
        return polygons if self.chances is None else crossings(polygons, self.chances)


def outline_rules(
    min_area: float, min_hole: float, simplify_px: float, square: bool = True, chances: Chances | None = None
) -> Rules:
    """Return what is left out and how outlines are straightened, from the options' values.

    Args:
        min_area: square metres below which a building is dropped.
        min_hole: square metres below which a hole is filled.
        simplify_px: as in :class:`Straightener`, like the next two.
        square: turn walls.
        chances: a probability raster, or None.
    """
    how = Straightener(simplify_px, square, chances)
    if simplify_px <= 0:
        return Rules(min_area, min_hole, None if chances is None else how)
    return Rules(min_area, min_hole, how, how.reach)


def polygonize_file(
    raster: str | Path,
    out: str | Path,
    *,
    threshold: float | None = None,
    min_area: float = 4.0,
    min_hole: float = 2.0,
    simplify: float | None = None,
    square: bool = True,
    outline: str = "pixel",
    postgis: str | None = None,
    postgis_table: str = "buildings",
    postgis_mode: str = "replace",
    progress: Progress | str = "none",
) -> int:
    """Turn a mask or probability raster into building polygons.

    A raster of floats, or of integers with a scale in its metadata (as ``probability.tif`` has), is a probability;
    so is any other when a threshold is given (its type's largest value is 1.0 then). Otherwise everything that
    is not zero is building.

    Args:
        raster: One band is read, the first; pixels without data are no building.
        out: The vector file; its ending chooses the format.
        threshold: Probability from which a pixel is building; 0.5 when the raster is a probability.
        min_area: Square metres below which a building is left out.
        min_hole: Square metres below which a hole is closed.
        simplify: Metres that outlines may move from the pixels' edges; None for one pixel.
        square: Turn walls that are nearly parallel or at right angles until they are; with False, or where neighbours
            would overlap, outlines are only straightened.
        outline: What outlines are made from: ``pixel`` for the pixels' edges, ``subpixel`` for where the probability
            passes the threshold between pixels.
        postgis: A database that gets the buildings, too, when the file is written; this and the next two are as in
            :class:`geoseg.settings.Settings`.
        postgis_table: The table there.
        postgis_mode: ``replace`` or ``append``.
        progress: As for :func:`geoseg.segment.segment`.

    Returns:
        Number of buildings written.

    Raises:
        InputError: The raster cannot be read.
        SettingError: A setting is wrong, or asks for sub-pixel outlines of a mask.
        OutputError: The file, or the database, cannot be written.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    from geoseg.mosaic import open_mosaic
    from geoseg.vector import write_formats  # pandas and all: not for processes that straighten outlines

    # One band is read three times by the mosaic, which knows nodata, masks, georeference and broken files.
    checked = Settings(
        threshold=threshold,
        min_area=min_area,
        min_hole=min_hole,
        simplify=simplify,
        square=square,
        outline=outline,
        postgis=postgis,
        postgis_table=postgis_table,
        postgis_mode=postgis_mode,
    )
    shown = progress if isinstance(progress, Progress) else open_progress(progress)
    mosaic, problems = open_mosaic([raster], bands=(1, 1, 1))
    if problems:
        raise InputError(str(problems[0]))
    check_format(format_of(out), mosaic.wkt)
    check_database(checked, mosaic.wkt)
    pixel = mosaic.ground_gsd or 1.0
    tolerance = 1.0 if checked.simplify is None else checked.simplify / pixel
    tiling = Tiling(mosaic.shape, 1024, 0, 0, 2048)
    target = Path(out)
    try:
        with rasterio.open(raster) as dataset:
            scale = _probability_scale(dataset, threshold)
    except RasterioIOError as error:
        raise InputError(f"{raster}: cannot be read ({error})") from error
    finer = outline == "subpixel"
    if finer and scale is None:
        raise SettingError(f"{raster}: a mask has no outlines between pixels; give a threshold if it is a probability")
    joiner = Joiner(tiling)
    with ExitStack() as stack, shown, Spool(target.with_name(f".{target.name}.sqlite"), mosaic.shape[1]) as spool:
        shown.stage("vectorising", len(tiling), pixels=True)
        for block in tiling:
            read = mosaic.read(block.core)
            if read.problems:
                raise InputError(str(read.problems[0]))
            values = read.values[0]
            if scale is None:
                mask = (values != 0) & read.valid
                grey = np.where(mask, 255, 0).astype(np.uint8)
            else:
                chance = values.astype(np.float64) * scale
                # Half a rounding error of the scale: a stored 255 · 0.4 must count as 0.4.
                mask = (chance >= (threshold or 0.5) - 1e-9) & read.valid
                grey = np.rint(np.clip(np.nan_to_num(chance), 0, 1) * 255).astype(np.uint8)
            parts = block_parts(mask, grey, block.core)
            spool.add(joiner.add(*block.index, block.core, parts))
            shown.advance(1, block.core.area)
        spool.add(joiner.finish())
        least = (threshold or 0.5) / scale if scale else 0.0
        chances = stack.enter_context(Field.open(raster, least)) if finer else None
        rules = outline_rules(min_area, min_hole, tolerance, square, chances)
        processes, size = shares(len(spool), how_many())
        found = spool.batches(rules.beside_px, size)
        batches: Iterator[Footprints] = finish(found, mosaic.transform, mosaic.wkt, rules, processes)
        run = run_name(Path(raster).stem, {**mosaic.identity(), "threshold": threshold}, asdict(checked))
        return write_formats([target], batches, mosaic.wkt, also=database_writer(checked, mosaic.wkt, run)).count


def _probability_scale(dataset: DatasetReader, threshold: float | None) -> float | None:
    """Return what a stored value is multiplied with to be a probability, None for a mask."""
    scale, dtype = dataset.scales[0], np.dtype(dataset.dtypes[0])
    if scale != 1.0 or dtype.kind == "f":
        return float(scale)
    return None if threshold is None else 1.0 / float(np.iinfo(dtype).max)
