"""``report.html``: one run of ``geoseg segment`` on one page that needs nothing but itself.

The page's content policy forbids loading anything and running any script but its own, which draws the map: it can be
forwarded, archived, or opened from a disc. Without scripts it shows a still picture in the map's place. File names,
model cards and error messages come from outside; all of them pass through jinja2's autoescape or, for the script,
its ``tojson``, none around them. Every part is bounded (footprints, pictures, rows of tables), so that the page of a
whole city stays under :data:`PAGE_BYTES`.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from geoseg import wording as say
from geoseg.areas import AreaHistogram
from geoseg.chart import draw_chart
from geoseg.overview import Overview
from geoseg.picture import INFERNO, OUTLINE, Budget, Preview, draw_picture
from geoseg.write import replacing

PAGE_BYTES = 16_000_000
"""A page is not larger than this, whatever the run."""

MAX_ROWS = 200
"""Rows of a table; the rest is counted and left to ``run.json``."""

# Together 3.2 MB; with the 11.9 MB of the map (see geoseg.overview) that leaves 0.9 MB of PAGE_BYTES for text.
_STILL_BUDGET = Budget(150_000, 60_000, 40_000, 0)
_DETAILS_BUDGET = Budget(1_500_000, 650_000, 180_000, 400_000)


def write_report(
    path: Path,
    run: Mapping[str, Any],
    overview: Overview,
    details: Sequence[Preview],
    areas_m2: AreaHistogram,
) -> None:
    """Write the page of one run; it appears complete or not at all.

    Args:
        path: Where to write.
        run: What ``run.json`` holds; what is missing shows as a dash.
        overview: The whole mosaic, made small.
        details: Two to four places, best at full resolution.
        areas_m2: The areas of all buildings (square pixels for imagery without georeference).

    Raises:
        OutputError: the file cannot be written.
    """
    page = render(run, overview, details, areas_m2)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def render(
    run: Mapping[str, Any],
    overview: Overview,
    details: Sequence[Preview],
    areas_m2: AreaHistogram,
) -> str:
    """Return the page as text; see :func:`write_report`."""
    ground = say.number(_get(run, "mosaic", "ground_gsd_m"))
    in_metres = ground is not None or "mosaic" not in run
    outputs = _outputs(run)
    share = 1 / max(len(details), 1)
    still = overview.still()
    still_gsd = overview.ground[0] * overview.shape[1] / still.shape[1] if overview.ground else None
    pictures = [draw_picture(detail, _DETAILS_BUDGET.times(share), ground) for detail in details]
    threshold = _threshold(run)
    script = _script()
    shown = overview.facts(threshold, _insets(details), in_metres)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=_title(run),
            subtitle=_subtitle(run),
            status=_status(run),
            failures=_Rows.of(run.get("failures"), _failure),
            headline=_headline(run, in_metres),
            script=Markup(script),  # noqa: S704 - our own files, and nothing else
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            map=shown,
            about=f"{overview.shown(in_metres)} {_pixel(overview, shown)}",
            still=draw_picture(still, _STILL_BUDGET, still_gsd),
            details=list(zip(pictures, (_address(overview, detail) for detail in details), strict=True)),
            threshold=threshold,
            chart=draw_chart(areas_m2, in_metres),
            facts=_facts(run),
            settings=_pairs(_get(run, "settings")),
            versions=_pairs(_get(run, "versions")),
            timings=_timings(run),
            model=_model(run),
            inputs=_Rows.of(run.get("inputs"), _input),
            outputs=outputs,
            vector=next((path for _, path, _ in outputs if path.endswith(_VECTORS)), "buildings.gpkg"),
            command=say.text(run.get("command"), 4 * say.MAX_TEXT),
            version=say.text(run.get("geoseg")),
            in_metres=in_metres,
            colours=[_css(colour) for colour in INFERNO],
            outline=_css(OUTLINE),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("geoseg", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _script() -> str:
    """Return the page's script as it stands in the page; its hash lets it, and nothing else, run."""
    loader = _environment().loader
    assert loader is not None  # noqa: S101 - for the type checker; set above
    parts = [loader.get_source(_environment(), name)[0] for name in ("footprints.js", "tiles.js", "map.js")]
    return "\n".join(['"use strict";', "(() => {", *parts, "})();", ""])


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _pixel(overview: Overview, shown: Mapping[str, Any]) -> str:
    """Say what a pixel of the map's imagery is."""
    side = overview.shrink * shown["imagery"][-1]["factor"]
    if side == 1:
        return "The imagery is shown pixel for pixel."
    size = f" ({say.metres(overview.ground[0] * side)})" if overview.ground else ""
    whole = ", and whole where the details below are" if shown["insets"] else ""
    return f"At its finest the imagery is shown with a pixel for {side} × {side} of the mosaic{size}{whole}."


def _insets(details: Sequence[Preview]) -> list[dict[str, Any]]:
    """Return which figures of the page the map also shows, and where."""
    return [
        {"id": f"detail{number}", "place": detail.place} for number, detail in enumerate(details, 1) if detail.place
    ]


def _address(overview: Overview, detail: Preview) -> str:
    """Return the map's view of a detail, as the part of an address behind the ``#``; empty where it has no place."""
    if detail.place is None:
        return ""
    left, top, right, bottom = detail.place
    col, row = (left + right) / 2, (top + bottom) / 2
    x, y = overview.transform @ (col, row) if overview.transform else (col, row)
    return f"#x={x:.12g}&y={y:.12g}&z=1&layers=imagery,footprints" if math.isfinite(x + y) else ""


@dataclass(frozen=True)
class _Rows:
    """The first rows of a table, and how many more there are."""

    rows: tuple[tuple[str, ...], ...]
    more: int

    @classmethod
    def of(cls, items: Any, row: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> _Rows:
        every = list(_mappings(items))
        return cls(tuple(map(row, every[:MAX_ROWS])), max(len(every) - MAX_ROWS, 0))


@dataclass(frozen=True)
class _Model:
    name: str
    facts: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, str, str], ...]
    """Name, licence, anything else."""
    metrics: tuple[tuple[str, str], ...]


def _get(run: Any, *keys: str) -> Any:
    """Follow keys into nested mappings; None where they end early."""
    for key in keys:
        if not isinstance(run, Mapping):
            return None
        run = run.get(key)
    return run


def _took(run: Mapping[str, Any]) -> float | None:
    started, finished = say.moment(run.get("started")), say.moment(run.get("finished"))
    if started is None or finished is None or (started.tzinfo is None) != (finished.tzinfo is None):
        return None
    return (finished - started).total_seconds()


def _title(run: Mapping[str, Any]) -> str:
    paths = [str(item["path"]) for item in _mappings(run.get("inputs")) if item.get("path")]
    if not paths:
        return "Building footprints"
    if len(paths) == 1:
        return f"Building footprints: {say.shortened(say.file_name(paths[0]), 80)}"
    folders = {path.replace("\\", "/").rpartition("/")[0] for path in paths}
    name, rest = say.file_name(folders.pop()), f"{say.count(len(paths))} files"
    if folders or name == say.MISSING:
        name, rest = say.file_name(paths[0]), f"and {say.count(len(paths) - 1)} more"
    return f"Building footprints: {say.shortened(name, 80)} ({rest})"


def _subtitle(run: Mapping[str, Any]) -> str:
    parts = [say.when(run.get("finished") or run.get("started"))]
    parts += [say.text(_get(run, "model", "name")), say.text(_get(run, "mosaic", "crs"), 60)]
    return " · ".join(part for part in parts if part != say.MISSING)


def _threshold(run: Mapping[str, Any]) -> float | None:
    chosen = say.number(_get(run, "settings", "threshold"))
    return say.number(_get(run, "model", "threshold")) if chosen is None else chosen


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Mapping))


def _failure(item: Mapping[str, Any]) -> tuple[str, ...]:
    where = say.text(item["path"]) if "path" in item else f"block {say.text(item.get('block'))}"
    return where, say.text(item.get("message"))


def _status(run: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the class and the text of the banner."""
    failures = len(list(_mappings(run.get("failures"))))
    counts = run.get("counts")
    blocks, failed = (say.number(_get(counts, key)) for key in ("blocks", "blocks_failed"))
    if failures or failed:
        missing = f"Blocks missing: {say.count(failed)} of {say.count(blocks)}. " if failed else ""
        number = max(failures, int(failed or 0))
        problems = f"{say.count(number)} problem{'s' if number != 1 else ''}"
        return "bad", (
            f"Incomplete: {problems}. {missing}Everything else is done; the same command, run again,"
            " tries only what is missing."
        )
    if blocks is None:
        return None
    return "good", f"Complete: {say.count(blocks)} of {say.count(blocks)} blocks, no failures."


def _headline(run: Mapping[str, Any], in_metres: bool) -> list[tuple[str, str, str]]:
    """Return figure, what it is, and a smaller line."""
    counts, mosaic = run.get("counts"), run.get("mosaic")
    valid = say.number(_get(counts, "valid_pixels"))
    built = say.number(_get(counts, "building_pixels"))
    number = say.number(_get(counts, "buildings"))
    area = say.number(_get(counts, "building_area_m2"))
    width, height = (say.number(_get(mosaic, key)) for key in ("width", "height"))
    gsd = say.number(_get(mosaic, "ground_gsd_m"))
    ground = valid * gsd**2 if valid is not None and gsd else None
    density = f"{say.count(number / ground * 1e6)} per km²" if number and ground else ""
    pixels = width * height if width and height else None
    size = say.MISSING if pixels is None else f"{say.figures(pixels / 1e6)}{say.SPACE}Mpx"
    grid = f"{say.count(width)} × {say.count(height)}" if pixels else ""
    took = _took(run)
    return [
        (say.count(number), "buildings", density),
        (
            say.area(area) if in_metres else say.sized(area, "px²"),
            "footprint area",
            f"{say.sized(area / number, 'm²' if in_metres else 'px²')} each on average"
            if area is not None and number
            else "",
        ),
        (say.percent(built, valid), "built up", f"of {say.area(ground)} imaged" if ground else ""),
        (size, "of imagery", " · ".join(filter(None, (grid, say.metres(gsd) if gsd else "")))),
        (
            say.rate(run.get("rate_px_s")),
            "speed",
            f"{say.duration(took)} in all" if took is not None else "",
        ),
    ]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    mosaic, counts = run.get("mosaic"), run.get("counts")
    number = {key: say.number(value) for key, value in _mapping(counts).items()}
    share = say.number(_get(mosaic, "data_share"))
    inputs = run.get("inputs")
    size = [say.number(item.get("size")) for item in _mappings(inputs)]
    known = [part for part in size if part is not None]
    done = ", ".join(
        f"{say.count(number[key])} {text}"
        for key, text in (
            ("blocks_computed", "computed"),
            ("blocks_resumed", "resumed"),
            ("blocks_failed", "failed"),
        )
        if number.get(key) is not None
    )
    width, height = (say.number(_get(mosaic, key)) for key in ("width", "height"))
    return [
        ("Files", say.count(len(inputs)) if isinstance(inputs, list | tuple) else say.MISSING),
        ("Size on disk", say.file_size(sum(known)) if known else say.MISSING),
        ("Grid", f"{say.count(width)} × {say.count(height)} px" if width and height else say.MISSING),
        ("Reference system", say.text(_get(mosaic, "crs"))),
        ("Pixel size in that system", say.text(_get(mosaic, "pixel_size"))),
        ("Pixel size on the ground", say.metres(say.number(_get(mosaic, "ground_gsd_m")))),
        ("Pixels with data", say.percent(share, 1.0)),
        ("Threshold", say.text(_threshold(run))),
        ("Started", say.when(run.get("started"))),
        ("Finished", say.when(run.get("finished"))),
        ("Blocks", say.count(number.get("blocks")) + (f" ({done})" if done else "")),
        ("Workers", say.text(run.get("workers"))),
        ("Device, precision", f"{say.text(run.get('device'))}, {say.text(run.get('precision'))}"),
        ("Halo, taper", ", ".join(say.pixels(run.get(key)) for key in ("halo", "taper"))),
        *([("PostGIS", _postgis(run["postgis"]))] if _mapping(run.get("postgis")) else []),
    ]


def _postgis(facts: Any) -> str:
    rows = say.number(_get(facts, "rows"))
    table = f"{say.text(_get(facts, 'server'))}, table {say.text(_get(facts, 'table'))}"
    return f"{say.count(rows)} rows in {table}" if rows is not None else f"not written to {table}"


def _pairs(value: Any) -> list[tuple[str, str]]:
    items = list(_mapping(value).items())[:MAX_ROWS]
    return [(say.label(key), say.text(item)) for key, item in items]


def _timings(run: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return stage, time, and length of its bar in percent of the longest."""
    items = [(say.text(key), say.number(value)) for key, value in _mapping(run.get("timings")).items()]
    known = [(key, value) for key, value in items if value is not None and value >= 0][:MAX_ROWS]
    longest = max((value for _, value in known), default=0) or 1
    return [(key, say.duration(value), round(100 * value / longest, 2)) for key, value in known]


def _model(run: Mapping[str, Any]) -> _Model:
    card = _mapping(run.get("model"))
    gsd = say.number(card.get("gsd_m"))
    shown = {"name", "gsd_m", "threshold", "licence", "training_data", "metrics", "sha256"}
    rest = [(say.label(key), say.text(value)) for key, value in card.items() if key not in shown]
    return _Model(
        name=say.text(card.get("name")),
        facts=(
            ("Licence of the weights", say.text(card.get("licence"))),
            ("Trained for", f"{say.metres(gsd)} a pixel" if gsd else say.MISSING),
            ("Threshold", say.text(card.get("threshold"))),
            ("SHA-256", say.text(card.get("sha256"))),
            *(pair for pair in rest[:MAX_ROWS] if pair[1] != say.MISSING),
        ),
        sources=tuple(_sources(card.get("training_data")))[:MAX_ROWS],
        metrics=tuple(_pairs(card.get("metrics"))),
    )


def _sources(value: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(value, list | tuple):
        return
    for item in value:
        if isinstance(item, Mapping):
            rest = {key: part for key, part in item.items() if key not in ("name", "licence")}
            filled = [say.text(part) for part in rest.values() if say.text(part) != say.MISSING]
            yield say.text(item.get("name")), say.text(item.get("licence")), " · ".join(filled)
        else:
            yield say.text(item), say.MISSING, ""


def _input(item: Mapping[str, Any]) -> tuple[str, ...]:
    rest = {key: part for key, part in item.items() if key not in ("path", "size")}
    size = say.number(item.get("size"))
    shown = say.text(item.get("size")) if size is None else say.file_size(size)
    return say.text(item.get("path")), shown, say.text(rest) if rest else ""


_VECTORS = (".gpkg", ".fgb", ".parquet", ".geojson")
_MEANINGS = {
    ".gpkg": "building footprints, one polygon per building",
    ".fgb": "building footprints as FlatGeobuf",
    ".parquet": "building footprints as GeoParquet",
    ".geojson": "building footprints as GeoJSON",
    "mask.tif": "building mask, 255 = building",
    "probability.tif": "probability of building, 255 = 1.0",
    "project.qgz": "QGIS project: imagery and results, styled",
    "item.json": "STAC item, for catalogues",
    "report.html": "this page",
    "run.json": "everything on this page, for programs",
}


def _outputs(run: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return link, path and meaning of each result; paths that leave the folder get no link."""
    found = []
    for path in list(_mapping(run.get("outputs")).values())[:MAX_ROWS]:
        if not isinstance(path, str) or not path:
            continue
        plain = path.replace("\\", "/")
        inside = not plain.startswith("/") and ".." not in plain.split("/")
        # The leading ./ and the quoted colon keep a name such as "javascript:…" a file name.
        link = "./" + quote(plain, errors="surrogateescape") if inside else ""
        name = plain.rpartition("/")[2]
        suffix = "." + name.rpartition(".")[2]
        found.append((link, say.text(plain), _MEANINGS.get(name, _MEANINGS.get(suffix, ""))))
    return found
