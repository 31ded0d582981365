"""The report's map: the whole mosaic as tiles of pictures and as footprints, for the page's script to draw.

Everything has its budget: the map of a whole city takes no more of the page than that of a district, it only shows
less. What is left out, the page says.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoseg import wording as say
from geoseg.errors import SettingError
from geoseg.packing import AREA_STEPS, CHANCE_STEPS, UNITS, Packed
from geoseg.picture import INFERNO, OUTLINE, Preview
from geoseg.pyramid import TILE, Level, Plane, build, reduced

IMAGERY_BUDGET = 6_400_000
"""Characters of the page for the tiles of the imagery."""
PROBABILITY_BUDGET = 1_500_000
"""… for those of the probability."""
FOOTPRINTS_BUDGET = 3_000_000
"""Bytes for the packed footprints, which are a third more characters: enough for about 75 000 of the usual kind."""

STILL = 900
"""Longest side of the picture that stands in where scripts do not run."""


@dataclass(frozen=True)
class Pyramids:
    """The map's pictures as tiles, which take a while to encode."""

    imagery: tuple[Level, ...]
    probability: tuple[Level, ...]

    @classmethod
    def of(cls, rgb: NDArray[np.uint8], valid: NDArray[np.bool_], probability: NDArray[np.uint8]) -> Pyramids:
        """Encode the pictures of an :class:`Overview`."""
        imagery = build(Plane(rgb, valid), IMAGERY_BUDGET)
        return cls(imagery, build(Plane(probability, np.ones_like(valid)), PROBABILITY_BUDGET))


@dataclass(frozen=True)
class Overview:
    """The whole mosaic, made small, with its footprints."""

    rgb: NDArray[np.uint8]
    """``(3, h, w)``: red, green, blue."""
    valid: NDArray[np.bool_]
    """``(h, w)``, True where there is data."""
    probability: NDArray[np.uint8]
    """``(h, w)``, 255 = certain."""
    shrink: int
    """Pixels of the mosaic for one of the pictures, along a side."""
    shape: tuple[int, int]
    """Rows and columns of the mosaic; the pictures cover them and up to ``shrink - 1`` more."""
    footprints: Packed
    """In pixels of the mosaic."""
    transform: Affine | None = None
    """From (column, row) of the mosaic to coordinates on the map; None without georeference."""
    crs: str = ""
    """Name of the reference system of these coordinates."""
    geographic: bool = False
    """True where they are longitude and latitude."""
    ground: tuple[float, float] | None = None
    """Metres on the ground of a pixel of the mosaic, along its row and along its column; None where not known."""
    pyramids: Pyramids | None = None
    """Where they have been made already."""

    def __post_init__(self) -> None:
        expected = tuple(-(-side // self.shrink) for side in self.shape)
        for name, array in (("rgb", self.rgb[0]), ("valid", self.valid), ("probability", self.probability)):
            if array.shape != expected or 0 in expected:
                raise SettingError(
                    f"{name} has shape {array.shape}; a mosaic of {self.shape} shrunk {self.shrink} times"
                )

    @property
    def aspect(self) -> float:
        """Height of a pixel in widths, as it is shown."""
        if not self.ground or min(self.ground) <= 0:
            return 1.0
        ratio = self.ground[1] / self.ground[0]
        return 1.0 if abs(ratio - 1) < 0.005 or not 1e-3 < ratio < 1e3 else ratio

    def still(self) -> Preview:
        """Return a small picture of it."""
        small = reduced(Plane(self.rgb, self.valid), STILL)
        chance = reduced(Plane(self.probability, np.ones_like(self.valid)), STILL)
        rows, cols = self.shape
        return Preview(small.pixels, small.valid, None, f"The whole mosaic, {cols} × {rows} pixels", chance.pixels)

    def shown(self, in_metres: bool) -> str:
        """Say how much of the run the map shows."""
        packed = self.footprints
        if not packed.total:
            return "There are no footprints."
        if packed.drawn == packed.total:
            text = f"All {say.count(packed.total)} footprints are drawn." if packed.total > 1 else "One footprint."
        else:
            least = say.sized(packed.smallest, "m²" if in_metres else "px²")
            text = (
                f"Drawn are the {say.count(packed.drawn)} largest of {say.count(packed.total)} footprints, from {least}"
                " on; the probability shows the others, and the vector file has all."
            )
        return text

    def facts(self, threshold: float | None, insets: list[dict[str, Any]], in_metres: bool) -> dict[str, Any]:
        """Return what the page's script needs, as JSON values."""
        rows, cols = self.shape
        step = math.hypot(self.transform.a, self.transform.d) if self.transform else 1.0
        pyramids = self.pyramids or Pyramids.of(self.rgb, self.valid, self.probability)
        return {
            "width": cols,
            "height": rows,
            "shrink": self.shrink,
            "aspect": self.aspect,
            "transform": [float(value) for value in tuple(self.transform or Affine.identity())[:6]],
            "crs": say.text(self.crs, 60) if self.crs else "",
            "axes": self._axes,
            "decimals": min(max(math.ceil(-math.log10(step / 2)), 0), 9) if step > 0 else 0,
            "ground": self.ground[0] if self.ground else None,
            "areaUnit": "m²" if in_metres else "px²",
            "threshold": threshold,
            "ramp": [list(colour) for colour in INFERNO],
            "outline": list(OUTLINE),
            "tile": TILE,
            "imagery": [level.facts() for level in pyramids.imagery],
            "probability": [level.facts() for level in pyramids.probability],
            "footprints": base64.b64encode(self.footprints.data).decode("ascii"),
            "count": self.footprints.drawn,
            "units": UNITS,
            "areaSteps": AREA_STEPS,
            "chanceSteps": CHANCE_STEPS,
            "insets": insets,
        }

    @property
    def _axes(self) -> list[str]:
        if self.transform is None:
            return ["column", "row"]
        return ["longitude", "latitude"] if self.geographic else ["x", "y"]
