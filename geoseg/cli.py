"""The command line: every command parses, calls one function of the library, and prints.

stdout is data, stderr is progress and messages. Exit codes: 0 done; 1 some inputs or blocks failed and the rest is
written; 2 wrong use, or nothing could be done at all.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geoseg import __version__
from geoseg.errors import GeosegError, SettingError

if TYPE_CHECKING:
    from geoseg.segment import Result
    from geoseg.train.loop import Trained

Command = TypeVar("Command", bound=Callable[..., Any])
PARTLY, WRONG, INTERRUPTED = 1, 2, 130


class Numbers(click.ParamType):
    """Numbers separated by commas, such as ``1,2,3``."""

    name = "numbers"

    def __init__(self, count: int | None, kind: type[int] | type[float]) -> None:
        """Expect ``count`` numbers of a kind, or any number of them."""
        self.count, self.kind = count, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse, or fail in click's own words."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or self.count not in (None, len(numbers)):
            self.fail(f"{value!r} is not {self.count or 'whole'} numbers separated by commas", param, ctx)
        return numbers


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Stack click options in the order in which ``--help`` should list them."""

    def add(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add


input_argument = click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")

sight_options = options(
    click.option(
        "--model",
        metavar="NAME|PATH",
        help="A shipped model's name or a model file, .onnx and TorchScript with a card beside them included. "
        "[default: the one shipped]",
    ),
    click.option(
        "--threshold",
        type=float,
        metavar="P",
        help="Probability from which a pixel is building. [default: the model's]",
    ),
    click.option(
        "--bands",
        type=Numbers(3, int),
        metavar="R,G,B",
        help="Bands that are red, green and blue, from 1. [default: 1,2,3]",
    ),
    click.option(
        "--range",
        type=Numbers(2, float),
        metavar="LO,HI",
        help="Stored values that mean black and white; needed for 16-bit imagery. [default: the model's]",
    ),
    click.option(
        "--gsd",
        type=float,
        metavar="M",
        help="Resample to M metres a pixel on the ground. [default: keep the first file's grid]",
    ),
    click.option(
        "--aoi", type=click.Path(), metavar="FILE", help="Only inside the polygons of this vector file, in any CRS."
    ),
)

work_options = options(
    click.option(
        "--halo",
        default="auto",
        show_default=True,
        metavar="PX|exact|auto",
        help="Pixels that a window sees around what it answers for. "
        "'exact' equals one pass over the whole image; 'auto' is cheaper and within one grey level of it.",
    ),
    click.option(
        "--taper", type=int, metavar="PX", help="Fade windows into each other over PX pixels. [default: the halo's own]"
    ),
    click.option(
        "--core",
        type=int,
        metavar="PX",
        help="Side of a block, the unit of work and of resume, in whole cells. [default: one cell]",
    ),
    click.option(
        "--cell",
        type=int,
        metavar="PX",
        help="Side of what one window answers for: smaller ones waste more on halos and spread over more workers. "
        "[default: 5120; 1536 for networks of other makers]",
    ),
    click.option("--tta", is_flag=True, help="Average over eight rotations and mirror images: eight times the work."),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N", help="Where the network runs."
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the network; auto is fp16 on GPUs (bf16 for foreign networks), fp32 elsewhere.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "native"]),
        default="auto",
        show_default=True,
        help="Arithmetic on a CPU: native, geoseg's own kernels, checked against torch on a piece of the first window; "
        "torch; auto is native where the processor has AVX2 or NEON.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Local worker processes. [default: one per GPU, or one per eight cores]",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="Use a running dask cluster, such as tcp://host:8786, or the file that 'dask scheduler --scheduler-file' "
        "writes.",
    ),
)

outline_options = options(
    click.option(
        "--min-area", type=float, default=4.0, show_default=True, metavar="M2", help="Leave out smaller buildings."
    ),
    click.option("--min-hole", type=float, default=2.0, show_default=True, metavar="M2", help="Close smaller holes."),
    click.option(
        "--simplify",
        type=float,
        metavar="M",
        help="How far outlines may move from the pixels' edges; 0 keeps the edges. [default: one pixel]",
    ),
    click.option(
        "--square/--no-square",
        default=True,
        show_default=True,
        help="Turn walls that are nearly parallel or at right angles until they are, or only straighten outlines.",
    ),
    click.option(
        "--outline",
        type=click.Choice(["pixel", "subpixel"]),
        default="pixel",
        show_default=True,
        help="What outlines are made from: the pixels' edges, or where the probability passes the threshold between "
        "pixels.",
    ),
)

postgis_options = options(
    click.option(
        "--postgis",
        metavar="URL",
        help="Write the footprints to a PostGIS database, too: postgresql://USER@HOST:PORT/DATABASE. A password is "
        "better in PGPASSWORD or ~/.pgpass than in the URL.",
    ),
    click.option(
        "--postgis-table", default="buildings", show_default=True, metavar="[SCHEMA.]TABLE", help="The table there."
    ),
    click.option(
        "--postgis-mode",
        type=click.Choice(["replace", "append"]),
        default="replace",
        show_default=True,
        help="What becomes of the rows that are there: all make room, or only those of the very same run.",
    ),
)

progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "json", "none"]),
    default="auto",
    show_default=True,
    help="What to show on stderr while working.",
)
format_option = click.option(
    "--format",
    type=click.Choice(["gpkg", "fgb", "parquet", "geojson"]),
    multiple=True,
    default=("gpkg",),
    show_default=True,
    help="Vector format; may be given several times.",
)


def mask_options(truth: str) -> Callable[[Command], Command]:
    """What the numbers of two masks mean; ``truth`` is how the command calls the second."""
    return options(
        click.option(
            "--predicted-classes",
            type=Numbers(None, int),
            metavar="A,B,…",
            help="Values of PREDICTED that mean building. [default: the only one besides 0]",
        ),
        click.option(
            "--classes",
            type=Numbers(None, int),
            metavar="A,B,…",
            help=f"Values of {truth} that mean building. [default: the only one besides 0]",
        ),
        click.option(
            "--ignore",
            type=Numbers(None, int),
            default=(),
            metavar="A,B,…",
            help=f"Values of {truth} that mean 'not labelled'; those pixels count in nothing.",
        ),
    )


def friendly(command: Command) -> Command:
    """Turn geoseg's own errors into one line and exit code 2, and Ctrl-C into a word about resuming."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except GeosegError as error:
            click.echo(f"geoseg: {error}", err=True)
            sys.exit(WRONG)
        except KeyboardInterrupt:
            click.echo("geoseg: stopped; what is finished is kept, the same command goes on", err=True)
            sys.exit(INTERRUPTED)

    return run  # type: ignore[return-value]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="geoseg")
def main() -> None:
    r"""Building footprints from aerial imagery.

    Takes a folder of georeferenced orthophotos of any size and writes masks (GeoTIFF) and
    footprints (GeoPackage and others) that QGIS opens, styled.

    \b
      geoseg segment ortho/ --out footprints
      geoseg segment 'tiles/*.tif' --out out --aoi district.gpkg --format parquet
    """
    from geoseg.qgis.tied import end_with_parent

    end_with_parent()
    # Python looks through all that torch has brought before it ends, which takes most of a second and frees nothing.
    atexit.register(gc.freeze)


@main.command()
@input_argument
@click.option("--out", required=True, type=click.Path(file_okay=False), metavar="DIR", help="Folder for the results.")
@sight_options
@work_options
@outline_options
@format_option
@postgis_options
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left in DIR.")
@progress_option
@friendly
def segment(inputs: tuple[str, ...], out: str, **settings: Any) -> None:
    """Find the buildings in rasters.

    INPUT is any number of files, folders, globs or GDAL names (/vsicurl/…, /vsis3/…, .vrt); together they are one
    mosaic. DIR gets mask.tif, probability.tif, buildings.gpkg, project.qgz (for QGIS), report.html, item.json
    (STAC) and run.json. A run that was interrupted goes on where it stopped when the same command is given again.
    """
    from geoseg.segment import segment as run

    _close(run(inputs, out, **settings))


def _close(result: Result) -> None:
    """Print the closing summary and leave with the contract's exit code."""
    from geoseg.finish import summary

    for line in summary(result):
        click.echo(line, err=True)
    if not result.complete:
        sys.exit(PARTLY)


@main.command()
@input_argument
@sight_options
@work_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@friendly
def plan(inputs: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Show what segment would do: blocks, forward pixels per pixel, memory, time.

    The time comes from running the model on one window, here and now.
    """
    from geoseg.planning import describe, estimate

    facts = estimate(inputs, settings)
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else describe(facts))


@main.command()
@click.argument("raster", type=click.Path())
@click.argument("out", type=click.Path(dir_okay=False))
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="For probability rasters: from where a pixel is building. [default: 0.5]",
)
@outline_options
@postgis_options
@progress_option
@friendly
def polygonize(raster: str, out: str, **settings: Any) -> None:
    """Turn a mask or probability RASTER into building polygons.

    OUT's ending chooses the format: .gpkg, .fgb, .parquet or .geojson.
    """
    from geoseg.vectorise import polygonize_file

    count = polygonize_file(raster, out, **settings)
    click.echo(f"{count} buildings · {out}", err=True)
    if settings["postgis"] is not None:
        from geoseg.database import Destination

        table = Destination.of(settings["postgis"], settings["postgis_table"])
        click.echo(f"the same in {table.server}, table {table.name}", err=True)


@main.command()
@click.argument("predicted", type=click.Path())
@click.argument("reference", type=click.Path())
@click.option("--threshold", type=float, metavar="P", help="Probability from which a pixel is building. [default: 0.5]")
@click.option(
    "--predicted-as",
    type=click.Choice(["auto", "mask", "probability"]),
    default="auto",
    show_default=True,
    help="What PREDICTED holds, where its pixels do not tell.",
)
@mask_options("REFERENCE")
@click.option("--boundary-m", type=float, metavar="M", help="Distance of the boundary IoU on the ground.")
@click.option(
    "--boundary-px",
    type=int,
    metavar="PX",
    help="The same in pixels. [default: 2 % of each tile's diagonal, as published; 1 m for outlines]",
)
@click.option("--gsd", type=float, metavar="M", help="Pixel size on the ground; needed for polygons on both sides.")
@click.option(
    "--aoi", type=click.Path(), metavar="FILE", help="Only inside the polygons of this vector file, in any CRS."
)
@click.option(
    "--polygons/--no-polygons",
    default=True,
    show_default=True,
    help="Compare buildings and outlines as well, where PREDICTED is polygons.",
)
@click.option("--curve", is_flag=True, help="Show a table by threshold as well; JSON always has it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@progress_option
@friendly
def evaluate(predicted: str, reference: str, curve: bool, as_json: bool, progress: str, **settings: Any) -> None:
    """Measure PREDICTED against REFERENCE: IoU, precision, recall, boundary IoU.

    Each is a raster (mask or probability), a file of polygons, or a folder of them. Files of two folders are paired
    by name; a single file is compared with every file of a folder that it overlaps.

    For predicted polygons also buildings found (at IoU 0.5, and average precision) and the quality of their outlines:
    C-IoU, N-ratio, PoLiS and Hausdorff distance in metres, maximum tangent angle error.
    """
    from geoseg.evaluate import evaluate as measure
    from geoseg.evaluation import show
    from geoseg.progress import open_progress

    with open_progress(progress) as shown:
        result = measure(predicted, reference, progress=shown, **settings)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    show(result, sys.stdout, curve=curve)
    for note in result.notes:
        click.echo(note, err=True)
    if curve and result.curve is None:
        click.echo("no curve by threshold: not every prediction is a probability", err=True)


@main.command()
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--size", type=int, default=1024, show_default=True, metavar="PX", help="Side of a tile in pixels.")
@click.option("--grid", default="2x2", show_default=True, metavar="RxC", help="Rows and columns of tiles.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Which city.")
@progress_option
@friendly
def sample(out: str, size: int, grid: str, seed: int, progress: str) -> None:
    """Draw a synthetic city with exact ground truth, as adjacent georeferenced tiles."""
    from geoseg.progress import open_progress
    from geoseg.sample import write_sample

    rows, found, cols = grid.lower().partition("x")
    if not (found and rows.isdigit() and cols.isdigit()):
        raise SettingError(f"grid is {grid!r}; it must be rows x columns, such as 2x3")
    with open_progress(progress) as shown:
        shown.stage("drawing", int(rows) * int(cols))
        write_sample(
            Path(out),
            size=size,
            grid=(int(rows), int(cols)),
            seed=seed,
            progress=lambda _done, _total: shown.advance(),
        )
    click.echo(f"{out}/images · {out}/truth · {out}/buildings.gpkg", err=True)


@main.command()
@click.argument("pipeline", type=click.Path(dir_okay=False))
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left.")
@progress_option
@friendly
def run(pipeline: str, fresh: bool, progress: str) -> None:
    """Run the job that a PIPELINE.toml describes.

    Paths in the file are relative to the file.
    """
    from geoseg.pipeline import run_pipeline
    from geoseg.train.loop import Trained

    # What was not asked for here is left to the file.
    shown = None if progress == "auto" else progress
    result = run_pipeline(pipeline, fresh=fresh or None, progress=shown)
    if isinstance(result, Trained):
        _close_training(result)
    else:
        _close(result)


@main.command()
@click.argument("pipeline", type=click.Path(dir_okay=False))
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of [train], such as seed=2 or out=runs/two; may be given several times.",
)
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left.")
@progress_option
@friendly
def train(pipeline: str, changes: tuple[str, ...], fresh: bool, progress: str) -> None:
    """Train a network as a PIPELINE.toml with a [train] table says.

    The run's folder gets best.safetensors and last.safetensors (model files for --model), and learning curves as
    curves.csv and curves.png, all after every epoch. A run that was interrupted goes on after its last whole epoch
    when the same command is given again.
    """
    from geoseg.pipeline import read_recipe
    from geoseg.train import train as learn

    _close_training(learn(read_recipe(pipeline, changes), fresh=fresh, progress=progress))


def _close_training(result: Trained) -> None:
    for problem in result.problems:
        click.echo(f"left out: {problem}", err=True)
    best = result.curve.best
    if best is not None:
        click.echo(
            f"best: epoch {best.epoch}, IoU {best.val_iou:.4f} at threshold {best.threshold:.2f} · {result.best}",
            err=True,
        )
    click.echo(f"learning curves · {result.out}/curves.png", err=True)
    if result.problems:
        sys.exit(PARTLY)


@main.group()
def model() -> None:
    """List, inspect, import and export models."""


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@friendly
def model_list(as_json: bool) -> None:
    """List the models that come with geoseg."""
    from geoseg.checkpoint import list_models

    cards = dict(list_models())
    if as_json:
        click.echo(json.dumps({name: json.loads(card.to_json()) for name, card in cards.items()}, indent=1))
        return
    for name, card in cards.items():
        ground = f"{card.gsd_m:g} m" if card.gsd_m else "any GSD"
        click.echo(f"{name}\t{card.arch}\t{ground}\tthreshold {card.threshold:g}\t{card.licence}")


@model.command("info")
@click.argument("name", metavar="[MODEL]", required=False)
@friendly
def model_info(name: str | None) -> None:
    """Print the card of a model: a shipped one's name, or a file; without any, of the one used by default."""
    from geoseg.checkpoint import load_model

    found = load_model(name)
    reach = found.reach
    facts = {
        **json.loads(found.card.to_json()),
        "file": str(found.path.absolute()),
        "sha256": found.fingerprint,
        "parameters": found.parameters,
        "reach_px": [reach.before, reach.after],
    }
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False))


@model.command("import")
@click.argument("source", type=click.Path(dir_okay=False), metavar="FILE")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--arch", type=click.Choice(["unet11", "unet16"]), required=True, help="Which TernausNet it is.")
@click.option("--name", help="Name on the card. [default: OUT's]")
@click.option("--gsd", type=float, metavar="M", help="Ground sampling distance it was trained at.")
@click.option(
    "--threshold",
    type=float,
    default=0.3,
    show_default=True,
    metavar="P",
    help="Probability from which a pixel is building.",
)
@click.option("--classes", metavar="A,B,…", help="Names of the classes; one must be 'building' when there are several.")
@click.option("--licence", help="Licence of the weights.")
@friendly
def model_import(source: str, out: str, arch: str, **card: Any) -> None:
    """Bring a published TernausNet checkpoint (.pt, .pth, .safetensors) into geoseg's format.

    Nothing in FILE is executed.
    """
    from geoseg.importing import import_checkpoint

    made = import_checkpoint(Path(source), Path(out), arch=arch, card=_card(card, Path(out)))
    click.echo(f"{made.name}: {made.arch}, {made.num_filters} filters, {made.num_classes} class(es) · {out}", err=True)


@model.command("export")
@click.argument("name", metavar="MODEL")
@click.argument("out", type=click.Path(dir_okay=False))
@friendly
def model_export(name: str, out: str) -> None:
    """Write a model as OUT.onnx, or as TorchScript (OUT.pt, .ts), for other programs.

    MODEL is a shipped one's name, or a file. The card goes beside it (OUT.onnx.json); --model takes the file again.
    """
    from geoseg.exporting import export_model
    from geoseg.foreign import card_path

    made = export_model(name, out)
    click.echo(f"{made.name}: {made.arch} · {out}, {card_path(Path(out))}", err=True)


def _card(given: dict[str, Any], out: Path) -> dict[str, Any]:
    """Name the options of ``model import`` as the card does, leaving out what was not given."""
    classes = given.pop("classes")
    card = {"name": given.pop("name") or out.stem, "gsd_m": given.pop("gsd"), **given}
    if classes:
        card["classes"] = tuple(classes.split(","))
    return {key: value for key, value in card.items() if value is not None}


label_option = click.option(
    "--label", "labels", multiple=True, metavar="TEXT", help="What to call them, as many times as there are; in order."
)
picture_option = click.option(
    "--out", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="The picture: .png, .svg, .pdf, .jpg."
)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(), metavar="RUN...")
@picture_option
@label_option
@click.option(
    "--reference",
    multiple=True,
    metavar="V[:TEXT]",
    help="Draw a horizontal line at an IoU, such as 0.687:paper; may be given several times.",
)
@friendly
def curves(runs: tuple[str, ...], out: str, labels: tuple[str, ...], reference: tuple[str, ...]) -> None:
    """Draw the validation IoU of several training runs against the epoch.

    RUN is the folder of a run, or its curves.csv. Runs of the same label (seeds) become one line, their mean, in a
    band from the lowest to the highest.
    """
    from geoseg.curves import draw_curves, parse_reference

    marks = [parse_reference(text) for text in reference]
    for line in draw_curves(runs, out, labels=labels or None, reference=marks):
        click.echo(line.summary())
    click.echo(out, err=True)


@main.command()
@click.argument("image", type=click.Path())
@click.argument("truth", type=click.Path())
@click.argument("predictions", nargs=-1, required=True, type=click.Path(), metavar="PREDICTED...")
@picture_option
@label_option
@click.option("--threshold", type=float, metavar="P", help="Probability from which a pixel is building. [default: 0.5]")
@click.option(
    "--window",
    type=Numbers(4, int),
    metavar="ROW,COL,HEIGHT,WIDTH",
    help="Part of IMAGE to show, in its pixels. [default: all that TRUTH covers]",
)
@click.option("--columns", type=int, default=5, show_default=True, metavar="N", help="Panels side by side.")
@click.option(
    "--panel", type=int, default=1600, show_default=True, metavar="PX", help="Most pixels of a panel's longer side."
)
@click.option("--bands", type=Numbers(3, int), metavar="R,G,B", help="Bands that are red, green and blue, from 1.")
@click.option(
    "--range",
    "value_range",
    type=Numbers(2, float),
    metavar="LO,HI",
    help="Stored values to show black and white. [default: from the image, if not of bytes]",
)
@mask_options("TRUTH")
@progress_option
@friendly
def compare(
    image: str,
    truth: str,
    predictions: tuple[str, ...],
    out: str,
    labels: tuple[str, ...],
    progress: str,
    **settings: Any,
) -> None:
    """Draw IMAGE, TRUTH and predictions side by side, and what each finds, misses and makes up.

    TRUTH and PREDICTED are masks, probabilities or polygons; PREDICTED may be a folder that segment wrote. Below each
    prediction stands its IoU on the area that is shown.
    """
    from geoseg.comparison import draw_comparison
    from geoseg.progress import open_progress

    with open_progress(progress) as shown:
        result = draw_comparison(image, truth, predictions, out, labels=labels or None, progress=shown, **settings)
    for one in result.predictions:
        click.echo(f"{one.label} · {' · '.join(one.words())}")
    for note in result.notes:
        click.echo(note, err=True)
    click.echo(out, err=True)


@main.group()
def qgis() -> None:
    """Bring geoseg into QGIS: a plugin for Processing that runs this geoseg."""


@qgis.command("install")
@click.option("--profile", metavar="NAME", help="A profile of QGIS. [default: the one that QGIS starts with]")
@click.option(
    "--profiles-folder",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where QGIS keeps its profiles. [default: where it does on this system]",
)
@friendly
def qgis_install(profile: str | None, profiles_folder: str | None) -> None:
    """Put the plugin into a QGIS profile, in place of an older one.

    It will run geoseg in the Python environment that this command runs in.
    """
    from geoseg.qgis.install import install

    made = install(profile, profiles_folder)
    click.echo(made.folder)
    was = f" (was {made.replaced})" if made.replaced else ""
    click.echo(f"geoseg {__version__}{was} is in the QGIS profile {made.profile.name}; it runs {made.python}", err=True)
    if not made.lasting:
        click.echo(
            f"but geoseg is not installed in it, only found in this folder: {made.python} -m pip install .", err=True
        )
    click.echo(
        "Start QGIS anew, and tick geoseg once under Plugins ▸ Manage and Install Plugins ▸ Installed, "
        "or: qgis_process plugins enable geoseg",
        err=True,
    )


@qgis.command("package")
@click.argument("out", type=click.Path(dir_okay=False), metavar="OUT.zip")
@friendly
def qgis_package(out: str) -> None:
    """Write the plugin as the zip that QGIS takes under Plugins ▸ Install from ZIP."""
    from geoseg.qgis.install import package

    click.echo(f"{package(out)} · in QGIS: Plugins ▸ Manage and Install Plugins ▸ Install from ZIP", err=True)


if __name__ == "__main__":
    main()
