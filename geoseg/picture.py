"""A picture of the report: imagery, probability and outlines, encoded to stand in the page within a number of bytes.

Pictures are encoded by rasterio's own drivers, which every installation has.
"""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from shapely.geometry import Polygon

from geoseg import wording as say
from geoseg.errors import SettingError

MAX_OUTLINES = 20_000
"""Above this a picture shows buildings as a tint: their outlines would be a solid colour anyway."""

OUTLINE = (255, 225, 77)
"""Red, green and blue of outlines and tint."""

INFERNO = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)
"""Anchors of the colour map "inferno" of Stéfan van der Walt and Nathaniel Smith (CC0), even steps."""

SIMPLIFIED_CORNERS = 4000
"""An outline with more is not simplified: GEOS recurses, as deep as there are corners at worst, and a giant would
overflow the stack and end the process."""

_UNITS_PER_PIXEL = 10  # outlines are stored as whole tenths of a picture pixel
_TINT_LEVELS = 8
NO_DATA = (128, 134, 140)


@dataclass(frozen=True)
class Preview:
    """One picture: imagery with outlines drawn over it."""

    rgb: NDArray[np.uint8]
    """``(3, h, w)``: red, green, blue."""
    valid: NDArray[np.bool_]
    """``(h, w)``, True where there is data."""
    outlines: Sequence[Polygon] | None
    """Polygons or multipolygons in the picture's own pixel coordinates: x right, y down, pixel (r, c)
    covers [c, c+1] × [r, r+1]. They may reach beyond the picture. None when there are too many to
    hold: the probability stands in for them."""
    caption: str
    """One line under the picture."""
    probability: NDArray[np.uint8] | None = None
    """``(h, w)``, 255 = certain; None when there is none to show."""
    place: tuple[int, int, int, int] | None = None
    """Left, upper, right and lower side in pixels of the mosaic; None where it is of no one place."""

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[0] != 3 or 0 in self.rgb.shape:
            raise SettingError(f"rgb has shape {self.rgb.shape}; it must be (3, h, w), not empty")
        grids = {"rgb": (self.rgb, np.uint8), "valid": (self.valid, np.bool_)}
        if self.probability is not None:
            grids["probability"] = (self.probability, np.uint8)
        for name, (array, dtype) in grids.items():
            if array.dtype != dtype:
                raise SettingError(f"{name} is {array.dtype}; it must be {np.dtype(dtype)}")
            if array.shape[-2:] != self.shape or (name != "rgb" and array.ndim != 2):
                raise SettingError(f"{name} has shape {array.shape}; rgb has {self.rgb.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[1], self.rgb.shape[2]


@dataclass(frozen=True)
class Budget:
    """Bytes that the layers of a picture may take in the page."""

    imagery: float
    probability: float
    overlay: float
    """For each of the two lossless layers: no data, tint."""
    path: float

    def times(self, factor: float) -> Budget:
        """Return a share of it."""
        return Budget(factor * self.imagery, factor * self.probability, factor * self.overlay, factor * self.path)


@dataclass(frozen=True)
class Picture:
    """A preview as the template draws it; data URIs are None where there is no such layer."""

    width: int
    height: int
    caption: str
    imagery: str
    probability: str | None
    no_data: str | None
    tint: str | None
    path: str | None
    view_box: str
    scale_percent: float
    scale_label: str | None


def draw_picture(preview: Preview, budget: Budget, gsd_m: float | None) -> Picture:
    """Encode a preview within ``budget``; ``gsd_m`` is metres per pixel of the picture, for the scale bar."""
    height, width = preview.shape
    path = outline_path(preview.outlines, preview.shape, int(budget.path))
    heat = tint = None
    if preview.probability is not None:
        heat = _jpeg(_heat(np.where(preview.valid, preview.probability, 0)), budget.probability)
    if path is None:
        tint = _png(_levels(_cover(preview)), _tint_colours(), budget.overlay)
    no_data = None
    if not preview.valid.all():
        no_data = _png(_hatch(preview.valid), _hatch_colours(), budget.overlay)
    length, label = _scale_bar(width, gsd_m)
    return Picture(
        width=width,
        height=height,
        caption=say.text(preview.caption),
        imagery=_jpeg(_filled(preview.rgb, preview.valid), budget.imagery),
        probability=heat,
        no_data=no_data,
        tint=tint,
        path=path or None,
        view_box=f"0 0 {width * _UNITS_PER_PIXEL} {height * _UNITS_PER_PIXEL}",
        scale_percent=round(100 * length / width, 3),
        scale_label=label,
    )


def outline_path(outlines: Sequence[Polygon] | None, shape: tuple[int, int], limit: int) -> str | None:
    """Return polygons as the data of one SVG path in tenths of a pixel, simplified to what shows.

    Args:
        outlines: See :attr:`Preview.outlines`.
        shape: Height and width of the picture; polygons wholly outside are left out.
        limit: Characters that the path may have.

    Returns:
        The path, empty when no polygon is inside; None when there are too many to draw.
    """
    if outlines is None or len(outlines) > MAX_OUTLINES:
        return None
    parts = shapely.get_parts(np.asarray(list(outlines), dtype=object))
    height, width = shape
    parts = parts[shapely.intersects(shapely.envelope(parts), shapely.box(0, 0, width, height))]
    giants = shapely.get_num_coordinates(parts) > SIMPLIFIED_CORNERS
    around = shapely.clip_by_rect(parts[giants], -9, -9, width + 9, height + 9)
    rings = shapely.get_rings(np.concatenate([shapely.simplify(parts[~giants], 0.3), shapely.get_parts(around)]))
    points, owner = shapely.get_coordinates(rings, return_index=True)
    whole = np.rint(points * _UNITS_PER_PIXEL).astype(np.int64)
    starts = np.flatnonzero(np.diff(owner)) + 1
    pieces: list[str] = []
    used = 0
    for ring in np.split(whole, starts):
        if len(ring):
            pieces.append(_ring(ring))
            used += len(pieces[-1])
        if used > limit:
            return None
    return "".join(pieces)


def _ring(points: NDArray[np.int64]) -> str:
    # Relative moves are half as long as coordinates; the last point is the first again.
    steps = np.diff(points[:-1], axis=0)
    steps = steps[steps.any(axis=1)]
    moves = "".join(f"{x}{y:+d}" if x < 0 else f" {x}{y:+d}" for x, y in steps.tolist())
    return f"M{points[0, 0]} {points[0, 1]}l{moves.lstrip() or '1 0'}z"


def _cover(preview: Preview) -> NDArray[np.uint8]:
    """Return 0 to 255 for how much of each pixel is building."""
    if preview.probability is not None:
        cover = preview.probability
    else:
        shapes = [part for part in preview.outlines or () if not part.is_empty]
        cover = np.zeros(preview.shape, dtype=np.uint8)
        if shapes:
            rasterize(shapes, out=cover, default_value=255)
    return np.where(preview.valid, cover, 0).astype(np.uint8)


def _levels(cover: NDArray[Any]) -> NDArray[np.uint8]:
    # Few levels compress well, and the eye tells no more of them apart.
    return np.asarray(cover.astype(np.uint16) * _TINT_LEVELS // 256, dtype=np.uint8)


def _tint_colours() -> dict[int, tuple[int, int, int, int]]:
    return {level: (*OUTLINE, round(230 * level / (_TINT_LEVELS - 1))) for level in range(_TINT_LEVELS)}


def _hatch(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    stripe = np.add.outer(np.arange(valid.shape[0]), np.arange(valid.shape[1])) % 12 < 2
    return np.where(valid, 0, 1 + stripe).astype(np.uint8)


def _hatch_colours() -> dict[int, tuple[int, int, int, int]]:
    red, green, blue = NO_DATA
    return {0: (0, 0, 0, 0), 1: (*NO_DATA, 255), 2: (red + 24, green + 24, blue + 24, 255)}


def _filled(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    # A flat colour costs nothing and rings less at the border than the black that is often there.
    return np.where(valid, rgb, np.array(NO_DATA, dtype=np.uint8)[:, None, None])


def _heat(chance: NDArray[Any]) -> NDArray[np.uint8]:
    anchors = np.array(INFERNO, dtype=np.float64)
    at = np.linspace(0, 255, len(anchors))
    table = [np.rint(np.interp(np.arange(256), at, anchors[:, band])) for band in range(3)]
    return np.stack([channel.astype(np.uint8)[chance] for channel in table])


def _jpeg(pixels: NDArray[np.uint8], budget: float) -> str:
    """Return ``(3, h, w)`` as a data URI within ``budget``: lower quality first, then fewer pixels."""
    while True:
        for quality in (88, 80, 70, 60):
            uri = data_uri("jpeg", _encoded(pixels, "JPEG", QUALITY=quality))
            if len(uri) <= budget or max(pixels.shape[1:]) <= 16:
                return uri
        pixels = _halved(pixels)


def _png(indices: NDArray[np.uint8], colours: dict[int, tuple[int, int, int, int]], budget: float) -> str:
    """Return ``(h, w)`` palette indices as a data URI within ``budget``, dropping pixels if need be."""
    while True:
        uri = data_uri("png", _encoded(indices[None], "PNG", colours, ZLEVEL=6))
        if len(uri) <= budget or max(indices.shape) <= 16:
            return uri
        indices = indices[::2, ::2]


def _encoded(
    pixels: NDArray[np.uint8],
    driver: str,
    colours: dict[int, tuple[int, int, int, int]] | None = None,
    **options: Any,
) -> bytes:
    bands, height, width = pixels.shape
    profile = {"count": bands, "height": height, "width": width, "dtype": "uint8", **options}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver, **profile) as picture:
            picture.write(pixels)
            if colours is not None:
                picture.write_colormap(1, colours)
        return bytes(memory.getbuffer())


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, height, width = pixels.shape
    even = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    blocks = even.reshape(3, even.shape[1] // 2, 2, even.shape[2] // 2, 2)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)


def data_uri(kind: str, content: bytes) -> str:
    """Return an image of a kind (``jpeg``) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _scale_bar(width: int, gsd_m: float | None) -> tuple[float, str | None]:
    """Return the length in pixels and the label of a scale bar of about a fifth of the width."""
    if not gsd_m or gsd_m <= 0:
        return 0.0, None
    most = width * gsd_m / 5
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)) * power
    label = f"{length / 1000:g}{say.SPACE}km" if length >= 1000 else f"{length:g}{say.SPACE}m"
    return length / gsd_m, label
