"""What can go wrong, one class per kind, so that callers can tell them apart.

Every message says what was found, where, and what to do about it. The classes also derive from the built-in
error that Python programmers would catch (``OSError``, ``ValueError``, ``RuntimeError``).
"""

from __future__ import annotations


class GeosegError(Exception):
    """Root of all errors that geoseg raises on purpose."""


class InputError(GeosegError, OSError):
    """An input raster or vector file is missing, unreadable or not what it should be."""


class SettingError(GeosegError, ValueError):
    """An option or a setting is wrong, or two of them do not go together."""


class ModelError(GeosegError, ValueError):
    """A model file, its card or its weights cannot be used."""


class OutputError(GeosegError, OSError):
    """A result cannot be written where it was asked for."""


class WorkerError(GeosegError, RuntimeError):
    """The workers are gone, cannot be reached, or keep dying on the same block."""


class TrainingError(GeosegError, RuntimeError):
    """Training cannot go on: a number is not finite, or there is nothing to learn from."""
