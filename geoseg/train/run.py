"""Run a recipe in one process, or in as many as it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from geoseg.curves import read_curve
from geoseg.errors import InputError, OutputError
from geoseg.progress import open_progress
from geoseg.raster import gdal_env
from geoseg.train.loop import BEST, CURVE, LAST, Trained, Trainer
from geoseg.train.parallel import launch, launched, team
from geoseg.train.recipe import Recipe
from geoseg.train.scenes import close_labels


def run(recipe: Recipe, progress: str) -> Trained:
    """Train; see :func:`geoseg.train.train`."""
    out = Path(recipe.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made a folder ({error.strerror or error})") from error
    problems: tuple[str, ...] = ()
    if recipe.devices > 1 and not launched():
        found = launch(recipe.devices, work, recipe, progress)
        problems = tuple(dict.fromkeys(problem for one in found for problem in one))
    else:
        problems = work(recipe, progress)
    curve = out / CURVE
    if not curve.is_file():
        raise InputError(f"{curve}: the run left no learning curve")
    return Trained(out, out / BEST, out / LAST, read_curve(curve), problems)


def work(recipe: Recipe, progress: str) -> tuple[str, ...]:
    """Do one process's part; return what could not be read."""
    with team(recipe.device) as (members, device), gdal_env(), _threads(recipe.threads), ExitStack() as stack:
        stack.callback(close_labels)
        shown = stack.enter_context(open_progress(progress if members.leads else "none"))
        trainer = Trainer(recipe, members, device, shown)
        for problem in trainer.problems:
            shown.warn(f"left out: {problem}")
        trainer.run()
        return tuple(trainer.problems)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
