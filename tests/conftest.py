"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("the real imagery (../shared/data) is not here")
    return SHARED
