"""A synthetic city with exact ground truth, drawn as adjacent georeferenced tiles.

The city is endless and a pure function of ``(seed, position)``: streets run between the nodes of
a jittered lattice, every street block is laid out by its own generator seeded with the block's row
and column, and textures are periodic noise looked up by pixel position. Hence any window can be
drawn alone, and equals the same window cut from a larger drawing; tiles fit without a seam and
memory does not grow with the city.

Pixel coordinates are ``x`` = column and ``y`` = row, pixel (r, c) covers [c, c + 1] by [r, r + 1].
The camera looks straight down: what is visible of a building is its roof, and the outline of the
roof is the truth, also where a tree hangs over it. Lengths are pixels unless a name ends in ``_m``.

One file per step: :mod:`city` (style, streets, things), :mod:`site` and :mod:`plans` (what stands
where), :mod:`texture` and :mod:`canvas` (drawing), :mod:`files` (tiles on disk).
"""

from __future__ import annotations

from geoseg.sample.canvas import draw
from geoseg.sample.city import Building, City
from geoseg.sample.files import SamplePaths, write_sample
from geoseg.sample.plans import buildings

__all__ = ["Building", "City", "SamplePaths", "buildings", "draw", "write_sample"]
