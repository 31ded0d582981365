"""The plugin and its Processing provider."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsApplication, QgsProcessingProvider, QgsVectorFileWriter
from qgis.PyQt.QtGui import QIcon

from .algorithms import ALGORITHMS
from .environment import SETTING

ICON = str(Path(__file__).with_name("icon.svg"))


class GeosegProvider(QgsProcessingProvider):
    """geoseg's algorithms in the toolbox."""

    def id(self) -> str:
        """Return the part before the colon in ids of algorithms; never to change."""
        return "geoseg"

    def name(self) -> str:
        """Return the name in the toolbox."""
        return "geoseg"

    def longName(self) -> str:
        """Return the name with what it is for."""
        return "geoseg (building footprints)"

    def icon(self) -> QIcon:
        """Return the icon."""
        return QIcon(ICON)

    def svgIconPath(self) -> str:
        """Return where the icon is."""
        return ICON

    def load(self) -> bool:
        """Add the setting and the algorithms."""
        # Processing itself is a plugin; this provider also works without its dialogs.
        try:
            from processing.core.ProcessingConfig import ProcessingConfig, Setting
        except ImportError:
            pass
        else:
            ProcessingConfig.settingIcons[self.name()] = self.icon()
            words = "Python of the environment that has geoseg (empty: as noted by 'geoseg qgis install')"
            ProcessingConfig.addSetting(Setting(self.name(), SETTING, words, "", valuetype=Setting.FILE))
            ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Take the setting away; what the user chose stays in the profile."""
        try:
            from processing.core.ProcessingConfig import ProcessingConfig
        except ImportError:
            return
        if SETTING in ProcessingConfig.settings:
            ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        """Make the algorithms."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Return the formats that geoseg writes, those first that this QGIS can show."""
        shown = set(QgsVectorFileWriter.supportedFormatExtensions())
        return ["gpkg", *(name for name in ("fgb", "geojson", "parquet") if name in shown)]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        """Return the ending of files nobody has named."""
        return "gpkg"

    def supportsNonFileBasedOutput(self) -> bool:
        """Say that results are files."""
        return False


class GeosegPlugin:
    """What QGIS loads."""

    def __init__(self) -> None:
        self._provider: GeosegProvider | None = None

    def initProcessing(self) -> None:
        """Register the provider; qgis_process calls only this."""
        self._provider = GeosegProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        """Start in QGIS's window."""
        self.initProcessing()

    def unload(self) -> None:
        """Leave no trace."""
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
