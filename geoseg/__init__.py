"""Building footprints from folders of orthophotos.

The flow, one way, one module a stage::

    rasters ─▶ mosaic ─▶ tiling ─▶ predict ─▶ blend ─▶ polygonize ─▶ footprints ─▶ vector, write, report
               one grid  blocks,   U-Net on   taper,   parts per     join across   GeoPackage …, COG
                         windows   a worker   Σ w·p    block         blocks

* :mod:`geoseg.mosaic` sees any number of rasters as one pixel grid and reads windows of it with their validity:
  :mod:`geoseg.inputs` finds the files, :mod:`geoseg.layout` places them, :mod:`geoseg.raster` reads one,
  :mod:`geoseg.warp` resamples.
* :mod:`geoseg.tiling` cuts the grid into blocks (unit of work, retry, resume) and 32-aligned windows.
* :mod:`geoseg.unet` has the networks, :mod:`geoseg.checkpoint` their files, :mod:`geoseg.card` what must be known of
  them (:mod:`geoseg.scaling`: in numbers), :mod:`geoseg.importing` brings published ones in, :mod:`geoseg.predict` runs
  them.
* :mod:`geoseg.blend` adds overlapping windows with weights that sum to one.
* :mod:`geoseg.polygonize` turns masks into outlines, block by block; :mod:`geoseg.join` joins them exactly.
* :mod:`geoseg.outline` simplifies outlines, :mod:`geoseg.walls` and :mod:`geoseg.square` make them straight and square,
  :mod:`geoseg.neighbours` keeps them apart.
* :mod:`geoseg.spool` keeps buildings in order on the disk; :mod:`geoseg.footprints` puts them on the map.
* :mod:`geoseg.write` makes files appear complete, rasters in the format of :mod:`geoseg.cog`; :mod:`geoseg.vector`
  writes what :mod:`geoseg.formats` names.
* :mod:`geoseg.workers` is the only file that knows dask; :mod:`geoseg.warm` imports ahead what workers need,
  :mod:`geoseg.gpus` tells whether there may be a GPU, :mod:`geoseg.allocator` keeps workers from growing;
  :mod:`geoseg.journal` remembers what is done.
* :mod:`geoseg.block` is what a worker does; :mod:`geoseg.segment` composes the stages, :mod:`geoseg.finish` makes the
  files, :mod:`geoseg.gallery` gathers what :mod:`geoseg.report` shows (:mod:`geoseg.overview` is its map),
  :mod:`geoseg.cli` has the commands.
* :mod:`geoseg.delivery` hands results on: :mod:`geoseg.postgis` (at :mod:`geoseg.database`) to a database,
  :mod:`geoseg.stac` to catalogues, :mod:`geoseg.project` (with :mod:`geoseg.vrt`, :mod:`geoseg.style`) to QGIS.
* :mod:`geoseg.qgis` has the plugin for QGIS, which runs geoseg in an environment of its own.
* :mod:`geoseg.vectorise` takes rasters that are already there to polygons.
* :mod:`geoseg.train` learns, from masks or from polygons as drawn in QGIS; :mod:`geoseg.exporting` hands networks to
  other programs, :mod:`geoseg.foreign` and :mod:`geoseg.runtimes` run those of others.
* :mod:`geoseg.sample` draws a city with exact truth; :mod:`geoseg.evaluate` compares results with a reference,
  :mod:`geoseg.curves` and :mod:`geoseg.comparison` draw what came out.

Names are imported when they are first used, so that ``import geoseg`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from geoseg.card import ModelCard as ModelCard
    from geoseg.checkpoint import load_model as load_model
    from geoseg.errors import GeosegError as GeosegError
    from geoseg.segment import Result as Result
    from geoseg.segment import segment as segment
    from geoseg.settings import Settings as Settings
    from geoseg.unet import UNet11 as UNet11
    from geoseg.unet import UNet16 as UNet16

_HOME = {
    "GeosegError": "errors",
    "ModelCard": "card",
    "Result": "segment",
    "Settings": "settings",
    "UNet11": "unet",
    "UNet16": "unet",
    "load_model": "checkpoint",
    "segment": "segment",
}

_PACKAGES = ("train",)

__all__ = [
    "GeosegError",
    "ModelCard",
    "Result",
    "Settings",
    "UNet11",
    "UNet16",
    "__version__",
    "load_model",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"geoseg.{name}")
    if name in _HOME:
        value = getattr(import_module(f"geoseg.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'geoseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
