"""Files placed on one grid: which of them share its pixels, which share pixels with one another, and where each lies.

The grid's own lattice takes all files whose pixels are its own to within :data:`ALIGNED`; the others are grouped into
layers of files that share pixels with one another, and each layer is later warped as if it were one raster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS as RasterioCRS  # noqa: N811
from rasterio.warp import transform as transform_points

from geoseg.aoi import apply_affine
from geoseg.errors import InputError, SettingError
from geoseg.inputs import Header, InputProblem
from geoseg.raster import Source
from geoseg.tiling import Rect

ALIGNED = 0.01
"""Files whose pixels lie within this many pixels of the grid's are read without resampling."""

_MAX_SIDE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Layer:
    """Files that share pixels with one another: read side by side, and warped, if at all, as one raster.

    So the seams between them leave no trace when the mosaic is resampled.
    """

    rect: Rect
    """The part of the mosaic grid that it covers (the box around it)."""
    aligned: bool
    """True: its pixels are the grid's own; False: it is warped."""
    shape: tuple[int, int]
    """Rows and columns of the layer in its own pixels."""
    transform: tuple[float, float, float, float, float, float]
    """Affine of its pixels: (column, row) to coordinates."""
    crs: str | None
    """WKT, or None."""
    scale: tuple[float, float]
    """Mosaic pixels per own pixel along columns and rows, at most 1: gives the width of the warp's kernel."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Files on their grid."""

    affine: Affine
    """Of the grid: pixel (column, row) to coordinates."""
    shape: tuple[int, int]
    """Rows and columns of the grid."""
    crs: str | None
    """WKT, or None."""
    sources: tuple[Source, ...]
    """The files, in order."""
    layers: tuple[Layer, ...]
    """In the order of their first files."""


_Box = tuple[int, int, int, int]
"""First row and column, last ones + 1; may be negative."""


@dataclass(slots=True)
class _Lattice:
    """Pixels that files share, while files are being laid out."""

    affine: Affine
    crs: str | None
    aligned: bool
    members: list[tuple[int, Header, _Box, _Box]]
    """Order, header, box on the grid, box on this lattice."""


def place(headers: list[Header], affine: Affine, problems: list[InputProblem]) -> Placed:
    """Lay files out on the grid of ``affine``; those that have no place there go to ``problems``."""
    crs = None if headers[0].crs is None else headers[0].crs.to_wkt()
    lattices = _Lattices(affine, crs)
    known = {problem.path for problem in problems}
    for order, header in enumerate(headers):
        own = None if header.crs is None else header.crs.to_wkt()
        lattice, native = lattices.find(header, own)
        box = native if lattice.aligned else _box_on_grid(header, own, affine, crs)
        if box is not None:
            lattice.members.append((order, header, box, native))
        elif header.name not in known:
            problems.append(InputProblem(header.name, "cannot be projected to the CRS of the first file"))
    used = [lattice for lattice in lattices.all if lattice.members]
    used.sort(key=lambda lattice: lattice.members[0][0])
    if not used:
        return Placed(affine, (0, 0), crs, (), ())
    row0, col0, row1, col1 = _union([box for lattice in used for _o, _h, box, _n in lattice.members])
    shape = row1 - row0, col1 - col0
    if max(shape) > _MAX_SIDE:
        raise InputError(
            f"the files lie so far apart that the grid would have {shape[0]} × {shape[1]} px; leave out the stray one"
        )
    grid = affine @ Affine.translation(col0, row0)
    layers: list[Layer] = []
    sources: list[tuple[int, Source]] = []
    for number, lattice in enumerate(used):
        whole = _union([box for _o, _h, box, _n in lattice.members])
        own_row0, own_col0, own_row1, own_col1 = _union([native for _o, _h, _b, native in lattice.members])
        if lattice.aligned:
            own_row0, own_col0, own_row1, own_col1 = row0, col0, row1, col1
        own_affine = lattice.affine @ Affine.translation(own_col0, own_row0)
        rect = _shifted(whole, row0, col0)
        layers.append(
            Layer(
                rect=rect,
                aligned=lattice.aligned,
                shape=(own_row1 - own_row0, own_col1 - own_col0),
                transform=_six(own_affine),
                crs=lattice.crs,
                scale=(1.0, 1.0) if lattice.aligned else _kernels(rect, grid, crs, own_affine, lattice.crs),
            )
        )
        sources.extend(
            (order, _source(header, number, _shifted(box, row0, col0), _shifted(native, own_row0, own_col0)))
            for order, header, box, native in lattice.members
        )
    sources.sort(key=lambda pair: pair[0])
    return Placed(grid, shape, crs, tuple(source for _order, source in sources), tuple(layers))


def _source(header: Header, layer: int, rect: Rect, native: Rect) -> Source:
    return Source(
        path=header.path,
        name=header.name,
        rect=rect,
        layer=layer,
        native=native,
        located=header.located,
        bands=header.bands,
        palette=header.palette,
        dtype=header.dtype,
        alpha=header.alpha,
        all_valid=header.all_valid,
        size=header.size,
        stamp=header.stamp,
    )


def _six(affine: Affine) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = tuple(affine)[:6]
    return a, b, c, d, e, f


def _union(boxes: list[_Box]) -> _Box:
    array = np.array(boxes, dtype=np.int64)
    row0, col0 = array[:, :2].min(axis=0)
    row1, col1 = array[:, 2:].max(axis=0)
    return int(row0), int(col0), int(row1), int(col1)


def _shifted(box: _Box, row: int, col: int) -> Rect:
    return Rect(box[0] - row, box[1] - col, box[2] - row, box[3] - col)


class _Lattices:
    """The grid's own lattice and those of files that do not share it, found by hashing."""

    def __init__(self, affine: Affine, crs: str | None) -> None:
        self.grid = _Lattice(affine, crs, True, [])
        self.all = [self.grid]
        self._references: dict[tuple[Any, ...], Affine] = {}
        self._by_phase: dict[tuple[Any, ...], list[_Lattice]] = {}

    def find(self, header: Header, crs: str | None) -> tuple[_Lattice, _Box]:
        """Return the lattice that the file's pixels belong to, and where they lie on it."""
        own_crs = self.grid.crs is None or crs is None or same_crs(crs, self.grid.crs)
        box = _box_on_lattice(header, self.grid.affine) if own_crs else None
        if box is not None:
            return self.grid, box
        a, b, c, d, e, f = tuple(header.affine)[:6]
        kind = (crs, *(f"{value:.6e}" for value in (a, b, d, e)))
        reference = self._references.setdefault(kind, header.affine)
        # Fraction of a pixel by which the file is shifted, in bins twice as wide as what is taken for equal.
        bins = round(0.5 / ALIGNED)
        phase = [round(float(v) % 1 * bins) for v in ~reference @ (c, f)]
        for row in (-1, 0, 1):
            for col in (-1, 0, 1):
                key = (*kind, (phase[0] + col) % bins, (phase[1] + row) % bins)
                for lattice in self._by_phase.get(key, ()):
                    box = _box_on_lattice(header, lattice.affine)
                    if box is not None:
                        return lattice, box
        lattice = _Lattice(header.affine, crs, False, [])
        self.all.append(lattice)
        self._by_phase.setdefault((*kind, phase[0] % bins, phase[1] % bins), []).append(lattice)
        return lattice, (0, 0, *header.shape)


def _box_on_lattice(header: Header, affine: Affine) -> _Box | None:
    """Return the place of a file whose pixels are those of ``affine``, or None when they are not."""
    height, width = header.shape
    corners_x, corners_y = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    points = np.stack(apply_affine(~affine @ header.affine, corners_x, corners_y), axis=1)
    col, row = (int(v) for v in np.rint(points[0]))
    exact = np.stack([corners_x + col, corners_y + row], axis=1)
    return (row, col, row + height, col + width) if np.abs(points - exact).max() <= ALIGNED else None


def _box_on_grid(header: Header, own: str | None, affine: Affine, crs: str | None) -> _Box | None:
    """Return the grid's pixels that a file covers, or None when its outline cannot be projected."""
    height, width = header.shape
    steps = np.linspace(0, 1, 65)
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    edge_x = np.concatenate([steps, steps, zero, one]) * width
    edge_y = np.concatenate([zero, one, steps, steps]) * height
    points = map_points(edge_x, edge_y, header.affine, own, affine, crs)
    if len(points) < len(edge_x):
        return None
    # Pixels whose centre is inside: a sliver at the edge would never be valid.
    col0, row0 = (math.ceil(v - 0.5 - 1e-6) for v in points.min(axis=0))
    col1, row1 = (math.floor(v + 0.5 + 1e-6) for v in points.max(axis=0))
    return row0, col0, max(row1, row0 + 1), max(col1, col0 + 1)


def _kernels(rect: Rect, grid: Affine, crs: str | None, own: Affine, own_crs: str | None) -> tuple[float, float]:
    """Return grid pixels per own pixel, along its columns and rows, in the middle of ``rect``."""
    x = np.array([0.0, 1.0, 0.0]) + (rect.col0 + rect.col1 - 1) / 2
    y = np.array([0.0, 0.0, 1.0]) + (rect.row0 + rect.row1 - 1) / 2
    back = map_points(x, y, grid, crs, own, own_crs)
    if len(back) < 3:
        return 1.0, 1.0
    jacobian = np.stack([back[1] - back[0], back[2] - back[0]], axis=1)
    return _kernel(np.hypot(*jacobian[0])), _kernel(np.hypot(*jacobian[1]))


def _kernel(extent: float) -> float:
    # As GDAL does, no wider kernel for less than 5 % of shrinking: it would only blur.
    scale = 1 / float(extent)
    return 1.0 if scale > 0.95 else scale


def scaled(placed: Placed, gsd: float) -> Affine:
    """Return the grid's affine with pixels of ``gsd`` metres on the ground at the mosaic's centre."""
    height, width = placed.shape
    size = ground_size(placed.crs, placed.affine, width / 2, height / 2)
    if size is None:
        raise SettingError(
            f"gsd is {gsd} m, but the images have no CRS, so that their scale is unknown; "
            "leave the option out or give them a CRS"
        )
    along, across = size
    if abs(along / across - 1) < 0.02:
        along = across = math.sqrt(along * across)
    if abs(along / gsd - 1) < 1e-3 and abs(across / gsd - 1) < 1e-3:
        return placed.affine
    return placed.affine @ Affine.scale(gsd / along, gsd / across)


def map_points(
    x: np.ndarray, y: np.ndarray, affine: Affine, crs: str | None, to: Affine, to_crs: str | None
) -> np.ndarray:
    """Map pixel coordinates of one grid to those of another, (n, 2); points without an image are left out."""
    x, y = apply_affine(affine, x, y)
    if crs is not None and to_crs is not None and not same_crs(crs, to_crs):
        x, y = (np.asarray(v) for v in transform_points(crs, to_crs, x.tolist(), y.tolist())[:2])
    points = np.stack(apply_affine(~to, x, y), axis=1)
    inside: np.ndarray = points[np.isfinite(points).all(axis=1)]
    return inside


@lru_cache(maxsize=256)
def same_crs(one: str, other: str) -> bool:
    """Say whether two WKTs name the same CRS."""
    return one == other or RasterioCRS.from_wkt(one) == RasterioCRS.from_wkt(other)


def ground_size(crs: str | None, affine: Affine, col: float, row: float) -> tuple[float, float] | None:
    """Return the metres on the ground that one pixel spans along its row and its column, on the CRS's ellipsoid.

    Measured as geodesics (Karney 2013, by PROJ) through the point ``(col, row)``. A CRS that is not tied to the Earth
    has its unit converted. None without CRS.
    """
    if crs is None:
        return None
    projected = pyproj.CRS.from_wkt(crs).to_2d()
    geodetic, geod = projected.geodetic_crs, projected.get_geod()
    if geodetic is None or geod is None:
        unit = projected.axis_info[0].unit_conversion_factor if projected.axis_info else 1.0
        a, b, _c, d, e, _f = tuple(affine)[:6]
        return math.hypot(a, d) * unit, math.hypot(b, e) * unit
    x, y = apply_affine(
        affine,
        np.array([col - 0.5, col + 0.5, col, col]),
        np.array([row, row, row - 0.5, row + 0.5]),
    )
    lon, lat = pyproj.Transformer.from_crs(projected, geodetic, always_xy=True).transform(x, y)
    # Some geodetic CRSs count in grads.
    degrees = math.degrees(geodetic.axis_info[0].unit_conversion_factor)
    lon, lat = np.asarray(lon) * degrees, np.asarray(lat) * degrees
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise InputError(f"the images lie where {projected.name} is not defined; check their CRS and coordinates")
    _forth, _back, metres = geod.inv(lon[[0, 2]], lat[[0, 2]], lon[[1, 3]], lat[[1, 3]])
    return float(metres[0]), float(metres[1])
