"""QGIS plugin: a Processing provider that runs geoseg in geoseg's own Python.

Nothing here imports geoseg or anything else that QGIS's Python lacks, and the syntax is that of Python 3.9, which QGIS
3.22 brings on Windows. ``geoseg qgis install`` and ``geoseg qgis package`` take this folder as it is.
"""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin, as QGIS asks for it; ``iface`` is None in qgis_process."""
    from .provider import GeosegPlugin

    return GeosegPlugin()
