"""The report: safe with hostile names, whole in itself, bounded, and true to what it is given."""

from __future__ import annotations

import base64
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from shapely.geometry import box

from geoseg import picture
from geoseg.areas import AreaHistogram
from geoseg.errors import OutputError
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
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def image(self, kind: str) -> np.ndarray:
        (source,) = (a["src"] for a in self.all("img") if a["class"] == kind)
        assert source is not None
        return decoded(source)


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
    page = Page(render(full_run(HOSTILE), place, [place], histogram(10)))
    assert page.all("script") == []
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text


def test_nothing_is_loaded_from_outside() -> None:
    place = preview(valid=np.eye(48, 64, dtype=bool))
    run = full_run("javascript:alert(1)//https://evil.example")
    run["outputs"] |= {
        "one": "javascript:alert(1)",
        "two": "//evil.example/x",
        "three": "https://evil.example",
        "four": "..\\up",
    }
    text = render(run, place, [place], histogram(10))
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            # Files beside the page, places in it, pictures inside it.
            assert value is None or re.match(r"\./(?!/)[^:]*$|#[a-z0-9-]+$|data:image/(jpeg|png);base64,", value)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text
    assert {a["href"] for a in page.all("a")} >= {"./buildings.gpkg", "./javascript%3Aalert%281%29"}


def test_undecodable_and_reordering_characters_are_replaced(tmp_path: Path) -> None:
    run = {"inputs": [{"path": "caf\udce9\u202egpj.\x00\x1b[31m.tif"}], "outputs": {"a": "caf\udce9.tif"}}
    write_report(tmp_path / "r.html", run, preview(), [], histogram())
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "caf\ufffd\ufffdgpj.\ufffd\ufffd[31m.tif" in text
    assert 'href="./caf%E9.tif"' in text


# --- content ------------------------------------------------------------------------------------


def test_headline_figures() -> None:
    text = Page(render(full_run(), preview(), [], histogram(10))).text
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
    bad = Page(render(run, preview(), [], histogram(10))).text
    assert bad.index("Incomplete: 2 problems. Blocks missing: 1 of 12.") < bad.index("Overview")
    run |= {"failures": [], "counts": run["counts"] | {"blocks_failed": 0}}
    assert "Complete: 12 of 12" in Page(render(run, preview(), [], histogram(10))).text


@pytest.mark.parametrize("key", full_run())
@pytest.mark.parametrize("value", ["missing", None, 3, "text", [], {}, [None], {"a": None}])
def test_any_part_of_the_run_may_be_missing_or_odd(key: str, value: Any) -> None:
    run = full_run()
    if value == "missing":
        del run[key]
    else:
        run[key] = value
    small = preview(2, 3, outlines=[], probability=None)
    page = Page(render(run, small, [], histogram()))
    assert "Overview" in page.text


def test_empty_run_shows_dashes() -> None:
    page = Page(render({}, preview(outlines=[]), [], histogram()))
    assert page.text.count("–") > 15
    assert "No building between" in page.text


def test_without_georeference_areas_are_pixels() -> None:
    run = full_run()
    run["mosaic"]["ground_gsd_m"] = None
    text = Page(render(run, preview(), [], histogram(10))).text
    assert "1 920 000 px² footprint area" in text
    assert "km²" not in text
    assert "m²" not in text


def test_long_tables_are_cut() -> None:
    run = full_run()
    run["inputs"] = [{"path": f"a/{i}.tif", "size": 1} for i in range(1000)]
    page = Page(render(run, preview(), [], histogram(10)))
    assert "… and 800 more" in page.text
    assert "a/199.tif" in page.text
    assert "a/200.tif" not in page.text
    assert "Building footprints: a (1 000 files)" in page.text


def test_scale_bar_is_as_long_as_it_says() -> None:
    # 64 picture pixels for 6400 mosaic pixels of 0.5 m: 3200 m wide, of which a fifth is 640 m.
    page = Page(render(full_run(), preview(), [], histogram(10)))
    (bar,) = (a["style"] for a in page.all("div") if a.get("class") == "scale")
    assert bar == f"width:{100 * 500 / 3200}%"
    assert "500 m" in page.text


def test_no_scale_bar_for_a_picture_that_is_not_of_the_mosaic() -> None:
    page = Page(render(full_run(), preview(64, 64), [], histogram(10)))
    assert all(a.get("class") != "scale" for a in page.all("div"))


# --- pictures -----------------------------------------------------------------------------------


def test_pictures_decode_to_what_was_given() -> None:
    valid = np.ones((48, 64), dtype=bool)
    valid[:16, :16] = False
    place = preview(valid=valid)
    page = Page(render(full_run(), place, [], histogram(10)))
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
    page = Page(render(full_run(), preview(probability=None), [], histogram(10)))
    assert page.all("path") == []
    assert "they are tinted" in page.text
    (tint,) = (a["src"] for a in page.all("img") if a["class"] == "outlines")
    assert tint is not None
    levels = decoded(tint)[0]
    expected = np.zeros((48, 64), dtype=bool)
    expected[10:25, 10:20] = expected[5:15, 30:45] = True
    assert (levels > 0).tolist() == expected.tolist()


def test_outlines_that_were_not_kept_become_a_tint() -> None:
    for outlines in (None, []):
        page = Page(render(full_run(), preview(outlines=outlines), [], histogram(10)))
        assert any(a["class"] == "outlines" for a in page.all("img"))


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
    path = tmp_path / "report.html"
    write_report(path, run, noise(1100, 6000), [noise(512, 2000) for _ in range(4)], histogram(10))
    assert 1_000_000 < path.stat().st_size < PAGE_BYTES


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(OutputError):
        write_report(tmp_path / "missing" / "report.html", {}, preview(), [], histogram())
    write_report(path, {}, preview(), [], histogram())
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_bars_show_the_counts() -> None:
    page = Page(render(full_run(), preview(), [], histogram(0.5, 10, 10.5, 11, 99, 2e5)))
    bars = page.all("rect")
    heights = [float(bar["height"] or 0) for bar in bars]
    assert len(bars) == 2
    assert heights[0] == pytest.approx(3 * heights[1], rel=1e-3)
    text = page.text
    assert "10 to 12.6 m²: 3 buildings" in text
    assert "Not drawn: 1 smaller than 1 m² and 1 of at least 100 000 m²." in text
