"""``report.html``: one run of ``geoseg segment`` on one page that needs nothing but itself.

The page has no script, and its content policy forbids loading anything: it can be forwarded,
archived, or opened from a disc. File names, model cards and error messages come from outside; all
of them pass through jinja2's autoescape, none around it. Every part is bounded (outlines, pictures,
rows of tables), so that the page of a whole city stays under :data:`PAGE_BYTES`.

Pictures are encoded by rasterio's own drivers, which every installation has.
"""

from __future__ import annotations

import base64
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import shapely
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import ArrayLike, NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from shapely.geometry import Polygon

from geoseg.errors import SettingError
from geoseg.write import replacing

PAGE_BYTES = 6_000_000
"""A page is not larger than this, whatever the run."""

MAX_OUTLINES = 20_000
"""Above this a picture shows buildings as a tint: their outlines would be a solid colour anyway."""

MAX_ROWS = 200
"""Rows of a table; the rest is counted and left to ``run.json``."""

MAX_TEXT = 400
"""Characters of a single value from outside."""

MISSING = "–"
"""What the page shows where ``run.json`` has no value."""

_SPACE = "\N{NARROW NO-BREAK SPACE}"
_UNITS_PER_PIXEL = 10  # outlines are stored as whole tenths of a picture pixel
_TINT_LEVELS = 8
_OUTLINE = (255, 225, 77)
_NO_DATA = (128, 134, 140)
# Anchors of the colour map "inferno" of Stéfan van der Walt and Nathaniel Smith (CC0), even steps.
_INFERNO = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)


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


class AreaHistogram:
    """Building areas as they come, in fixed logarithmic bins: memory does not grow with their number."""

    LOW, HIGH = 1.0, 100_000.0
    """Bounds of the bins; smaller and larger areas are counted in :attr:`below` and :attr:`above`."""
    PER_DECADE = 40
    """Bins per factor of ten: an estimated median is off by at most one bin, 6 %."""

    def __init__(self) -> None:
        decades = round(math.log10(self.HIGH / self.LOW))
        steps = np.arange(decades * self.PER_DECADE + 1)
        # Powers are exact at the decades, where people look.
        whole, part = np.divmod(steps, self.PER_DECADE)
        self.edges: NDArray[np.float64] = self.LOW * 10.0**whole * 10.0 ** (part / self.PER_DECADE)
        self._counts = np.zeros(self.edges.size + 1, dtype=np.int64)
        self.total_area = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, areas: ArrayLike) -> None:
        """Count more areas, of any shape.

        Raises:
            SettingError: an area is negative or not a number.
        """
        values = np.asarray(areas, dtype=np.float64).ravel()
        bad = values[~(np.isfinite(values) & (values >= 0))]
        if bad.size:
            raise SettingError(f"area {bad[0]} is not a size; {bad.size} such values were added")
        if not values.size:
            return
        bins = np.searchsorted(self.edges, values, side="right")
        self._counts += np.bincount(bins, minlength=self._counts.size)
        self.total_area += float(values.sum())
        self._min = min(self._min, float(values.min()))
        self._max = max(self._max, float(values.max()))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of areas in ``[edges[i], edges[i + 1])``."""
        return self._counts[1:-1].copy()

    @property
    def below(self) -> int:
        """Number of areas under :attr:`LOW`."""
        return int(self._counts[0])

    @property
    def above(self) -> int:
        """Number of areas of :attr:`HIGH` or more."""
        return int(self._counts[-1])

    @property
    def total(self) -> int:
        """Number of areas."""
        return int(self._counts.sum())

    @property
    def minimum(self) -> float | None:
        """Smallest area, exact; None without areas."""
        return self._min if self.total else None

    @property
    def maximum(self) -> float | None:
        """Largest area, exact; None without areas."""
        return self._max if self.total else None

    @property
    def mean(self) -> float | None:
        """Mean area, exact; None without areas."""
        return self.total_area / self.total if self.total else None

    @property
    def median(self) -> float | None:
        """Median area, estimated from the bins; None without areas."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float | None:
        """Estimate the area that ``share`` of the buildings do not exceed; None without areas.

        Areas are taken as evenly spread over the logarithm within a bin.
        """
        if not 0 <= share <= 1:
            raise SettingError(f"share is {share}; it must lie from 0 to 1")
        if not self.total:
            return None
        wanted = share * self.total
        reached = np.cumsum(self._counts)
        index = min(int(np.searchsorted(reached, wanted)), self._counts.size - 1)
        inside = (wanted - (reached[index] - self._counts[index])) / max(self._counts[index], 1)
        low = self.edges[index - 1] if index > 0 else min(self._min, self.LOW)
        high = self.edges[index] if index < self.edges.size else max(self._max, self.HIGH)
        if low <= 0:
            return float(np.clip(inside * high, self._min, self._max))
        return float(np.clip(low * math.exp(inside * (math.log(high) - math.log(low))), self._min, self._max))


def write_report(
    path: Path,
    run: Mapping[str, Any],
    overview: Preview,
    details: Sequence[Preview],
    areas_m2: AreaHistogram,
) -> None:
    """Write the page of one run; it appears complete or not at all.

    Args:
        path: Where to write.
        run: What ``run.json`` holds; what is missing shows as a dash.
        overview: The whole mosaic, made small.
        details: Two to four places, best at full resolution.
        areas_m2: The areas of all buildings (square pixels for imagery without georeference).

    Raises:
        OutputError: the file cannot be written.
    """
    page = render(run, overview, details, areas_m2)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def render(
    run: Mapping[str, Any],
    overview: Preview,
    details: Sequence[Preview],
    areas_m2: AreaHistogram,
) -> str:
    """Return the page as text; see :func:`write_report`."""
    ground = _number(_get(run, "mosaic", "ground_gsd_m"))
    in_metres = ground is not None or "mosaic" not in run
    if not overview.outlines and _number(_get(run, "counts", "buildings")):
        overview = replace(overview, outlines=None)
    outputs = _outputs(run)
    share = 1 / max(len(details), 1)
    wide, tall = (_number(_get(run, "mosaic", key)) for key in ("width", "height"))
    pictures = [
        _picture(overview, _OVERVIEW_BUDGET, _overview_gsd(overview, ground, wide, tall)),
        *(_picture(detail, _DETAILS_BUDGET.times(share), ground) for detail in details),
    ]
    return _template().render(
        title=_title(run),
        subtitle=_subtitle(run),
        status=_status(run),
        failures=_Rows.of(run.get("failures"), _failure),
        headline=_headline(run, in_metres),
        overview=pictures[0],
        details=pictures[1:],
        threshold=_threshold(run),
        chart=_chart(areas_m2, in_metres),
        facts=_facts(run),
        settings=_pairs(_get(run, "settings")),
        versions=_pairs(_get(run, "versions")),
        timings=_timings(run),
        model=_model(run),
        inputs=_Rows.of(run.get("inputs"), _input),
        outputs=outputs,
        vector=next((path for _, path, _ in outputs if path.endswith(_VECTORS)), "buildings.gpkg"),
        command=_text(run.get("command"), 4 * MAX_TEXT),
        version=_text(run.get("geoseg")),
        in_metres=in_metres,
        colours=[_css(colour) for colour in _INFERNO],
        outline=_css(_OUTLINE),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("geoseg", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


# --- pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Budget:
    """Bytes that the layers of a picture may take in the page."""

    imagery: float
    probability: float
    overlay: float
    """For each of the two lossless layers: no data, tint."""
    path: float

    def times(self, factor: float) -> _Budget:
        """Return a share of it."""
        return _Budget(factor * self.imagery, factor * self.probability, factor * self.overlay, factor * self.path)


# Together 5.3 MB, which leaves 0.7 MB of PAGE_BYTES for text and tables.
_OVERVIEW_BUDGET = _Budget(1_000_000, 450_000, 120_000, 800_000)
_DETAILS_BUDGET = _Budget(1_500_000, 650_000, 180_000, 400_000)


@dataclass(frozen=True)
class _Picture:
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


def _picture(preview: Preview, budget: _Budget, gsd_m: float | None) -> _Picture:
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
    return _Picture(
        width=width,
        height=height,
        caption=_text(preview.caption),
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
    rings = shapely.get_rings(shapely.simplify(parts, 0.3))
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
    return {level: (*_OUTLINE, round(230 * level / (_TINT_LEVELS - 1))) for level in range(_TINT_LEVELS)}


def _hatch(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    stripe = np.add.outer(np.arange(valid.shape[0]), np.arange(valid.shape[1])) % 12 < 2
    return np.where(valid, 0, 1 + stripe).astype(np.uint8)


def _hatch_colours() -> dict[int, tuple[int, int, int, int]]:
    red, green, blue = _NO_DATA
    return {0: (0, 0, 0, 0), 1: (*_NO_DATA, 255), 2: (red + 24, green + 24, blue + 24, 255)}


def _filled(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    # A flat colour costs nothing and rings less at the border than the black that is often there.
    return np.where(valid, rgb, np.array(_NO_DATA, dtype=np.uint8)[:, None, None])


def _heat(chance: NDArray[Any]) -> NDArray[np.uint8]:
    anchors = np.array(_INFERNO, dtype=np.float64)
    at = np.linspace(0, 255, len(anchors))
    table = [np.rint(np.interp(np.arange(256), at, anchors[:, band])) for band in range(3)]
    return np.stack([channel.astype(np.uint8)[chance] for channel in table])


def _jpeg(pixels: NDArray[np.uint8], budget: float) -> str:
    """Return ``(3, h, w)`` as a data URI within ``budget``: lower quality first, then fewer pixels."""
    while True:
        for quality in (88, 80, 70, 60):
            uri = _data_uri("jpeg", _encoded(pixels, "JPEG", QUALITY=quality))
            if len(uri) <= budget or max(pixels.shape[1:]) <= 16:
                return uri
        pixels = _halved(pixels)


def _png(indices: NDArray[np.uint8], colours: dict[int, tuple[int, int, int, int]], budget: float) -> str:
    """Return ``(h, w)`` palette indices as a data URI within ``budget``, dropping pixels if need be."""
    while True:
        uri = _data_uri("png", _encoded(indices[None], "PNG", colours, ZLEVEL=6))
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


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _overview_gsd(overview: Preview, ground: float | None, wide: float | None, tall: float | None) -> float | None:
    if not (ground and wide and tall):
        return None
    height, width = overview.shape
    # An overview of another shape than the mosaic's is not of the whole of it. Sides were rounded.
    if abs(wide / width - tall / height) > 0.02 * wide / width + wide / width**2:
        return None
    return ground * wide / width


def _scale_bar(width: int, gsd_m: float | None) -> tuple[float, str | None]:
    """Return the length in pixels and the label of a scale bar of about a fifth of the width."""
    if not gsd_m or gsd_m <= 0:
        return 0.0, None
    most = width * gsd_m / 5
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)) * power
    label = f"{length / 1000:g}{_SPACE}km" if length >= 1000 else f"{length:g}{_SPACE}m"
    return length / gsd_m, label


# --- histogram ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chart:
    """Bars and axes in the coordinates of an SVG of ``WIDTH`` × ``HEIGHT`` units."""

    WIDTH = 1040
    HEIGHT = 300
    LEFT, TOP, BASE = 58, 26, 252

    bars: tuple[tuple[float, float, float, float, str], ...]
    """x, y, width, height, tooltip."""
    x_ticks: tuple[tuple[float, str], ...]
    x_minor: tuple[float, ...]
    y_ticks: tuple[tuple[float, str], ...]
    median_x: float | None
    median: str
    unit: str
    facts: tuple[tuple[str, str], ...]
    note: str


def _chart(areas: AreaHistogram, in_metres: bool) -> _Chart:
    unit = "m²" if in_metres else "px²"
    merge = areas.PER_DECADE // 10
    counts = areas.counts.reshape(-1, merge).sum(axis=1)
    edges = areas.edges[::merge]
    right = _Chart.WIDTH - 14
    decades = math.log10(areas.HIGH / areas.LOW)

    def x_of(area: float) -> float:
        inner = right - _Chart.LEFT
        return round(_Chart.LEFT + inner * math.log10(area / areas.LOW) / decades, 2)

    ticks = _nice_ticks(int(counts.max()))
    height = (_Chart.BASE - _Chart.TOP) / ticks[-1]
    bars = []
    for number, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        x, tall = x_of(low), round(number * height, 2)
        if number:
            text = f"{_size(low)} to {_size(high)}{_SPACE}{unit}: {_count(number)} buildings"
            box = (x + 0.6, round(_Chart.BASE - tall, 2), round(x_of(high) - x - 1.2, 2), tall)
            bars.append((*box, text))
    powers = [10.0**power for power in range(round(decades) + 1)]
    minor = [step * power for power in powers[:-1] for step in (2, 5)]
    median = areas.median
    inside = median is not None and areas.LOW <= median <= areas.HIGH
    outside = [
        f"{_count(number)} {side} {_size(bound)}{_SPACE}{unit}"
        for number, side, bound in (
            (areas.below, "smaller than", areas.LOW),
            (areas.above, "of at least", areas.HIGH),
        )
        if number
    ]
    return _Chart(
        bars=tuple(bars),
        x_ticks=tuple((x_of(power), _size(power)) for power in powers),
        x_minor=tuple(x_of(area) for area in minor),
        y_ticks=tuple((round(_Chart.BASE - tick * height, 2), _count(tick)) for tick in ticks),
        median_x=x_of(median) if median is not None and inside else None,
        median=_sized(median, unit),
        unit=unit,
        facts=(
            ("Smallest", _sized(areas.minimum, unit)),
            ("Median (estimated)", _sized(median, unit)),
            ("Mean", _sized(areas.mean, unit)),
            ("19 of 20 are smaller than", _sized(areas.quantile(0.95), unit)),
            ("Largest", _sized(areas.maximum, unit)),
        ),
        note=f"Not drawn: {' and '.join(outside)}." if outside else "",
    )


def _nice_ticks(most: int) -> list[int]:
    """Return whole numbers from 0 to at least ``most``, three to six of them, evenly spaced."""
    step = 1
    while step * 5 < most:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return list(range(0, max(most, 2) + step, step))


# --- texts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """The first rows of a table, and how many more there are."""

    rows: tuple[tuple[str, ...], ...]
    more: int

    @classmethod
    def of(cls, items: Any, row: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> _Rows:
        every = list(_mappings(items))
        return cls(tuple(map(row, every[:MAX_ROWS])), max(len(every) - MAX_ROWS, 0))


@dataclass(frozen=True)
class _Model:
    name: str
    facts: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, str, str], ...]
    """Name, licence, anything else."""
    metrics: tuple[tuple[str, str], ...]


def _get(run: Any, *keys: str) -> Any:
    """Follow keys into nested mappings; None where they end early."""
    for key in keys:
        if not isinstance(run, Mapping):
            return None
        run = run.get(key)
    return run


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _text(value: Any, limit: int = MAX_TEXT) -> str:
    """Return anything as one short line of printable text."""
    if value is None or value == "" or value == [] or value == {}:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return _short("; ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()), limit)
    if isinstance(value, list | tuple):
        return _short(", ".join(_text(item) for item in value), limit)
    return _short("".join(map(_harmless, str(value)[: limit + 1])), limit)


def _harmless(char: str) -> str:
    # Control characters, and the halves of characters that stand for undecodable bytes in file
    # names, cannot be in a page; direction marks would reorder what follows them. The two joiners
    # are part of how some scripts are written.
    if char in "\n\r\t":
        return " "
    if unicodedata.category(char).startswith("C") and char not in "\u200c\u200d":
        return "\N{REPLACEMENT CHARACTER}"
    return char


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{round(value):,}".replace(",", _SPACE)


def _size(value: float) -> str:
    """Return a number with about three figures, never in powers of ten."""
    if value >= 100 or value == round(value):
        return _count(value)
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _sized(value: float | None, unit: str) -> str:
    return MISSING if value is None else f"{_size(value)}{_SPACE}{unit}"


def _percent(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return MISSING
    share = 100 * part / whole
    return f"{share:.3g}{_SPACE}%" if share < 99.95 or share == 100 else f"{share:.5g}{_SPACE}%"


def _area(value: float | None) -> str:
    """Return square metres in the unit that reads best."""
    if value is None:
        return MISSING
    for unit, size in (("km²", 1e6), ("ha", 1e4)):
        if value >= size:
            return f"{_figures(value / size)}{_SPACE}{unit}"
    return _sized(value, "m²")


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 100 else _count(value)


def _duration(seconds: float | None) -> str:
    if seconds is None or seconds < 0:
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{_SPACE}h {minutes}{_SPACE}min"
    return f"{minutes}{_SPACE}min {rest}{_SPACE}s"


def _bytes(value: float | None) -> str:
    if value is None:
        return MISSING
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g}{_SPACE}{unit}"
        value /= 1000
    return f"{_figures(value)}{_SPACE}TB"


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _when(value: Any) -> str:
    moment = _moment(value)
    if moment is None:
        return _text(value)
    zone = f" {moment.tzname()}" if moment.tzname() else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def _took(run: Mapping[str, Any]) -> float | None:
    started, finished = _moment(run.get("started")), _moment(run.get("finished"))
    if started is None or finished is None or (started.tzinfo is None) != (finished.tzinfo is None):
        return None
    return (finished - started).total_seconds()


def _rate(value: Any) -> str:
    rate = _number(value)
    if rate is None:
        return MISSING
    scaled, unit = (rate / 1e6, "Mpx/s") if rate >= 1e6 else (rate / 1e3, "kpx/s")
    return f"{scaled:.3g}{_SPACE}{unit}" if scaled < 1000 else f"{_count(scaled)}{_SPACE}{unit}"


def _name(path: Any) -> str:
    return _text(str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or path)


def _title(run: Mapping[str, Any]) -> str:
    paths = [str(item["path"]) for item in _mappings(run.get("inputs")) if item.get("path")]
    if not paths:
        return "Building footprints"
    if len(paths) == 1:
        return f"Building footprints: {_short(_name(paths[0]), 80)}"
    folders = {path.replace("\\", "/").rpartition("/")[0] for path in paths}
    name, rest = _name(folders.pop()), f"{_count(len(paths))} files"
    if folders or name == MISSING:
        name, rest = _name(paths[0]), f"and {_count(len(paths) - 1)} more"
    return f"Building footprints: {_short(name, 80)} ({rest})"


def _subtitle(run: Mapping[str, Any]) -> str:
    parts = [_when(run.get("finished") or run.get("started"))]
    parts += [_text(_get(run, "model", "name")), _text(_get(run, "mosaic", "crs"), 60)]
    return " · ".join(part for part in parts if part != MISSING)


def _threshold(run: Mapping[str, Any]) -> float | None:
    chosen = _number(_get(run, "settings", "threshold"))
    return _number(_get(run, "model", "threshold")) if chosen is None else chosen


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Mapping))


def _failure(item: Mapping[str, Any]) -> tuple[str, ...]:
    where = _text(item["path"]) if "path" in item else f"block {_text(item.get('block'))}"
    return where, _text(item.get("message"))


def _status(run: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the class and the text of the banner."""
    failures = len(list(_mappings(run.get("failures"))))
    counts = run.get("counts")
    blocks, failed = (_number(_get(counts, key)) for key in ("blocks", "blocks_failed"))
    if failures or failed:
        missing = f"Blocks missing: {_count(failed)} of {_count(blocks)}. " if failed else ""
        number = max(failures, int(failed or 0))
        problems = f"{_count(number)} problem{'s' if number != 1 else ''}"
        return "bad", (
            f"Incomplete: {problems}. {missing}Everything else is done; the same command, run again,"
            " tries only what is missing."
        )
    if blocks is None:
        return None
    return "good", f"Complete: {_count(blocks)} of {_count(blocks)} blocks, no failures."


def _headline(run: Mapping[str, Any], in_metres: bool) -> list[tuple[str, str, str]]:
    """Return figure, what it is, and a smaller line."""
    counts, mosaic = run.get("counts"), run.get("mosaic")
    valid = _number(_get(counts, "valid_pixels"))
    built = _number(_get(counts, "building_pixels"))
    number = _number(_get(counts, "buildings"))
    area = _number(_get(counts, "building_area_m2"))
    width, height = (_number(_get(mosaic, key)) for key in ("width", "height"))
    gsd = _number(_get(mosaic, "ground_gsd_m"))
    ground = valid * gsd**2 if valid is not None and gsd else None
    density = f"{_count(number / ground * 1e6)} per km²" if number and ground else ""
    pixels = width * height if width and height else None
    size = MISSING if pixels is None else f"{_figures(pixels / 1e6)}{_SPACE}Mpx"
    grid = f"{_count(width)} × {_count(height)}" if pixels else ""
    took = _took(run)
    return [
        (_count(number), "buildings", density),
        (
            _area(area) if in_metres else _sized(area, "px²"),
            "footprint area",
            f"{_sized(area / number, 'm²' if in_metres else 'px²')} each on average"
            if area is not None and number
            else "",
        ),
        (_percent(built, valid), "built up", f"of {_area(ground)} imaged" if ground else ""),
        (size, "of imagery", " · ".join(filter(None, (grid, _metres(gsd) if gsd else "")))),
        (
            _rate(run.get("rate_px_s")),
            "speed",
            f"{_duration(took)} in all" if took is not None else "",
        ),
    ]


def _metres(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}{_SPACE}m"


def _pixels(value: Any) -> str:
    return _text(value) if _number(value) is None else f"{_text(value)}{_SPACE}px"


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    mosaic, counts = run.get("mosaic"), run.get("counts")
    number = {key: _number(value) for key, value in _mapping(counts).items()}
    share = _number(_get(mosaic, "data_share"))
    inputs = run.get("inputs")
    size = [_number(item.get("size")) for item in _mappings(inputs)]
    known = [part for part in size if part is not None]
    done = ", ".join(
        f"{_count(number[key])} {text}"
        for key, text in (
            ("blocks_computed", "computed"),
            ("blocks_resumed", "resumed"),
            ("blocks_failed", "failed"),
        )
        if number.get(key) is not None
    )
    width, height = (_number(_get(mosaic, key)) for key in ("width", "height"))
    return [
        ("Files", _count(len(inputs)) if isinstance(inputs, list | tuple) else MISSING),
        ("Size on disk", _bytes(sum(known)) if known else MISSING),
        ("Grid", f"{_count(width)} × {_count(height)} px" if width and height else MISSING),
        ("Reference system", _text(_get(mosaic, "crs"))),
        ("Pixel size in that system", _text(_get(mosaic, "pixel_size"))),
        ("Pixel size on the ground", _metres(_number(_get(mosaic, "ground_gsd_m")))),
        ("Pixels with data", _percent(share, 1.0)),
        ("Threshold", _text(_threshold(run))),
        ("Started", _when(run.get("started"))),
        ("Finished", _when(run.get("finished"))),
        ("Blocks", _count(number.get("blocks")) + (f" ({done})" if done else "")),
        ("Workers", _text(run.get("workers"))),
        ("Device, precision", f"{_text(run.get('device'))}, {_text(run.get('precision'))}"),
        ("Halo, taper", ", ".join(_pixels(run.get(key)) for key in ("halo", "taper"))),
    ]


def _pairs(value: Any) -> list[tuple[str, str]]:
    items = list(_mapping(value).items())[:MAX_ROWS]
    return [(_label(key), _text(item)) for key, item in items]


def _label(key: Any) -> str:
    return _text(str(key).replace("_", " "))


def _timings(run: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return stage, time, and length of its bar in percent of the longest."""
    items = [(_text(key), _number(value)) for key, value in _mapping(run.get("timings")).items()]
    known = [(key, value) for key, value in items if value is not None and value >= 0][:MAX_ROWS]
    longest = max((value for _, value in known), default=0) or 1
    return [(key, _duration(value), round(100 * value / longest, 2)) for key, value in known]


def _model(run: Mapping[str, Any]) -> _Model:
    card = _mapping(run.get("model"))
    gsd = _number(card.get("gsd_m"))
    shown = {"name", "gsd_m", "threshold", "licence", "training_data", "metrics", "sha256"}
    rest = [(_label(key), _text(value)) for key, value in card.items() if key not in shown]
    return _Model(
        name=_text(card.get("name")),
        facts=(
            ("Licence of the weights", _text(card.get("licence"))),
            ("Trained for", f"{_metres(gsd)} a pixel" if gsd else MISSING),
            ("Threshold", _text(card.get("threshold"))),
            ("SHA-256", _text(card.get("sha256"))),
            *(pair for pair in rest[:MAX_ROWS] if pair[1] != MISSING),
        ),
        sources=tuple(_sources(card.get("training_data")))[:MAX_ROWS],
        metrics=tuple(_pairs(card.get("metrics"))),
    )


def _sources(value: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(value, list | tuple):
        return
    for item in value:
        if isinstance(item, Mapping):
            rest = {key: part for key, part in item.items() if key not in ("name", "licence")}
            filled = [_text(part) for part in rest.values() if _text(part) != MISSING]
            yield _text(item.get("name")), _text(item.get("licence")), " · ".join(filled)
        else:
            yield _text(item), MISSING, ""


def _input(item: Mapping[str, Any]) -> tuple[str, ...]:
    rest = {key: part for key, part in item.items() if key not in ("path", "size")}
    size = _number(item.get("size"))
    shown = _text(item.get("size")) if size is None else _bytes(size)
    return _text(item.get("path")), shown, _text(rest) if rest else ""


_VECTORS = (".gpkg", ".fgb", ".parquet", ".geojson")
_MEANINGS = {
    ".gpkg": "building footprints, one polygon per building",
    ".fgb": "building footprints as FlatGeobuf",
    ".parquet": "building footprints as GeoParquet",
    ".geojson": "building footprints as GeoJSON",
    "mask.tif": "building mask, 255 = building",
    "probability.tif": "probability of building, 255 = 1.0",
    "report.html": "this page",
    "run.json": "everything on this page, for programs",
}


def _outputs(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return link, path and meaning of each result; paths that leave the folder get no link."""
    found = []
    for path in list(_mapping(run.get("outputs")).values())[:MAX_ROWS]:
        if not isinstance(path, str) or not path:
            continue
        plain = path.replace("\\", "/")
        inside = not plain.startswith("/") and ".." not in plain.split("/")
        # The leading ./ and the quoted colon keep a name such as "javascript:…" a file name.
        link = "./" + quote(plain, errors="surrogateescape") if inside else ""
        name = plain.rpartition("/")[2]
        suffix = "." + name.rpartition(".")[2]
        found.append((link, _text(plain), _MEANINGS.get(name, _MEANINGS.get(suffix, ""))))
    return found
