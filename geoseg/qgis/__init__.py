"""geoseg in QGIS: the plugin as files (:mod:`geoseg.qgis.plugin`), and what brings it there.

The plugin runs in QGIS's Python and knows geoseg only as a program; nothing else in geoseg imports it.
"""
