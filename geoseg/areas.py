"""Building areas as they come, counted in bins: a histogram and its figures for any number of buildings."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoseg.errors import SettingError


class AreaHistogram:
    """Building areas as they come, in fixed logarithmic bins: memory does not grow with their number."""

    LOW, HIGH = 1.0, 100_000.0
    """Bounds of the bins; smaller and larger areas are counted in :attr:`below` and :attr:`above`."""
    PER_DECADE = 40
    """Bins per factor of ten: an estimated median is off by at most one bin, 6 %."""

    def __init__(self) -> None:
        decades = round(math.log10(self.HIGH / self.LOW))
        steps = np.arange(decades * self.PER_DECADE + 1)
        # Powers are exact at the decades, where people look.
        whole, part = np.divmod(steps, self.PER_DECADE)
        self.edges: NDArray[np.float64] = self.LOW * 10.0**whole * 10.0 ** (part / self.PER_DECADE)
        self._counts = np.zeros(self.edges.size + 1, dtype=np.int64)
        self.total_area = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, areas: ArrayLike) -> None:
        """Count more areas, of any shape.

        Raises:
            SettingError: an area is negative or not a number.
        """
        values = np.asarray(areas, dtype=np.float64).ravel()
        bad = values[~(np.isfinite(values) & (values >= 0))]
        if bad.size:
            raise SettingError(f"area {bad[0]} is not a size; {bad.size} such values were added")
        if not values.size:
            return
        bins = np.searchsorted(self.edges, values, side="right")
        self._counts += np.bincount(bins, minlength=self._counts.size)
        self.total_area += float(values.sum())
        self._min = min(self._min, float(values.min()))
        self._max = max(self._max, float(values.max()))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of areas in ``[edges[i], edges[i + 1])``."""
        return self._counts[1:-1].copy()

    @property
    def below(self) -> int:
        """Number of areas under :attr:`LOW`."""
        return int(self._counts[0])

    @property
    def above(self) -> int:
        """Number of areas of :attr:`HIGH` or more."""
        return int(self._counts[-1])

    @property
    def total(self) -> int:
        """Number of areas."""
        return int(self._counts.sum())

    @property
    def minimum(self) -> float | None:
        """Smallest area, exact; None without areas."""
        return self._min if self.total else None

    @property
    def maximum(self) -> float | None:
        """Largest area, exact; None without areas."""
        return self._max if self.total else None

    @property
    def mean(self) -> float | None:
        """Mean area, exact; None without areas."""
        return self.total_area / self.total if self.total else None

    @property
    def median(self) -> float | None:
        """Median area, estimated from the bins; None without areas."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float | None:
        """Estimate the area that ``share`` of the buildings do not exceed; None without areas.

        Areas are taken as evenly spread over the logarithm within a bin.
        """
        if not 0 <= share <= 1:
            raise SettingError(f"share is {share}; it must lie from 0 to 1")
        if not self.total:
            return None
        wanted = share * self.total
        reached = np.cumsum(self._counts)
        index = min(int(np.searchsorted(reached, wanted)), self._counts.size - 1)
        inside = (wanted - (reached[index] - self._counts[index])) / max(self._counts[index], 1)
        low = self.edges[index - 1] if index > 0 else min(self._min, self.LOW)
        high = self.edges[index] if index < self.edges.size else max(self._max, self.HIGH)
        if low <= 0:
            return float(np.clip(inside * high, self._min, self._max))
        return float(np.clip(math.exp(math.log(low) * (1 - inside) + math.log(high) * inside), self._min, self._max))
