"""What QGIS has in hand, as the files that geoseg reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransformContext,
    QgsFeature,
    QgsFeatureRequest,
    QgsFeatureSink,
    QgsField,
    QgsFields,
    QgsGeometry,
    QgsMapLayer,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeedback,
    QgsRasterLayer,
    QgsVectorFileWriter,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QVariant

LAYER = "polygons"
"""Name of the only layer in the files written here."""
SCORE = "probability"
"""The one attribute that means something to geoseg: how sure a building is."""


def raster_name(layer: QgsMapLayer) -> str:
    """Return the name by which GDAL opens a raster layer.

    Raises:
        QgsProcessingException: The layer comes from no file, or one that QGIS cannot open.
    """
    if not isinstance(layer, QgsRasterLayer) or layer.providerType() != "gdal":
        raise QgsProcessingException(
            f"{layer.name()}: comes from a service ({layer.providerType()}), not from a file. Save the part that is "
            "meant as GeoTIFF first: Layer ▸ Save As…, raw data"
        )
    if not layer.isValid():
        raise QgsProcessingException(f"{layer.name()}: QGIS itself cannot open it ({layer.source()})")
    return layer.source().split("|", 1)[0]


def export_polygons(
    source: QgsProcessingFeatureSource,
    path: Path,
    transforms: QgsCoordinateTransformContext,
    feedback: QgsProcessingFeedback,
    within: QgsGeometry | None = None,
) -> str:
    """Write the polygons of a layer as QGIS has them now: filter, selection and unsaved edits count.

    geoseg could read many layers itself, but from the file, which may hold others and know nothing of all that.

    Args:
        source: The layer.
        path: A GeoPackage.
        transforms: The project's.
        feedback: Asked whether to stop.
        within: Only what lies inside this geometry, in the layer's CRS.

    Returns:
        A digest of the geometries, so that equal layers are recognised.

    Raises:
        QgsProcessingException: There are no polygons, or they cannot be written.
    """
    fields = source.fields()
    scored = fields.indexOf(SCORE)
    request = QgsFeatureRequest().setSubsetOfAttributes([scored] if scored >= 0 else [])
    # geoseg repairs polygons that cross themselves; QGIS would by default refuse them all.
    features = source.getFeatures(request, QgsProcessingFeatureSource.FlagSkipGeometryValidityChecks)
    shapes = (
        (feature.geometry() if within is None else feature.geometry().intersection(within), _score(feature, scored))
        for feature in features
        if feature.hasGeometry()
    )
    kept = QgsFields()
    if scored >= 0:
        kept.append(QgsField(SCORE, QVariant.Double))
    digest = write_polygons(path, shapes, source.sourceCrs(), transforms, feedback, fields=kept)
    if digest is None:
        where = " in the extent" if within is not None else ""
        hidden = "does a filter or a selection hide them?"
        raise QgsProcessingException(f"{source.sourceName()}: has no polygons{where} ({hidden})")
    return digest


def _score(feature: QgsFeature, scored: int) -> list[Any]:
    return [feature.attribute(scored)] if scored >= 0 else []


def write_polygons(
    path: Path,
    shapes: Iterable[tuple[QgsGeometry, list[Any]]],
    crs: QgsCoordinateReferenceSystem,
    transforms: QgsCoordinateTransformContext,
    feedback: QgsProcessingFeedback,
    *,
    fields: QgsFields | None = None,
) -> str | None:
    """Write polygons and their attributes as a GeoPackage with one layer.

    Returns:
        A digest of the geometries, None where there are none.

    Raises:
        QgsProcessingException: The file cannot be written.
    """
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName, options.layerName = "GPKG", LAYER
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = QgsFields() if fields is None else fields
    writer = QgsVectorFileWriter.create(str(path), kept, QgsWkbTypes.MultiPolygon, crs, transforms, options)
    if writer.hasError() != QgsVectorFileWriter.NoError:
        raise QgsProcessingException(f"{path}: cannot be written ({writer.errorMessage()})")
    digest, count = hashlib.sha256(crs.toWkt().encode()), 0
    for shape, attributes in shapes:
        if feedback.isCanceled():
            break
        if shape.isEmpty() or shape.type() != QgsWkbTypes.PolygonGeometry:
            continue
        flat = QgsGeometry(shape.constGet().segmentize())
        flat.get().dropZValue()
        flat.get().dropMValue()
        flat.convertToMultiType()
        feature = QgsFeature(kept)
        feature.setGeometry(flat)
        feature.setAttributes(attributes)
        if not writer.addFeature(feature, QgsFeatureSink.FastInsert):
            raise QgsProcessingException(f"{path}: cannot be written ({writer.errorMessage()})")
        digest.update(flat.asWkb().data())
        count += 1
    # Deleting the writer is what closes the file.
    del writer
    return digest.hexdigest() if count else None
