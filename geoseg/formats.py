"""The vector formats that there are, and which can hold what: asked before long work, so without GDAL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from geoseg.errors import SettingError

VectorFormat = Literal["gpkg", "fgb", "parquet", "geojson"]
FORMATS: tuple[VectorFormat, ...] = get_args(VectorFormat)
"""File endings, which also name the formats."""


def format_of(path: Path | str) -> VectorFormat:
    """Return the format that a file's ending names.

    Raises:
        SettingError: the ending names none.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise SettingError(f"{path}: the ending must be one of .{', .'.join(FORMATS)}")
    return ending


def check_format(format: str, crs: Any) -> VectorFormat:
    """Return ``format`` if it exists and can hold coordinates of ``crs``; ask before long work.

    Raises:
        SettingError: it does not, or cannot.
    """
    if format not in FORMATS:
        raise SettingError(f"no vector format {format!r}; it must be one of {', '.join(FORMATS)}")
    if format == "geojson" and crs is None:
        raise SettingError(
            "GeoJSON holds longitudes and latitudes only, and the imagery has no coordinate "
            "reference system; choose --format gpkg"
        )
    return format
