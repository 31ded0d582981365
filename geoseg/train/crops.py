"""Random crops of labelled images.

What the crop ``(epoch, index)`` shows depends on nothing but the recipe: not on the processes that read, the GPUs that
share the batch, or on whether the run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from geoseg.errors import SettingError
from geoseg.tiling import Rect
from geoseg.train.recipe import Augment, Dataset, Recipe
from geoseg.train.scenes import Labelled, Scene

ENOUGH = 0.25
"""Part of a crop that should count; others are drawn again."""

TRIES = 8
"""How often; then the best of them is taken."""

SMALLEST = 32
"""Source pixels that a crop spans at least."""


class Crop(NamedTuple):
    """A crop, or a batch of them with one more dimension in front."""

    image: Tensor
    """(3, side, side) float32 on the scale 0 … 1."""
    building: Tensor
    """(side, side) bool; so are the next two."""
    known: Tensor
    counts: Tensor
    problems: list[str]
    """What could not be read; after batching, a list for each place in the crops."""


class Crops(TorchDataset[Crop]):
    """Random crops; item ``(epoch, index)`` is always the same one."""

    def __init__(self, recipe: Recipe, tables: Sequence[tuple[Dataset, Sequence[Scene]]]) -> None:
        """Take the recipe, and its data tables each with its scenes."""
        self._side, self._seed = recipe.crop, recipe.seed
        self._scenes = [(dataset, scene) for dataset, scenes in tables for scene in scenes]
        self._zooms = [zoom(scene, recipe.gsd) for _, scene in self._scenes]
        chances = []
        pixels = [[scene.labelled.area * zoom(scene, recipe.gsd) ** 2 for scene in scenes] for _, scenes in tables]
        total = sum(sum(areas) for areas in pixels)
        weighted = [dataset.weight for dataset, _ in tables]
        if any(w is None for w in weighted) and any(w is not None for w in weighted):
            raise SettingError("give every [[train.data]] table a weight, or none")
        for weight, areas in zip(weighted, pixels, strict=True):
            share = sum(areas) / total if weight is None else weight
            chances += [share * area / sum(areas) for area in areas]
        self._chances = np.array(chances) / sum(chances)
        self.covering = max(1, math.ceil(total / self._side**2))
        self._augment = recipe.augment
        self._turn, self._colour = _turning(recipe.augment), _colouring(recipe.augment)

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        epoch, index = key
        rng = np.random.default_rng([self._seed, epoch, index])
        number = int(rng.choice(len(self._scenes), p=self._chances))
        dataset, scene = self._scenes[number]
        low, high = dataset.scale or self._augment.scale
        enlarge = self._zooms[number] * math.exp(rng.uniform(math.log(low), math.log(high)))
        window = self._window(rng, scene, max(SMALLEST, round(self._side / enlarge)))
        # torchvision's transforms draw from torch's own generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return self._changed(window)

    def _window(self, rng: np.random.Generator, scene: Scene, side: int) -> Labelled:
        best: tuple[float, Labelled] | None = None
        box = scene.labelled
        for _ in range(TRIES):
            row, col = (_start(rng, *ends, side) for ends in ((box.row0, box.row1), (box.col0, box.col1)))
            window = scene.read(Rect(row, col, row + side, col + side))
            # Of an image smaller than the crop no more can count than there is.
            share = float(window.counts.sum()) / (min(side, box.height) * min(side, box.width))
            if best is None or share > best[0]:
                best = share, window
            if share >= ENOUGH:
                break
        if best is None:
            raise SettingError("a crop must be tried at least once")
        return best[1]

    def _changed(self, window: Labelled) -> Crop:
        pixels = torch.from_numpy(window.image)
        flags = torch.from_numpy(np.stack([window.building, window.known, window.counts]))
        size = (self._side, self._side)
        if tuple(pixels.shape[-2:]) != size:
            pixels = v2.functional.resize(pixels, list(size), antialias=True)
            flags = resized(flags, size)
        image, masks = self._turn(tv_tensors.Image(pixels), tv_tensors.Mask(flags))
        image = self._colour(image).clamp(0, 1)
        building, known, counts = masks.as_subclass(Tensor)
        return Crop(image.as_subclass(Tensor).contiguous(), building, known, counts, list(window.problems))


def resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks ``(N, H, W)`` bool of another size: each pixel takes what lies at its centre.

    torchvision resizes masks by torch's ``nearest``, which looks at corners and so moves them against the image, by
    half a pixel of the result.
    """
    return nnf.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0.5


def zoom(scene: Scene, gsd: float | None) -> float:
    """Return by how much a scene is to be enlarged so that its pixels span ``gsd`` metres; 1 where not known."""
    return 1.0 if gsd is None or scene.gsd is None else scene.gsd / gsd


def _start(rng: np.random.Generator, begin: int, end: int, side: int) -> int:
    """Draw where a crop begins so that it lies in ``begin … end``, or holds all of it when it is the larger one."""
    low, high = sorted((begin, end - side))
    return int(rng.integers(low, high + 1))


class _Gamma(torch.nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = math.log(low), math.log(high)

    def forward(self, image: Tensor) -> Tensor:
        exponent = math.exp(torch.empty(1).uniform_(self.low, self.high).item())
        return image.clamp(0, 1) ** exponent


class _Tint(torch.nn.Module):
    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, image: Tensor) -> Tensor:
        return image * torch.empty(3, 1, 1).uniform_(1 - self.most, 1 + self.most)


class _Noise(torch.nn.Module):
    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, image: Tensor) -> Tensor:
        return image + torch.randn(image.shape) * torch.empty(1).uniform_(0, self.most)


def _turning(augment: Augment) -> v2.Transform:
    if not augment.turn:
        return v2.Identity()
    quarter = v2.RandomApply([v2.RandomRotation((90, 90))], p=0.5)
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), quarter])


def _colouring(augment: Augment) -> torch.nn.Module:
    steps: list[torch.nn.Module] = []
    strengths = {key: getattr(augment, key) for key in ("brightness", "contrast", "saturation", "hue")}
    if any(strengths.values()):
        steps.append(v2.ColorJitter(**strengths))
    if augment.tint:
        steps.append(_Tint(augment.tint))
    if augment.gamma != (1.0, 1.0):
        steps.append(_Gamma(*augment.gamma))
    if augment.blur:
        kernel = 2 * math.ceil(2 * augment.blur) + 1
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (min(0.1, augment.blur), augment.blur))], p=0.3))
    if augment.noise:
        steps.append(v2.RandomApply([_Noise(augment.noise)], p=0.3))
    return torch.nn.Sequential(*steps)


class Order(Sampler[tuple[int, int]]):
    """The crops of one epoch that one of several processes takes, in order."""

    def __init__(self, crops: int, batch: int, rank: int = 0, world: int = 1) -> None:
        """Take crops an epoch, crops a step over all processes, number of this process and of all."""
        self.epoch = 1
        self._crops, self._batch, self._rank, self._world = crops, batch, rank, world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        share = self._batch // self._world
        for step in range(len(self) // share):
            first = step * self._batch + self._rank * share
            yield from ((self.epoch, index) for index in range(first, first + share))

    def __len__(self) -> int:
        # Whole batches, and at least one.
        return max(1, round(self._crops / self._batch)) * self._batch // self._world


def collate(crops: Sequence[Crop]) -> Crop:
    """Put crops together to a batch."""
    image, building, known, counts = (torch.stack(items) for items in list(zip(*crops, strict=True))[:4])
    return Crop(image, building, known, counts, [problem for crop in crops for problem in crop.problems])
