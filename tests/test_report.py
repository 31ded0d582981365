"""The report: safe with hostile names, whole in itself, bounded, and true to what it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from shapely.geometry import box

from geoseg import picture
from geoseg.areas import AreaHistogram
from geoseg.errors import OutputError
from geoseg.overview import FOOTPRINTS_BUDGET, IMAGERY_BUDGET, PROBABILITY_BUDGET, Overview
from geoseg.packing import Packer
from geoseg.picture import Preview
from geoseg.report import PAGE_BYTES, render, write_report

VOID = {"meta", "img", "input", "br", "path", "use", "line"}
HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>&amp;"


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.words).append(data)

    @property
    def facts(self) -> dict[str, Any]:
        """What the page's script is told."""
        (facts,) = (text for text in self.scripts if text.startswith("{"))
        return dict(json.loads(facts))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def sources(self, kind: str) -> list[str]:
        """The pictures of one kind: that of the still picture of the map, if it has one, and those of the details."""
        return [str(a["src"]) for a in self.all("img") if a["class"] == kind]

    def image(self, kind: str) -> np.ndarray:
        return decoded(self.sources(kind)[-1])


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.partition("base64,")[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile(content) as memory, memory.open() as picture:
            return np.asarray(picture.read())


def preview(height: int = 48, width: int = 64, **changes: Any) -> Preview:
    rows, cols = np.mgrid[:height, :width]
    rgb = np.stack([rows * 255 // height, cols * 255 // width, (rows + cols) * 127 // (height + width)])
    values: dict[str, Any] = {
        "rgb": rgb.astype(np.uint8),
        "valid": np.ones((height, width), dtype=bool),
        "outlines": [box(10, 10, 20, 25), box(30, 5, 45, 15)],
        "caption": "A place",
        "probability": np.full((height, width), 128, dtype=np.uint8),
    }
    return Preview(**values | changes)


def overview(height: int = 48, width: int = 64, shrink: int = 100, **changes: Any) -> Overview:
    """The map of a mosaic of ``shrink`` times as many pixels."""
    shown = preview(height, width)
    values: dict[str, Any] = {
        "rgb": shown.rgb,
        "valid": shown.valid,
        "probability": shown.probability,
        "shrink": shrink,
        "shape": (shrink * height, shrink * width),
        "footprints": packed(box(1000, 1000, 2000, 2500), box(3000, 500, 4500, 1500)),
        "transform": Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000),
        "crs": "EPSG:32633",
        "ground": (0.5, 0.5),
    }
    return Overview(**values | changes)


def packed(*outlines: shapely.Polygon, budget: int = 10**6) -> Any:
    packer = Packer(budget)
    ids = np.arange(1, len(outlines) + 1)
    polygons = np.array(outlines, dtype=object)
    packer.add(polygons, ids, shapely.area(polygons) / 4, np.full(len(ids), 0.75))
    return packer.packed()


def full_run(text: str = "name") -> dict[str, Any]:
    """A run in which every text from outside is ``text``."""
    return {
        "geoseg": "0.1.0",
        "command": text,
        "started": "2026-03-12T12:00:00Z",
        "finished": "2026-03-12T14:03:20Z",
        "inputs": [{"path": f"ortho/{text}.tif", "size": 3_000_000, "note": text}],
        "mosaic": {
            "width": 6400,
            "height": 4800,
            "crs": text,
            "pixel_size": [0.3, 0.3],
            "ground_gsd_m": 0.5,
            "data_share": 0.75,
        },
        "model": {
            "name": text,
            "gsd_m": 0.3,
            "threshold": 0.42,
            "licence": text,
            "training_data": [{"name": text, "licence": text, "url": text}, text],
            "metrics": {text: 0.77},
            "sha256": "ab" * 32,
            text: text,
        },
        "settings": {"threshold": None, text: text},
        "counts": {
            "blocks": 12,
            "blocks_computed": 10,
            "blocks_resumed": 1,
            "blocks_failed": 1,
            "buildings": 12431,
            "building_area_m2": 1_920_000.0,
            "valid_pixels": 20_000_000,
            "building_pixels": 5_000_000,
        },
        "timings": {text: 61.0},
        "rate_px_s": 214e6,
        "workers": text,
        "device": text,
        "precision": text,
        "halo": 64,
        "taper": 32,
        "outputs": {"buildings": "buildings.gpkg", "mask": f"{text}.tif"},
        "failures": [{"path": text, "message": text}, {"block": text, "message": text}],
        "versions": {text: text},
    }


def histogram(*areas: float) -> AreaHistogram:
    result = AreaHistogram()
    result.add(areas)
    return result


# --- safety -------------------------------------------------------------------------------------


def test_hostile_texts_stay_texts() -> None:
    place = preview(caption=HOSTILE)
    page = Page(render(full_run(HOSTILE), overview(crs=HOSTILE), [place], histogram(10)))
    assert page.all("script") == [{"type": "application/json", "id": "map-facts"}, {}]
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    assert page.facts["crs"] == HOSTILE[:59] + "…"


def test_no_script_runs_but_our_own() -> None:
    text = render(full_run(), overview(), [], histogram(10))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r"script-src ([^;]*);", text)[1] == f"'sha256-{allowed}'"
    assert not re.search(
        r"fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(|eval|innerHTML|https?:", script
    )


def test_nothing_is_loaded_from_outside() -> None:
    place = preview(valid=np.eye(48, 64, dtype=bool))
    run = full_run("javascript:alert(1)//https://evil.example")
    run["outputs"] |= {
        "one": "javascript:alert(1)",
        "two": "//evil.example/x",
        "three": "https://evil.example",
        "four": "..\\up",
    }
    text = render(run, overview(valid=place.valid), [place], histogram(10))
    page = Page(text)
    for plane in ("imagery", "probability"):
        for level in page.facts[plane]:
            assert all(re.match(r"(data:image/(jpeg|webp);base64,|$)", tile) for tile in level["tiles"])
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "form", "base"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            # Files beside the page, places in it, pictures inside it.
            assert value is None or re.match(r"\./(?!/)[^:]*$|#[\w.,=&-]+$|data:image/(jpeg|png);base64,", value)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text
    assert {a["href"] for a in page.all("a")} >= {"./buildings.gpkg", "./javascript%3Aalert%281%29"}


def test_undecodable_and_reordering_characters_are_replaced(tmp_path: Path) -> None:
    run = {"inputs": [{"path": "caf\udce9\u202egpj.\x00\x1b[31m.tif"}], "outputs": {"a": "caf\udce9.tif"}}
    write_report(tmp_path / "r.html", run, overview(), [], histogram())
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "caf\ufffd\ufffdgpj.\ufffd\ufffd[31m.tif" in text
    assert 'href="./caf%E9.tif"' in text


# --- content ------------------------------------------------------------------------------------


def test_headline_figures() -> None:
    text = Page(render(full_run(), overview(), [], histogram(10))).text
    for expected in (
        "12 431 buildings",
        "1.92 km² footprint area",
        "25 % built up of 5.00 km² imaged",
        "2 486 per km²",
        "30.72 Mpx of imagery 6 400 × 4 800 · 0.5 m",
        "214 Mpx/s speed 2 h 3 min in all",
        "building from 0.42",
        "12 March 2026, 14:03 UTC",
    ):
        assert expected in text


def test_failures_are_told_first_and_completeness_too() -> None:
    run = full_run()
    bad = Page(render(run, overview(), [], histogram(10))).text
    assert bad.index("Incomplete: 2 problems. Blocks missing: 1 of 12.") < bad.index("Map")
    run |= {"failures": [], "counts": run["counts"] | {"blocks_failed": 0}}
    assert "Complete: 12 of 12" in Page(render(run, overview(), [], histogram(10))).text


@pytest.mark.parametrize("key", full_run())
@pytest.mark.parametrize("value", ["missing", None, 3, "text", [], {}, [None], {"a": None}])
def test_any_part_of_the_run_may_be_missing_or_odd(key: str, value: Any) -> None:
    run = full_run()
    if value == "missing":
        del run[key]
    else:
        run[key] = value
    page = Page(render(run, overview(2, 3), [], histogram()))
    assert "Map" in page.text


def test_empty_run_shows_dashes() -> None:
    page = Page(render({}, overview(footprints=packed()), [], histogram()))
    assert "There are no footprints." in page.text
    assert page.text.count("–") > 15
    assert "No building between" in page.text


def test_without_georeference_areas_are_pixels() -> None:
    run = full_run()
    run["mosaic"]["ground_gsd_m"] = None
    text = Page(render(run, overview(), [], histogram(10))).text
    assert "1 920 000 px² footprint area" in text
    assert "km²" not in text
    assert "m²" not in text


def test_long_tables_are_cut() -> None:
    run = full_run()
    run["inputs"] = [{"path": f"a/{i}.tif", "size": 1} for i in range(1000)]
    page = Page(render(run, overview(), [], histogram(10)))
    assert "… and 800 more" in page.text
    assert "a/199.tif" in page.text
    assert "a/200.tif" not in page.text
    assert "Building footprints: a (1 000 files)" in page.text


def test_scale_bar_of_the_still_picture_is_as_long_as_it_says() -> None:
    # 64 picture pixels for 6400 mosaic pixels of 0.5 m: 3200 m wide, of which a fifth is 640 m.
    page = Page(render(full_run(), overview(), [], histogram(10)))
    (bar,) = (a["style"] for a in page.all("div") if a.get("class") == "scale")
    assert bar == f"width:{100 * 500 / 3200}%"
    assert "500 m" in page.text
    page = Page(render(full_run(), overview(ground=None), [], histogram(10)))
    assert all(a.get("class") != "scale" for a in page.all("div"))


# --- the map ------------------------------------------------------------------------------------


def test_the_map_is_told_where_it_lies() -> None:
    facts = Page(render(full_run(), overview(), [], histogram(10))).facts
    assert (facts["width"], facts["height"], facts["shrink"], facts["aspect"]) == (6400, 4800, 100, 1)
    assert facts["transform"] == [0.5, 0, 400_000, 0, -0.5, 5_800_000]
    assert (facts["ground"], facts["crs"], facts["axes"], facts["decimals"]) == (0.5, "EPSG:32633", ["x", "y"], 1)
    assert facts["threshold"] == 0.42


def test_degrees_are_shown_as_they_lie_on_the_ground() -> None:
    # At 60° north a degree of longitude is half as long as one of latitude.
    there = overview(transform=Affine(1e-5, 0, 25, 0, -1e-5, 60), geographic=True, ground=(0.558, 1.114))
    facts = Page(render(full_run(), there, [], histogram(10))).facts
    assert facts["aspect"] == pytest.approx(1.114 / 0.558)
    assert (facts["axes"], facts["decimals"]) == (["longitude", "latitude"], 6)


def test_a_map_without_georeference_counts_pixels() -> None:
    run = full_run()
    run["mosaic"]["ground_gsd_m"] = None
    facts = Page(render(run, overview(transform=None, crs="", ground=None), [], histogram(10))).facts
    assert facts["transform"] == [1, 0, 0, 0, 1, 0]
    assert (facts["axes"], facts["areaUnit"], facts["ground"], facts["crs"]) == (["column", "row"], "px²", None, "")


def test_details_are_found_on_the_map() -> None:
    detail = preview(place=(100, 200, 612, 712))
    page = Page(render(full_run(), overview(), [preview(), detail], histogram(10)))
    assert page.facts["insets"] == [{"id": "detail2", "place": [100, 200, 612, 712]}]
    (link,) = (a["href"] for a in page.all("a") if str(a["href"]).startswith("#"))
    assert link == "#x=400178&y=5799772&z=1&layers=imagery,footprints"
    assert any(a.get("id") == "detail2" for a in page.all("figure"))


def test_what_the_map_leaves_out_is_said() -> None:
    run, every = full_run(), [box(i, 0, i + 1 + i, 1) for i in range(99)]
    assert (
        "All 99 footprints are drawn." in Page(render(run, overview(footprints=packed(*every)), [], histogram())).text
    )
    some = packed(*every, budget=400)
    text = Page(render(run, overview(footprints=some), [], histogram(10))).text
    assert f"Drawn are the {some.drawn} largest of 99 footprints, from {some.smallest:.1f} m² on" in text
    assert "a pixel for 100 × 100 of the mosaic (50 m)" in text
    assert "details below" not in text
    assert "pixel for pixel" in Page(render(run, overview(shrink=1), [], histogram(10))).text


# --- pictures -----------------------------------------------------------------------------------


def test_pictures_decode_to_what_was_given() -> None:
    valid = np.ones((48, 64), dtype=bool)
    valid[:16, :16] = False
    place = preview(valid=valid, outlines=[])
    page = Page(render(full_run(), overview(), [place], histogram(10)))
    shown = page.image("imagery")
    inner = np.s_[:, 18:, 18:]
    assert np.abs(shown[inner].astype(int) - place.rgb[inner]).mean() < 4
    hatch = page.image("no-data")
    assert (hatch[0] > 0).tolist() == (~valid).tolist()
    heat = page.image("chance")[:, 20:, 20:].astype(int)
    # Halfway up the colour map is between its fourth and fifth anchor.
    assert np.abs(heat - np.array([186, 57, 82])[:, None, None]).max() < 12


def test_too_many_outlines_become_a_tint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MAX_OUTLINES", 1)
    page = Page(render(full_run(), overview(), [preview(probability=None)], histogram(10)))
    assert not any(a.get("id") == "detail1-path" for a in page.all("path"))
    assert "buildings are tinted" in page.text
    tint = page.sources("outlines")[1]
    levels = decoded(tint)[0]
    expected = np.zeros((48, 64), dtype=bool)
    expected[10:25, 10:20] = expected[5:15, 30:45] = True
    assert (levels > 0).tolist() == expected.tolist()


def test_the_still_picture_is_tinted_by_the_probability() -> None:
    page = Page(render(full_run(), overview(), [], histogram(10)))
    (tint,) = page.sources("outlines")
    assert (decoded(tint)[0] > 0).all()


def test_noise_everywhere_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def noise(side: int, outlines: int) -> Preview:
        corners = rng.uniform(0, side, (outlines, 2))
        return Preview(
            rng.integers(0, 256, (3, side, side), dtype=np.uint8),
            rng.random((side, side)) > 0.5,
            list(shapely.buffer(shapely.points(corners), 9.0, quad_segs=12)),
            "Noise",
            rng.integers(0, 256, (side, side), dtype=np.uint8),
        )

    run = full_run("ü" * 5000)
    run["inputs"] = run["inputs"] * 500
    run["failures"] = run["failures"] * 500
    all_of_it = noise(1100, 0)
    # As much as is ever kept.
    full = packed(*shapely.buffer(shapely.points(rng.uniform(0, 9e5, (90_000, 2))), 9.0), budget=FOOTPRINTS_BUDGET)
    assert full.drawn < full.total
    whole = overview(
        1100, 1100, rgb=all_of_it.rgb, valid=all_of_it.valid, probability=all_of_it.probability, footprints=full
    )
    path = tmp_path / "report.html"
    write_report(path, run, whole, [noise(512, 2000) for _ in range(4)], histogram(10))
    # Were the pictures' parts used up as well as the footprints' and the details', there would still be room.
    rest = (
        IMAGERY_BUDGET
        + PROBABILITY_BUDGET
        - sum(
            len(tile)
            for plane in ("imagery", "probability")
            for level in Page(path.read_text("utf-8")).facts[plane]
            for tile in level["tiles"]
        )
    )
    assert rest > 0
    assert 5_000_000 < path.stat().st_size + rest < PAGE_BYTES


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(OutputError):
        write_report(tmp_path / "missing" / "report.html", {}, overview(), [], histogram())
    write_report(path, {}, overview(), [], histogram())
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_bars_show_the_counts() -> None:
    page = Page(render(full_run(), overview(), [], histogram(0.5, 10, 10.5, 11, 99, 2e5)))
    bars = [rect for rect in page.all("rect") if rect.get("class") == "bar"]
    heights = [float(bar["height"] or 0) for bar in bars]
    assert len(bars) == 2
    assert heights[0] == pytest.approx(3 * heights[1], rel=1e-3)
    text = page.text
    assert "10 to 12.6 m²: 3 buildings" in text
    assert "Not drawn: 1 smaller than 1 m² and 1 of at least 100 000 m²." in text
