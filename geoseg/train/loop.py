"""The training loop: one epoch after the other, each leaving behind everything that is needed to go on."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geoseg.card import DataSource, ModelCard
from geoseg.checkpoint import save_model
from geoseg.curves import COLUMNS, Curve, draw_run, read_curve
from geoseg.errors import SettingError, TrainingError
from geoseg.predict import choose_precision
from geoseg.progress import Progress
from geoseg.raster import gdal_env
from geoseg.train.average import Average
from geoseg.train.crops import Crop, Crops, Order, collate
from geoseg.train.initial import initialise
from geoseg.train.losses import JaccardLoss
from geoseg.train.norm import add_batch_norm, fold_batch_norm
from geoseg.train.parallel import Team
from geoseg.train.recipe import Dataset, Recipe
from geoseg.train.scenes import Scene, open_scenes
from geoseg.train.state import FILE, Position, load_state, restore, save_state
from geoseg.train.validate import Validation, normalised, validate
from geoseg.unet import UNet11, UNet16
from geoseg.write import replacing

BEST, LAST = "best.safetensors", "last.safetensors"
CURVE, PICTURE = "curves.csv", "curves.png"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_READERS = 8

Tables = list[tuple[Dataset, list[Scene]]]


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    out: Path
    """Folder of the run."""
    best: Path
    """Model file of the epoch with the highest IoU on the validation images."""
    last: Path
    """Model file of the last epoch."""
    curve: Curve
    problems: tuple[str, ...]
    """Images that could not be used."""


@dataclass
class _Sums:
    """Running means of an epoch."""

    loss: float = 0.0
    iou: float = 0.0
    steps: int = 0


def build(recipe: Recipe) -> UNet11 | UNet16:
    """Return the network of a recipe, without the weights it begins with."""
    if recipe.arch == "unet11":
        return UNet11(recipe.num_filters)
    return UNet16(1, recipe.num_filters, recipe.is_deconv)


def freeze(net: nn.Module, levels: int) -> None:
    """Keep the weights of the encoder's first levels, each up to its pooling."""
    if not levels:
        return
    passed = 0
    for layer in net.get_submodule("encoder").children():
        layer.requires_grad_(False)
        passed += isinstance(layer, nn.MaxPool2d)
        if passed == levels:
            return


def gather(datasets: Sequence[Dataset]) -> tuple[Tables, list[str]]:
    """Open the headers of all images of several tables; raises InputError when a table has none that can be used."""
    tables: Tables = []
    problems: list[str] = []
    for dataset in datasets:
        scenes, lost = open_scenes(dataset)
        tables.append((dataset, scenes))
        problems += lost
    return tables, problems


class Trainer:
    """A run in one process: makes what a recipe names, and trains epoch by epoch."""

    def __init__(self, recipe: Recipe, team: Team, device: torch.device, progress: Progress) -> None:
        """Read headers, build the network, and go back to where an earlier attempt stopped.

        Raises:
            GeosegError: Data, weights or an earlier state cannot be used.
        """
        self.recipe, self.team, self.device, self.progress = recipe, team, device, progress
        self.out = Path(recipe.out)
        self.tables, problems = gather(recipe.data)
        self.held, lost = gather(recipe.validate)
        self.problems = [*problems, *lost]
        _check_apart(self.tables, self.held)
        if recipe.batch % team.world:
            raise SettingError(f"batch is {recipe.batch}; it must be a multiple of the {team.world} processes")
        self.crops = Crops(recipe, self.tables)
        self.order = Order(recipe.crops or self.crops.covering, recipe.batch, team.rank, team.world)
        self.steps = len(self.order) * team.world // recipe.batch
        self.loss = JaccardLoss(recipe.jaccard, recipe.jaccard_form)  # type: ignore[arg-type]
        self.dtype = _DTYPES[choose_precision(recipe.precision, device)]
        random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        net = build(recipe)
        self.origins = initialise(net, recipe.init, recipe.weights, recipe.seed)
        if recipe.decoder_norm:
            add_batch_norm(net)
        freeze(net, recipe.frozen)
        placed: Any = net.to(device)
        self.net: nn.Module = placed.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(self.net, recipe)
        self.average = Average(self.net, recipe.average) if recipe.average else None
        self.position = Position()
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self._resume()
        # A name or a halo that no model card can have is found before the first epoch, not after it.
        self.card()
        self.parallel = team.wrap(self.net, device)

    def _resume(self) -> None:
        path = self.out / FILE
        if not path.is_file():
            return
        self.position, tensors = load_state(path, self.recipe)
        average = restore(tensors, self.net, self.optimizer)
        if self.average is not None and average is not None:
            self.average.restore(average, self.position.averaged)
        if self.position.scaler:
            self.scaler.load_state_dict(self.position.scaler)

    def run(self) -> None:
        """Train the epochs that are left.

        Raises:
            TrainingError: A number is not finite; what earlier epochs left is kept.
        """
        if self.position.epoch >= self.recipe.epochs:
            return
        loader = self._loader()
        if self.team.leads:
            done = self.position.epoch * self.steps
            self.progress.stage("training", self.recipe.epochs * self.steps, done=done)
        with _repeatable():
            while self.position.epoch < self.recipe.epochs:
                self._epoch(loader)

    def _loader(self) -> DataLoader[Crop]:
        workers = self.recipe.workers
        if workers is None:
            workers = _READERS if self.device.type == "cuda" else 0
        return DataLoader(
            self.crops,
            batch_size=self.recipe.batch // self.team.world,
            sampler=self.order,
            collate_fn=collate,
            num_workers=workers,
            # Forked processes would share the offsets of open files.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=bool(workers),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_reading if workers else None,
        )

    def _epoch(self, loader: DataLoader[Crop]) -> None:
        begin = time.monotonic()
        self.order.epoch = epoch = self.position.epoch + 1
        self.parallel.train()
        sums = _Sums()
        for batch in loader:
            self._step(batch, sums)
        self.position.epoch = epoch
        means = self.team.mean(torch.tensor([sums.loss, sums.iou], device=self.device) / max(sums.steps, 1))
        if not self.team.leads:
            self.team.wait()
            return
        net = self.plain()
        found = None
        if epoch % self.recipe.validate_every == 0 or epoch == self.recipe.epochs:
            found = self._validate(net)
        self.position.seconds += time.monotonic() - begin
        self._leave(epoch, means.tolist(), net, found)
        self.team.wait()

    def _step(self, batch: Crop, sums: _Sums) -> None:
        self._complain(batch.problems)
        image, building, known, counts = (item.to(self.device, non_blocking=True) for item in batch[:4])
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self._rate()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.parallel(normalised(image, known))
        parts = self.loss(logits[:, 0], building, counts)
        value = parts.loss.item()
        if not math.isfinite(value):
            raise TrainingError(self._explain(image, logits, parts.entropy, parts.jaccard))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(parts.loss).backward()
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.net)
        self.position.step += 1
        sums.loss += value
        sums.iou += float(parts.iou)
        sums.steps += 1
        if self.team.leads:
            self.progress.advance(1, pixels=building.numel() * self.team.world)

    def _complain(self, problems: Sequence[str]) -> None:
        """Tell what could not be read, each thing once."""
        for problem in dict.fromkeys(problems):
            if problem not in self.problems:
                self.problems.append(problem)
                self.progress.warn(problem)

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        recipe, step = self.recipe, self.position.step
        rate = recipe.learning_rate * min(1.0, (step + 1) / max(recipe.warmup, 1))
        if recipe.schedule == "cosine":
            rate *= 0.5 + 0.5 * math.cos(math.pi * step / (recipe.epochs * self.steps))
        return rate

    def _explain(self, image: Tensor, logits: Tensor, entropy: Tensor, jaccard: Tensor) -> str:
        """Say where the first number that is not finite was found."""
        weights = next((key for key, value in self.net.state_dict().items() if not value.isfinite().all()), None)
        if not image.isfinite().all():
            where = "the images hold numbers that are not finite; declare them as nodata"
        elif weights is not None:
            where = f"the weights {weights} are no longer finite: the learning rate is too high for this data"
        elif not logits.isfinite().all():
            where = "the network's answer is not finite, its weights still are: it overflows in this precision"
        else:
            where = f"cross-entropy {float(entropy):g}, Jaccard {float(jaccard):g}"
        kept = (
            f"{self.out / LAST} holds epoch {self.position.epoch}" if self.position.epoch else "no epoch was finished"
        )
        return (
            f"the loss is not finite at step {self.position.step + 1} (learning rate {self._rate():g}, "
            f"{str(self.dtype).removeprefix('torch.')}): {where}. {kept}. Lower learning_rate, add warmup or clip, or "
            "take precision = 'fp32'"
        )

    def plain(self) -> nn.Module:
        """Return the network as it is saved: averaged, without normalisation layers, in evaluation mode."""
        training = {key: value.clone() for key, value in self.net.state_dict().items()}
        if self.average is not None:
            self.net.load_state_dict(self.average.values)
        try:
            return fold_batch_norm(self.net) if self.recipe.decoder_norm else _copy(self.net)
        finally:
            if self.average is not None:
                self.net.load_state_dict(training)

    def _validate(self, net: nn.Module) -> Validation:
        recipe = self.recipe
        found = validate(
            net,
            self.held,
            self.loss,
            crop=recipe.validation_crop,
            gsd=recipe.gsd,
            device=self.device,
            dtype=self.dtype,
        )
        self._complain(found.problems)
        return found

    def _leave(self, epoch: int, means: Sequence[float], net: nn.Module, found: Validation | None) -> None:
        """Write everything that an epoch leaves; the state comes last, so that it never promises too much."""
        position, best = self.position, False
        rate = self.recipe.learning_rate if position.step == 0 else self._rate_before()
        row: dict[str, float | int | None] = {
            "epoch": epoch,
            "step": position.step,
            "seconds": round(position.seconds, 1),
            "learning_rate": rate,
            "train_loss": means[0],
            "train_iou": means[1],
            "val_loss": None,
            "val_iou": None,
            "threshold": None,
        }
        # Of these weights and no others: the card says for which epoch they hold.
        position.metrics = {}
        words = f"epoch {epoch}: loss {means[0]:.4f}, IoU {means[1]:.4f}"
        if found is not None:
            measured = None if math.isnan(found.iou) else found.iou
            row |= {"val_loss": found.loss, "val_iou": measured, "threshold": found.threshold}
            position.threshold = found.threshold
            named = {"iou": found.iou, **{f"iou {name}": value for name, value in found.parts.items()}}
            position.metrics = {name: value for name, value in named.items() if math.isfinite(value)}
            best = found.iou > position.best_iou
            if best:
                position.best_epoch, position.best_iou = epoch, found.iou
            parts = ", ".join(f"{name} {value:.3f}" for name, value in found.parts.items())
            words += f" · validation IoU {found.iou:.4f} at {found.threshold:.2f} ({parts})"
        position.rows.append(row)
        position.averaged = self.average.updates if self.average is not None else 0
        position.scaler = self.scaler.state_dict()
        self.out.mkdir(parents=True, exist_ok=True)
        card = self.card()
        save_model(self.out / LAST, net, card, half=self.recipe.half)
        if best:
            save_model(self.out / BEST, net, card, half=self.recipe.half)
        _write_curve(self.out / CURVE, position.rows)
        draw_run(read_curve(self.out / CURVE), self.out / PICTURE)
        average = None if self.average is None else self.average.values
        save_state(self.out / FILE, self.recipe, position, self.net, average, self.optimizer)
        self.progress.say(words)

    def _rate_before(self) -> float:
        self.position.step -= 1
        try:
            return self._rate()
        finally:
            self.position.step += 1

    def card(self) -> ModelCard:
        """Return the model card of the network as it is now."""
        recipe, position = self.recipe, self.position
        known = [
            DataSource(d.name or f"unnamed ({len(scenes)} images)", d.licence or "not stated", d.source or "not stated")
            for d, scenes in self.tables
        ]
        gsds = sorted(scene.gsd for _, scenes in self.tables for scene in scenes if scene.gsd is not None)
        bands = {d.bands for d, _ in self.tables}
        return ModelCard(
            name=recipe.name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.out.resolve().name).lstrip("._-") or recipe.arch,
            bands=(bands.pop() if len(bands) == 1 else None) or (1, 2, 3),
            arch=recipe.arch,
            num_filters=recipe.num_filters,
            is_deconv=recipe.is_deconv,
            value_range=_ranges(scene for _, scenes in self.tables for scene in scenes),
            gsd_m=recipe.gsd or (gsds[len(gsds) // 2] if gsds else None),
            threshold=position.threshold,
            halo=recipe.halo,
            training_data=tuple(dict.fromkeys([*known, *self.origins])),
            licence=recipe.licence,
            metrics={"epoch": float(position.epoch), **position.metrics},
            description=recipe.description,
        )


def _ranges(scenes: Iterable[Scene]) -> dict[str, tuple[float, float]]:
    """Return the value range of each pixel type; none where images differ, for then a user has to say."""
    found: dict[str, set[tuple[float, float]]] = {}
    for scene in scenes:
        found.setdefault(str(scene.mosaic.dtype), set()).add(scene.range)
    return {kind: ranges.pop() for kind, ranges in found.items() if len(ranges) == 1}


_reader = ExitStack()
"""What a process that only reads crops keeps until it ends."""


def _begin_reading(_number: int) -> None:
    """Give a reading process GDAL's settings, which it does not inherit."""
    _reader.enter_context(gdal_env(cache_mb=64))


def _write_curve(path: Path, rows: Sequence[dict[str, float | int | None]]) -> None:
    lines = [",".join(COLUMNS)]
    lines += [",".join("" if row[key] is None else f"{row[key]:.9g}" for key in COLUMNS) for row in rows]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def _copy(net: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(net).eval()


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    learning = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    encoder = [p for name, p in learning if name.startswith("encoder.")]
    decoder = [p for name, p in learning if not name.startswith("encoder.")]
    groups = [{"params": encoder, "share": recipe.encoder_rate}, {"params": decoder, "share": 1.0}]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind([g for g in groups if g["params"]], lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _check_apart(tables: Tables, held: Tables) -> None:
    """Refuse to validate on what is learnt from: the same image, unless labelled areas in it are apart."""
    learnt: dict[str, list[Scene]] = {}
    for scene in (scene for _, scenes in tables for scene in scenes):
        learnt.setdefault(scene.mosaic.sources[0].path, []).append(scene)
    for scene in (scene for _, scenes in held for scene in scenes):
        for other in learnt.get(scene.mosaic.sources[0].path, []):
            if scene.shares_ground(other):
                raise SettingError(
                    f"{scene.name}: in data and in validate; leave it out of one with only or but, or give areas of "
                    "interest that lie apart, for a network knows what it learnt from"
                )


@contextmanager
def _repeatable() -> Iterator[None]:
    """Take algorithms that give the same numbers every time, where there are such."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory before it is written, so that filling it first would only take time.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
