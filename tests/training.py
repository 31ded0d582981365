"""Small labelled images and recipes that several test modules train on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rasters import write

from geoseg.train.recipe import Dataset, Recipe


def drawn(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (3, H, W) uint8 in which buildings are bright, and its mask, 0 and 255."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(max(2, shape[0] * shape[1] // 700)):
        row, col = (int(rng.integers(0, max(1, side - 8))) for side in shape)
        mask[row : row + int(rng.integers(6, 16)), col : col + int(rng.integers(6, 16))] = True
    image = 60 + 110 * mask + rng.normal(0, 25, (3, *shape))
    return np.clip(image, 1, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def write_pairs(
    folder: Path, stems: dict[str, tuple[int, int]], *, seed: int = 0, **options: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write ``images/STEM.tif`` and ``gt/STEM.tif`` of the sizes given; return what is in them."""
    made = {}
    for number, (stem, shape) in enumerate(stems.items()):
        image, mask = drawn(shape, seed + number)
        for kind, values in (("images", image), ("gt", mask[None])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write(folder / kind / f"{stem}.tif", values, **options)
        made[stem] = image, mask
    return made


def table(folder: Path, **options: Any) -> Dataset:
    """Return the data set that :func:`write_pairs` wrote."""
    if "buildings" not in options:
        options.setdefault("masks", (str(folder / "gt"),))
    return Dataset(images=(str(folder / "images"),), **options)


def small(folder: Path, **changes: Any) -> Recipe:
    """Return a recipe that takes a second: learn from ``a*``, validate on ``v*`` of a folder."""
    plain: dict[str, Any] = {
        "out": str(folder / "run"),
        "data": (table(folder, only=("a*",), name="spots", licence="CC0", source="drawn"),),
        "validate": (table(folder, only=("v*",), name="held"),),
        "num_filters": 1,
        "frozen": 5,
        "crop": 32,
        "crops": 4,
        "batch": 2,
        "epochs": 2,
        "validation_crop": 64,
        "device": "cpu",
    }
    return Recipe(**{**plain, **changes})


def digest(net: Any) -> str:
    """Return a hash of all weights."""
    found = hashlib.sha256()
    for value in net.state_dict().values():
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def watched(recipe: Recipe, progress: str) -> tuple[str, tuple[str, ...]]:
    """Do what one of several processes does; return its network's hash at the end, and its problems."""
    from geoseg.train import run

    kept: list[Any] = []

    class Kept(run.Trainer):
        def run(self) -> None:
            kept.append(self.net)
            super().run()

    run.Trainer = Kept  # type: ignore[misc]
    problems = run.work(recipe, progress)
    return digest(kept[0]), problems
