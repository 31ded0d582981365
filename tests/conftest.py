"""Fixtures that several test modules share."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start: on tiny images several threads mostly wait for
# one another, on a busy machine ten times as long as one thread computes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("geoseg", deadline=None)
settings.load_profile("geoseg")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CITY_SHAPE = (247, 231)
"""Rows and columns of the mosaic that the tiles of :func:`city` make; a multiple of nothing."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("the real imagery (../shared/data) is not here")
    return SHARED


def blobs(shape: tuple[int, int], seed: int = 5) -> np.ndarray:
    """Return a uint8 image ``(3, H, W)`` of coloured spots with some noise: structure at every scale."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 7, 7))
    image = 128 + 45 * smooth / smooth.std() + 6 * rng.normal(size=smooth.shape)
    return np.clip(image, 1, 255).astype(np.uint8)


def write_tile(
    path: Path,
    values: np.ndarray,
    corner: tuple[int, int] = (0, 0),
    valid: np.ndarray | None = None,
    **options: Any,
) -> Path:
    """Write ``(3, H, W)`` as a GeoTIFF whose first pixel is pixel ``corner`` of a half-metre grid in EPSG:32633."""
    import rasterio
    from affine import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    grid = Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000) * Affine.translation(corner[1], corner[0])
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": grid, "dtype": values.dtype, **options}
    count, height, width = values.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=count, height=height, width=width, **profile) as dataset,
    ):
        dataset.write(values)
        if valid is not None:
            dataset.write_mask(valid)
    return path


def city_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return what the tiles of :func:`city` hold together: values ``(3, H, W)`` and validity."""
    values = blobs(CITY_SHAPE)
    valid = np.ones(CITY_SHAPE, dtype=bool)
    rows, cols = np.ogrid[: CITY_SHAPE[0], : CITY_SHAPE[1]]
    valid[(rows - 70) ** 2 + (cols - 128) ** 2 < 24**2] = False  # a hole across the seam of two tiles
    valid[150:, 170:] = False  # a corner without any tile
    return values, valid


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three adjacent tiles of odd sizes with a hole without data and a corner without a tile."""
    folder = tmp_path_factory.mktemp("city")
    values, valid = city_arrays()
    for name, rows, cols in (
        ("a.tif", slice(0, 150), slice(0, 130)),
        ("b.tif", slice(0, 150), slice(130, 231)),
        ("c.tif", slice(150, 247), slice(0, 170)),
    ):
        write_tile(folder / name, values[:, rows, cols], (rows.start, cols.start), valid[rows, cols])
    return folder


def narrow_net(classes: int = 1) -> Any:
    """Return a UNet11 of four filters with fixed random weights that sees as much building as background."""
    import torch

    from geoseg.card import IMAGENET_MEAN, IMAGENET_STD
    from geoseg.unet import UNet11

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet11(num_filters=4, num_classes=classes).eval()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        with torch.inference_mode():
            logits = net((torch.from_numpy(blobs((128, 128), 1))[None].float() / 255 - mean) / std)
        spread, middle = logits.std((0, 2, 3)), logits.mean((0, 2, 3))
        with torch.no_grad():
            net.final.weight *= (2 / spread).clone().view(-1, 1, 1, 1)
            net.final.bias.copy_((net.final.bias - middle) * (2 / spread))
    return net


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a model file with the weights of :func:`narrow_net`; keywords go to its card."""
    from geoseg.card import ModelCard
    from geoseg.checkpoint import save_model

    folder = tmp_path_factory.mktemp("models")

    def make(name: str, *, scale: float = 1.0, num_classes: int = 1, **card: Any) -> Path:
        import torch

        net = narrow_net(num_classes)
        with torch.no_grad():
            net.final.weight *= scale
        known = {"arch": "unet11", "num_filters": 4, "threshold": 0.5, "halo": 32, "gsd_m": 0.5, **card}
        path = folder / f"{name}.safetensors"
        save_model(path, net, ModelCard(name=name, num_classes=num_classes, **known))
        return path

    return make


@pytest.fixture(scope="session")
def narrow_model(make_model: Callable[..., Path]) -> Path:
    """A small model file with fixed random weights, whose masks are half building; halo 32, threshold 0.5."""
    return make_model("narrow")
