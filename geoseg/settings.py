"""What a user can choose, checked once, wherever it comes from: command line, pipeline file or Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.errors import SettingError

if TYPE_CHECKING:
    from geoseg.footprints import Rules
from geoseg.formats import FORMATS
from geoseg.progress import KINDS

CELL = 5120
"""Side of a lattice cell for networks that take windows in strips (:mod:`geoseg.stream`): the larger a window, the less
is spent on its halo, and memory hardly grows."""
CELL_WHOLE = 1536
"""The same for networks that take windows whole: about 3 GB for this one."""
OUTLINES = ("pixel", "subpixel")

_KINDS: dict[str, tuple[tuple[type, ...], tuple[str, ...]]] = {
    "text": (
        (str,),
        (
            *("model", "aoi", "outline", "scheduler", "device", "precision", "engine", "progress"),
            *("postgis_table", "postgis_mode"),
        ),
    ),
    "a whole number": ((int,), ("core", "cell", "taper", "workers")),
    "a number": ((int, float), ("threshold", "gsd", "min_area", "min_hole", "simplify")),
    "true or false": ((bool,), ("tta", "square", "fresh")),
}


@dataclass(frozen=True)
class Settings:
    """What a user can choose; every field is an option of ``geoseg segment`` and a key of a pipeline file."""

    model: str | None = None
    """Name of a shipped model or path of a model file; None for the default model."""
    threshold: float | None = None
    """A pixel is building when its probability is at least this; None for the model card's."""
    bands: tuple[int, int, int] | None = None
    """Bands that are red, green and blue for the model, counted from 1; None for the model card's."""
    gsd: float | None = None
    """Resample to this many metres a pixel on the ground; None keeps the grid of the first file."""
    range: tuple[float, float] | None = None
    """Stored values that mean black and white; None for the model card's."""
    aoi: str | None = None
    """Vector file whose polygons bound the area of interest."""
    halo: str | int = "auto"
    """Pixels that a window sees beyond its cell: a multiple of 32, ``exact`` or ``auto``."""
    taper: int | None = None
    """Width in pixels of the strip over which neighbouring windows fade into each other; None for the halo's own."""
    core: int | None = None
    """Side of a block in pixels: the unit of work and of resume; None for one cell. Does not change the result."""
    cell: int | None = None
    """Side of the lattice cell that a window answers for; None for what suits the network."""
    tta: bool = False
    """Average over the eight rotations and mirror images: eight times the work."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """``auto``, ``fp32``, ``bf16`` or ``fp16``."""
    engine: str = "auto"
    """Who does the arithmetic on a CPU: ``native``, ``torch`` or ``auto`` (:mod:`geoseg.engines`)."""
    workers: int | None = None
    """Local worker processes; 0 computes in this process; None chooses."""
    scheduler: str | None = None
    """Address of a running dask scheduler, or the scheduler file that it writes, instead of local workers."""
    min_area: float = 4.0
    """Buildings smaller than this many square metres are left out."""
    min_hole: float = 2.0
    """Holes smaller than this many square metres are closed."""
    simplify: float | None = None
    """Tolerance of the outlines' simplification in metres, 0 for pixel edges; None for one pixel."""
    square: bool = True
    """Straighten walls as wholes, and turn those that are nearly parallel or at right angles until they are."""
    outline: str = "pixel"
    """What outlines are made from: ``pixel`` for the pixels' edges, ``subpixel`` for where the probability passes the
    threshold between pixels."""
    format: tuple[str, ...] = ("gpkg",)
    """Vector formats to write, of ``gpkg``, ``fgb``, ``parquet`` and ``geojson``."""
    postgis: str | None = field(default=None, repr=False)
    """A PostgreSQL database that gets the footprints, too: ``postgresql://USER@HOST/DATABASE``."""
    postgis_table: str = "buildings"
    """``TABLE`` or ``SCHEMA.TABLE`` in that database."""
    postgis_mode: str = "replace"
    """``replace`` the table's rows, or ``append`` to them."""
    fresh: bool = False
    """Forget the blocks that an earlier run left in the output folder."""
    progress: str = "auto"
    """``auto``, ``bar``, ``json`` or ``none``."""

    def __post_init__(self) -> None:
        for name in ("bands", "range", "format"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.format, str):
            object.__setattr__(self, "format", (self.format,))
        for name in ("model", "aoi"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))
        self._check_types()
        if not isinstance(self.postgis, str | None):
            raise SettingError("postgis must be text")  # which may hold a password, so it is not quoted
        _between("threshold", self.threshold, 0, 1)
        for name in ("min_area", "min_hole", "simplify"):
            _between(name, getattr(self, name), 0, np.inf, closed=True)
        _between("gsd", self.gsd, 0, np.inf)
        if self.bands is not None and (len(self.bands) != 3 or min(self.bands) < 1):
            raise SettingError(f"bands is {self.bands}; it must be three band numbers from 1, such as 1,2,3")
        if self.range is not None and (len(self.range) != 2 or self.range[0] >= self.range[1]):
            raise SettingError(f"range is {self.range}; it must be two values, the smaller first")
        if isinstance(self.halo, str) and self.halo not in ("auto", "exact"):
            if not self.halo.isdigit():
                raise SettingError(f"halo is {self.halo!r}; it must be auto, exact or a number of pixels")
            object.__setattr__(self, "halo", int(self.halo))
        for name in ("core", "cell"):
            if (side := getattr(self, name)) is not None and side < 1:
                raise SettingError(f"{name} is {getattr(self, name)} px; it must be positive")
        if self.outline not in OUTLINES:
            raise SettingError(f"outline {self.outline!r} is not one of {', '.join(OUTLINES)}")
        unknown = set(self.format) - set(FORMATS)
        if unknown or not self.format:
            raise SettingError(f"format {', '.join(sorted(unknown)) or '(none)'}: choose from {', '.join(FORMATS)}")
        if self.progress not in KINDS:
            raise SettingError(f"progress {self.progress!r} is not one of {', '.join(KINDS)}")

    def _check_types(self) -> None:
        for kind, (types, names) in _KINDS.items():
            for name in names:
                value = getattr(self, name)
                # A bool is an int to Python, but no number of workers.
                wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
                if value is not None and wrong:
                    raise SettingError(f"{name} is {value!r}; it must be {kind}")
        for name in ("bands", "range", "format"):
            value, inner = getattr(self, name), str if name == "format" else int if name == "bands" else (int, float)
            if value is not None and not (isinstance(value, tuple) and all(isinstance(v, inner) for v in value)):
                raise SettingError(f"{name} is {value!r}; it must be a list of {'text' if inner is str else 'numbers'}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Build from a mapping, refusing unknown keys.

        Raises:
            SettingError: A key that is no setting, or a value that does not fit.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise SettingError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        return cls(**values)


def _between(name: str, value: float | None, low: float, high: float, closed: bool = False) -> None:
    if value is None:
        return
    if not (low <= value <= high if closed else low < value < high):
        raise SettingError(f"{name} is {value:g}; it must lie {'from' if closed else 'between'} {low:g} and {high:g}")


@dataclass(frozen=True)
class OutlineSettings:
    """How outlines are straightened, as plain numbers that travel; see :func:`geoseg.vectorise.outline_rules`."""

    min_area: float
    min_hole: float
    simplify_px: float
    square: bool

    def rules(self) -> Rules:
        """Return the rules, for which much is imported."""
        from geoseg.vectorise import outline_rules

        return outline_rules(*astuple(self))

    def facts(self) -> list[float | bool]:
        """Return it as JSON values."""
        return list(astuple(self))
