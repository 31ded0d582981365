"""What the report shows of a run, gathered in bounded memory while the results pass by.

:class:`Tally` watches the blocks, :class:`Drawn` the finished footprints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.aoi import apply_affine
from geoseg.areas import AreaHistogram
from geoseg.footprints import Footprints
from geoseg.journal import BlockRecord
from geoseg.layout import ground_size
from geoseg.overview import FOOTPRINTS_BUDGET, Overview, Pyramids
from geoseg.packing import Packer
from geoseg.picture import Preview
from geoseg.segment import Plan, crs_name
from geoseg.sights import DETAIL, DETAILS, remember
from geoseg.tiling import Rect, Tiling


@dataclass
class Tally:
    """What the pass over the blocks counts and picks for the report, in bounded memory."""

    shrink: int
    """Pixels of the mosaic for one of the overview, along a side."""
    overview: NDArray[np.uint8]
    """``(3, h, w)`` imagery."""
    valid: int = 0
    building: int = 0
    forward: int = 0
    devices: set[str] = field(default_factory=set)
    precisions: set[str] = field(default_factory=set)
    engines: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    problems: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    densest: list[list[int]] = field(default_factory=list)
    """As of :func:`geoseg.sights.counted`."""

    @classmethod
    def of(cls, tiling: Tiling, shrink: int) -> Tally:
        """Start with an empty overview of the right size."""
        height, width = (-(-side // shrink) for side in tiling.shape)
        return cls(shrink, np.zeros((3, height, width), np.uint8))

    def add(self, core: Rect, record: BlockRecord) -> None:
        """Count one block."""
        for problem in record.facts.get("problems", []):
            where = "" if problem["block"] is None else f"block {tuple(problem['block'])} "
            text = f"{where}unreadable ({problem['message']})"
            self.problems[problem["path"], text] = {"path": problem["path"], "message": text}
        if record.empty:
            return
        self.valid += record.facts["valid_pixels"]
        self.building += record.facts["building_pixels"]
        self.forward += record.facts["forward_pixels"]
        self.devices.add(record.facts["device"])
        self.precisions.add(record.facts["precision"])
        self.engines.add(record.facts["engine"])
        for name, value in record.facts["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        row, col = core.row0 // self.shrink, core.col0 // self.shrink
        height, width = (-(-side // self.shrink) for side in core.shape)
        small = fitted(record.thumbnail, (height, width))
        if small.shape == self.overview.shape:
            self.overview = small  # a single block's, which is as large as the mosaic
        else:
            self.overview[:, row : row + height, col : col + width] = small
        for square in record.facts["densest"]:
            remember(self.densest, square)

    def details(self) -> list[Rect]:
        """Return the chosen squares, no two touching while there are others."""
        ranked = [Rect(*place) for _, *place in sorted(self.densest, key=lambda entry: (-entry[0], entry[1:]))]
        chosen: list[Rect] = []
        for rect in ranked:
            near = Rect(rect.row0 - DETAIL, rect.col0 - DETAIL, rect.row1 + DETAIL, rect.col1 + DETAIL)
            if len(chosen) < DETAILS and all(near & other is None for other in chosen):
                chosen.append(rect)
        return chosen or ranked[:1]


class Drawn:
    """Watches the finished footprints go by and keeps what the report draws, in bounded memory."""

    def __init__(self, planned: Plan, tally: Tally, probability: Path) -> None:
        """Choose the report's pictures from what the pass over the blocks saw; ``probability`` is its raster."""
        self._planned, self._tally, self._probability = planned, tally, probability
        self._rects = tally.details()
        self._inverse = ~planned.mosaic.transform
        self._boxes = [shapely.box(r.col0, r.row0, r.col1, r.row1) for r in self._rects]
        self._near: list[list[shapely.Polygon]] = [[] for _ in self._rects]
        self._packer = Packer(FOOTPRINTS_BUDGET)
        self.areas = AreaHistogram()
        # The footprints take about as long, and little of it in this process.
        apart = ThreadPoolExecutor(1, "pyramids")
        self._planes = apart.submit(read_overview, probability, tally.shrink)
        self._pyramids = apart.submit(self._encoded)
        apart.shutdown(wait=False)

    def _encoded(self) -> Pyramids:
        grey, seen = self._planes.result()
        return Pyramids.of(self._tally.overview, seen, grey)

    def watch(self, batches: Iterable[Footprints]) -> Iterator[Footprints]:
        """Yield the batches unchanged."""
        for batch in batches:
            self.areas.add(batch.area_m2)
            pixels = _in_pixels(batch.polygons, self._inverse)
            for kept, box in zip(self._near, self._boxes, strict=True):
                kept.extend(pixels[shapely.intersects(pixels, box)])
            self._packer.add(pixels, batch.id, batch.area_m2, batch.probability)
            yield batch

    def previews(self) -> tuple[Overview, list[Preview]]:
        """Return the overview and the details."""
        tally, mosaic = self._tally, self._planned.mosaic
        rows, cols = mosaic.shape
        grey, seen = self._planes.result()
        overview = Overview(
            rgb=tally.overview,
            valid=seen,
            probability=grey,
            shrink=tally.shrink,
            shape=mosaic.shape,
            footprints=self._packer.packed(),
            transform=mosaic.transform if mosaic.georeferenced else None,
            crs=crs_name(mosaic) if mosaic.crs is not None else "",
            geographic=mosaic.crs is not None and mosaic.crs.geographic,
            ground=ground_size(mosaic.wkt, mosaic.transform, cols / 2, rows / 2),
            pyramids=self._pyramids.result(),
        )
        return overview, [self._detail(i) for i in range(len(self._rects))]

    def _detail(self, number: int) -> Preview:
        import rasterio

        from geoseg.raster import quietly

        rect = self._rects[number]
        read = self._planned.mosaic.read(rect)
        rgb = np.rint(255 * self._planned.job.scaling.unit(read.values)).astype(np.uint8)
        with quietly(rasterio.open, self._probability) as raster:
            grey = raster.read(1, window=rect.window)
        shifted = _in_pixels(np.array(self._near[number], dtype=object), Affine.translation(-rect.col0, -rect.row0))
        return Preview(
            rgb,
            read.valid,
            list(shifted),
            f"Rows {rect.row0}–{rect.row1 - 1}, columns {rect.col0}–{rect.col1 - 1}, full resolution",
            grey,
            (rect.col0, rect.row0, rect.col1, rect.row1),
        )


def _in_pixels(polygons: NDArray[np.object_], affine: Affine) -> NDArray[np.object_]:
    moved: NDArray[np.object_] = shapely.transform(
        polygons, lambda xy: np.column_stack(apply_affine(affine, xy[:, 0], xy[:, 1]))
    )
    return moved


def read_overview(probability: Path, shrink: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return probability (255 = 1.0) and validity, ``(h, w)``, as the raster's overviews have them.

    Args:
        probability: The raster.
        shrink: Its pixels for one of what is returned, along a side: a power of two.
    """
    import rasterio

    from geoseg.raster import quietly

    options = {"overview_level": shrink.bit_length() - 2} if shrink > 1 else {}
    with quietly(rasterio.open, probability, **options) as raster:
        return raster.read(1), raster.read_masks(1) > 0


def fitted(thumbnail: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return ``(3, h, w)`` at a shape, by nearest neighbour: a block kept from before may be of another overview."""
    if thumbnail.shape[1:] == shape:
        return thumbnail
    rows, cols = (np.arange(side) * had // side for side, had in zip(shape, thumbnail.shape[1:], strict=True))
    return thumbnail[:, rows[:, None], cols]
