"""Areas in bins, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geoseg.areas import AreaHistogram
from geoseg.errors import SettingError

AREAS = arrays(np.float64, st.integers(0, 60), elements=st.floats(0, 1e7))


@settings(deadline=None)
@given(st.lists(AREAS, max_size=4))
def test_histogram_counts_like_numpy(batches: list[np.ndarray]) -> None:
    areas = np.concatenate([np.zeros(0), *batches])
    found = AreaHistogram()
    for batch in batches:
        found.add(batch)
    # numpy's last bin holds its upper edge, ours does not.
    expected, _ = np.histogram(areas[areas < found.edges[-1]], bins=found.edges)
    assert found.counts.tolist() == expected.tolist()
    assert found.below == (areas < 1).sum()
    assert found.above == (areas >= 100_000).sum()
    assert found.total == areas.size
    assert found.total_area == pytest.approx(areas.sum())
    if areas.size:
        assert (found.minimum, found.maximum) == (areas.min(), areas.max())
        assert found.minimum <= found.median <= found.maximum  # type: ignore[operator]
    else:
        assert found.minimum is found.maximum is found.median is found.mean is None


@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 80), elements=st.floats(1, 99_999)), st.floats(0, 1))
def test_quantiles_are_within_a_bin(areas: np.ndarray, share: float) -> None:
    found = AreaHistogram()
    found.add(areas)
    # A quantile lies between the two order statistics around it; bins are 10^(1/40) wide.
    step = 10 ** (1 / AreaHistogram.PER_DECADE) * (1 + 1e-9)
    low = np.quantile(areas, max(share - 1 / areas.size, 0), method="lower")
    high = np.quantile(areas, min(share + 1 / areas.size, 1), method="higher")
    estimate = found.quantile(share)
    assert estimate is not None
    assert low / step <= estimate <= high * step


def test_edges_are_exact_at_the_decades() -> None:
    found = AreaHistogram()
    found.add([1, 10, 100, 1000, 10_000, 9.999999])
    assert found.edges[:: AreaHistogram.PER_DECADE].tolist() == [1, 10, 100, 1e3, 1e4, 1e5]
    assert found.counts[:: AreaHistogram.PER_DECADE].tolist() == [1] * 5
    assert found.counts[AreaHistogram.PER_DECADE - 1] == 1


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_histogram_refuses_what_is_no_area(bad: float) -> None:
    found = AreaHistogram()
    found.add([5])
    with pytest.raises(SettingError, match=str(bad)):
        found.add([1.0, bad])
    assert found.total == 1
