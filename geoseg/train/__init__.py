"""Training: recipe in, model files and learning curves out.

* :mod:`geoseg.train.recipe` is what a run depends on, :mod:`geoseg.train.scenes` reads labelled images by windows,
  :mod:`geoseg.train.crops` draws and changes crops of them.
* :mod:`geoseg.train.initial` has the paper's three ways to begin, :mod:`geoseg.train.losses` its loss.
* :mod:`geoseg.train.loop` trains, :mod:`geoseg.train.validate` measures, :mod:`geoseg.train.state` remembers,
  :mod:`geoseg.train.parallel` shares a batch among GPUs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoseg.train.loop import Trained
    from geoseg.train.recipe import Recipe


def train(recipe: Recipe | str | Path, *, fresh: bool = False, progress: str = "auto") -> Trained:
    """Train a network, or go on where an earlier attempt stopped.

    Args:
        recipe: What to do, or a pipeline file with a ``[train]`` table.
        fresh: Forget what an earlier attempt left in the run's folder.
        progress: ``auto``, ``bar``, ``json`` or ``none``, on stderr.

    Returns:
        The files the run left, and its learning curve.

    Raises:
        TrainingError: A number is not finite; what earlier epochs left is kept, and can be gone on from.
        GeosegError: The recipe, the data or the weights cannot be used.
    """
    from geoseg.pipeline import read_recipe
    from geoseg.train.recipe import Recipe
    from geoseg.train.run import run

    settled = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if fresh:
        _forget(Path(settled.out))
    return run(settled, progress)


def _forget(out: Path) -> None:
    from geoseg.train.loop import BEST, CURVE, LAST, PICTURE
    from geoseg.train.state import FILE

    for name in (FILE, BEST, LAST, CURVE, PICTURE):
        (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / f".{name}.part", ignore_errors=True)
