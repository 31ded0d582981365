"""The report in a real browser: it is drawn, complains of nothing, asks for nothing, and its map does what one does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from browser import Tab, browsing
from parts import run
from test_report import HOSTILE, full_run, histogram, overview, preview

from geoseg.report import write_report

SIZE = (1000, 1600)
"""Columns and rows of the window."""
ELSEWHERE = "http://127.0.0.1:9/"
"""An address on this machine where nothing listens."""


@pytest.fixture(scope="module")
def report(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run."""
    out = tmp_path_factory.mktemp("results") / "out"
    run(city, out, narrow_model)
    return out / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, report: Path) -> Iterator[Tab]:
    """The report, just opened; in the end it must not have asked or complained."""
    browser.console.clear()
    browser.asked.clear()
    browser.open(report.as_uri(), SIZE)
    yield browser
    assert browser.console == []
    assert {address for address in browser.asked if not address.startswith("data:")} <= {report.as_uri()}


def view(tab: Tab) -> dict[str, str]:
    """What the address says that the map shows."""
    return {name: values[0] for name, values in parse_qs(tab.js("location.hash")[1:], keep_blank_values=True).items()}


def stage(tab: Tab) -> tuple[float, float, float, float]:
    """Left and upper side, width and height of the map in the window."""
    found = tab.js("document.querySelector('#map-stage').getBoundingClientRect().toJSON()")
    return found["left"], found["top"], found["width"], found["height"]


def middle(tab: Tab) -> tuple[float, float]:
    left, top, width, height = stage(tab)
    return left + width / 2, top + height / 2


def text(tab: Tab, name: str) -> str:
    return str(tab.js(f"document.querySelector('#map-{name}').textContent"))


def position(tab: Tab) -> tuple[float, float]:
    """The coordinates that the map tells, of the mouse or else of its centre."""
    x, y = re.findall(r"[xy] (-?[\d.]+)", text(tab, "position"))
    return float(x), float(y)


def seen(tab: Tab) -> np.ndarray:
    """The picture of the map alone."""
    left, top, width, height = (round(value) for value in stage(tab))
    return tab.picture()[top : top + height, left : left + width].astype(int)


def buildings(report: Path) -> Any:
    return pyogrio.read_dataframe(report.with_name("buildings.gpkg"), layer="buildings")


def at(tab: Tab, x: float, y: float) -> tuple[float, float]:
    """Where a place of the ground is in the window, by what the address says."""
    shown = view(tab)
    gsd = 0.5
    here = middle(tab)
    scale = float(shown["z"]) / gsd
    return here[0] + (x - float(shown["x"])) * scale, here[1] - (y - float(shown["y"])) * scale


# --- peace


def test_report_is_drawn_in_peace(tab: Tab) -> None:
    picture = tab.picture()
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    # Text alone has a few shades; the imagery thousands.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5000
    assert (picture != picture[0, 0]).any(axis=-1).mean() > 0.2
    # Nobody has touched anything, so the address is as it was.
    assert tab.js("location.hash") == ""


def test_report_would_load_nothing_even_if_asked_to(browser: Tab, report: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    injected = f'<img src="{ELSEWHERE}x.png"><script>console.log("ran")</script></body>'
    page.write_text(report.read_text("utf-8").replace("</body>", injected), "utf-8")
    assert injected in page.read_text("utf-8")
    browser.console.clear()
    browser.asked.clear()
    browser.open(page.as_uri(), SIZE)
    assert not any("ran" in line and "violates" not in line for line in browser.console)
    assert sum("Content Security Policy" in line for line in browser.console) == 2
    # What a script would try is refused as well.
    assert browser.js(f"fetch('{ELSEWHERE}').then(() => 'loaded', () => 'refused')") == "refused"
    assert sum("Content Security Policy" in line for line in browser.console) > 2


def test_requests_and_errors_would_be_noticed(browser: Tab, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    drawn = "<div id=map-stage data-waiting=false></div>"
    page.write_text(
        f'<!doctype html>{drawn}<img src="{ELSEWHERE}x.png"><script>throw new Error("thrown")</script>', "utf-8"
    )
    browser.console.clear()
    browser.asked.clear()
    browser.open(page.as_uri(), SIZE)
    assert f"{ELSEWHERE}x.png" in browser.asked
    assert any("thrown" in line for line in browser.console)
    assert len(np.unique(browser.picture().reshape(-1, 3), axis=0)) < 5000


def test_hostile_names_do_nothing(browser: Tab, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(page, full_run(HOSTILE), overview(crs=HOSTILE), [preview(caption=HOSTILE)], histogram(10))
    browser.console.clear()
    browser.asked.clear()
    browser.open(page.as_uri(), SIZE)
    assert browser.console == []
    assert {address for address in browser.asked if not address.startswith("data:")} == {page.as_uri()}
    assert "<script>alert(1)" in text(browser, "position")


# --- moving


def test_the_wheel_zooms_where_the_mouse_is(tab: Tab) -> None:
    x, y = middle(tab)
    x, y = x + 60, y - 40
    tab.mouse("mouseMoved", x, y)
    tab.rest()
    before = position(tab)
    tab.wheel(x, y, -240)
    first = float(view(tab)["z"])
    assert position(tab) == pytest.approx(before, abs=0.2)
    tab.wheel(x, y, -240)
    assert float(view(tab)["z"]) == pytest.approx(first * np.exp(0.48), rel=1e-3)
    assert position(tab) == pytest.approx(before, abs=0.2)
    tab.wheel(x, y, 240)
    assert float(view(tab)["z"]) == pytest.approx(first, rel=1e-3)


def test_the_wheel_scrolls_the_page_where_there_is_nothing_to_zoom(tab: Tab) -> None:
    tab.wheel(*middle(tab), 120)
    tab.until("window.scrollY > 0")
    assert tab.js("location.hash") == ""


def test_dragging_moves_the_ground_with_the_mouse(tab: Tab) -> None:
    x, y = middle(tab)
    tab.wheel(x, y, -600)
    before = view(tab)
    tab.mouse("mouseMoved", x, y)
    tab.rest()
    held = position(tab)
    tab.drag((x, y), (x - 90, y + 30))
    after = view(tab)
    scale = float(after["z"]) / 0.5
    # The first few pixels decide whether it is a click.
    assert float(after["x"]) - float(before["x"]) == pytest.approx(90 / scale, abs=14 / scale)
    assert float(after["y"]) - float(before["y"]) == pytest.approx(30 / scale, abs=6 / scale)
    assert position(tab) == pytest.approx(held, abs=15 / scale)
    assert after["z"] == before["z"]


def test_double_clicks_keys_and_buttons(tab: Tab) -> None:
    x, y = middle(tab)
    tab.click(x, y, times=2)
    whole = tab.js("Number(document.querySelector('#map-stage').clientHeight)") * 0.98 / 247
    assert float(view(tab)["z"]) == pytest.approx(2 * whole, rel=1e-3)
    tab.js("document.querySelector('#map-stage').focus()")
    tab.key("+")
    assert float(view(tab)["z"]) == pytest.approx(3 * whole, rel=1e-3)
    before = view(tab)
    tab.key("ArrowRight")
    tab.key("ArrowUp")
    moved = view(tab)
    step = 90 / float(moved["z"]) * 0.5
    assert float(moved["x"]) - float(before["x"]) == pytest.approx(step, abs=0.02)
    assert float(moved["y"]) - float(before["y"]) == pytest.approx(step, abs=0.02)
    tab.key("-")
    assert float(view(tab)["z"]) == pytest.approx(2 * whole, rel=1e-3)
    tab.key("0")
    assert float(view(tab)["z"]) == pytest.approx(whole, rel=1e-3)
    for name, factor in (("in", 1.5), ("in", 1.5 * 1.5), ("out", 1.5), ("fit", 1)):
        tab.js(f"document.querySelector('#map-{name}').click()")
        tab.rest()
        assert float(view(tab)["z"]) == pytest.approx(factor * whole, rel=1e-3)


def test_fingers(tab: Tab, report: Path) -> None:
    tab.open(report.as_uri(), (500, 1000), touch=True)
    x, y = middle(tab)
    assert tab.js("document.documentElement.scrollWidth <= innerWidth"), "a narrow screen has to be scrolled sideways"
    tab.touch("touchStart", (x - 20, y), (x + 20, y))
    for apart in (30, 45, 60):
        tab.touch("touchMove", (x - apart, y), (x + apart, y))
    tab.touch("touchEnd")
    tab.rest()
    before = view(tab)
    width = tab.js("document.querySelector('#map-stage').clientWidth")
    height = tab.js("document.querySelector('#map-stage').clientHeight")
    assert float(before["z"]) == pytest.approx(3 * 0.98 * min(width / 231, height / 247), rel=0.02)
    tab.touch("touchStart", (x, y))
    for step in (10, 30, 50):
        tab.touch("touchMove", (x + step, y))
    tab.touch("touchEnd")
    tab.rest()
    scale = float(before["z"]) / 0.5
    assert float(before["x"]) - float(view(tab)["x"]) == pytest.approx(50 / scale, abs=12 / scale)


# --- what is shown


def test_position_is_that_of_the_ground(tab: Tab, report: Path) -> None:
    with rasterio.open(report.with_name("mask.tif")) as raster:
        west, south, east, north = raster.bounds
    assert position(tab) == pytest.approx(((west + east) / 2, (south + north) / 2), abs=0.11)
    assert text(tab, "position").endswith("EPSG:32633")
    left, top, width, height = stage(tab)
    z = 0.98 * height / 247
    tab.mouse("mouseMoved", left + width / 2 - 231 / 2 * z, top + height / 2 + 247 / 2 * z)
    tab.rest()
    assert position(tab) == pytest.approx((west, south), abs=0.5)


def test_the_scale_bar_is_as_long_as_it_says(tab: Tab) -> None:
    for z in (4, 9, 20):
        tab.js(f"location.hash = '#x=400057&y=5799938&z={z}'")
        tab.rest()
        metres = float(text(tab, "scale-text").split("\u202f")[0])
        length = tab.js("document.querySelector('#map-scale').getBoundingClientRect().width")
        assert length == pytest.approx(metres / 0.5 * z, rel=2e-3)
        assert text(tab, "scale-text").endswith("m")


def test_layers_are_switched(tab: Tab) -> None:
    def tick(name: str) -> np.ndarray:
        tab.js(f"document.querySelector('#map-{name}').click()")
        tab.rest()
        return seen(tab)

    both = seen(tab)
    assert view(tab) == {}
    imagery = tick("footprints")
    assert view(tab)["layers"] == "imagery"
    yellow = np.abs(both - [255, 225, 77]).max(axis=-1) < 40
    assert yellow.sum() > 300
    assert (np.abs(imagery - [255, 225, 77]).max(axis=-1) < 40).sum() < yellow.sum() / 20
    nothing = tick("imagery")
    assert view(tab)["layers"] == ""
    _left, _top, width, height = stage(tab)
    centre = np.s_[60 : round(height) - 60, round(width / 2) - 100 : round(width / 2) + 100]
    assert len(np.unique(nothing[centre].reshape(-1, 3), axis=0)) == 1
    tick("probability")
    tab.js(
        "setTimeout(() => { const o = document.querySelector('#map-opacity'); o.value = 100;"
        " o.dispatchEvent(new Event('input')); })"
    )
    tab.rest()
    shades = seen(tab)
    assert view(tab) | {"x": "", "y": "", "z": ""} == {
        "x": "",
        "y": "",
        "z": "",
        "layers": "probability",
        "mode": "heat",
        "opacity": "100",
    }
    assert len(np.unique(shades[centre].reshape(-1, 3), axis=0)) > 50
    tab.js(
        "(() => { const m = document.querySelector('#map-mode'); m.value = 'mask';"
        " m.dispatchEvent(new Event('input')); })()"
    )
    tab.rest()
    mask = seen(tab)
    red = np.abs(mask - [227, 26, 28]).max(axis=-1) < 12
    assert view(tab)["mode"] == "mask"
    return_to = tick("probability")
    assert np.array_equal(return_to[centre], nothing[centre])
    assert red.sum() > 1000


def test_the_mask_of_the_map_is_the_mask(tab: Tab, report: Path) -> None:
    # A whole number of pixels of the screen for each of the mosaic.
    tab.js("location.hash = '#x=400057.75&y=5799938.25&z=6&layers=probability&mode=mask&opacity=100'")
    tab.rest()
    with rasterio.open(report.with_name("mask.tif")) as raster:
        mask = raster.read(1) > 0
    left, top, width, height = stage(tab)
    picture = tab.picture().astype(int)
    rows, cols = np.mgrid[75:170, 60:170]
    x = np.floor(left + width / 2 + (cols + 0.5 - 115.5) * 6).astype(int)
    y = np.floor(top + height / 2 + (rows + 0.5 - 123.5) * 6).astype(int)
    red = np.abs(picture[y, x] - [227, 26, 28]).max(axis=-1) < 40
    # The picture is compressed: pixels near the threshold may turn.
    assert (red == mask[rows, cols]).mean() > 0.97
    assert 0.02 < red.mean() < 0.98


def test_outlines_are_crisp_at_every_zoom(tab: Tab, report: Path) -> None:
    table = buildings(report)
    largest = table.loc[table.area_m2.idxmax()]
    for z in (4, 12, 20):
        corner = shapely.get_coordinates(largest.geometry.exterior)[0]
        tab.js(f"location.hash = '#x={corner[0]}&y={corner[1]}&z={z}&layers=footprints'")
        tab.rest()
        picture = seen(tab)
        line = np.abs(picture - [255, 225, 77]).max(axis=-1) < 40
        rows, cols = np.nonzero(line)
        x = float(view(tab)["x"]) + (cols + 0.5 - picture.shape[1] / 2) * 0.5 / z
        y = float(view(tab)["y"]) - (rows + 0.5 - picture.shape[0] / 2) * 0.5 / z
        away = shapely.distance(shapely.points(x, y), shapely.union_all(table.geometry.boundary))
        assert len(rows) > 100
        # Two pixels of the screen, and what an outline may leave its own by; not pixels of the imagery.
        assert away.max() < (2.2 / z + 0.25 + 0.125) * 0.5


def test_degrees_are_as_wide_as_on_the_ground(tab: Tab, tmp_path: Path) -> None:
    # At 60° north a degree of longitude is half as long as one of latitude.
    page = tmp_path / "report.html"
    grid = Affine(1e-5, 0, 25, 0, -1e-5, 60)
    there = overview(100, 200, shrink=1, transform=grid, crs="EPSG:4326", geographic=True, ground=(0.557, 1.114))
    write_report(page, full_run(), there, [], histogram(10))
    tab.open(page.as_uri(), SIZE)
    left, top, width, height = stage(tab)
    z = 0.98 * min(width / 200, height / 200)
    assert text(tab, "position") == "centre: longitude 25.001000 · latitude 59.999500 · EPSG:4326"
    tab.mouse("mouseMoved", left + width / 2 - 50 * z, top + height / 2 - 50 * z)
    tab.rest()
    assert text(tab, "position") == "longitude 25.000500 · latitude 59.999750 · EPSG:4326"
    # The fixture expects to have seen one page only.
    assert {address for address in tab.asked if not address.startswith("data:")} >= {page.as_uri()}
    tab.asked.clear()


# --- one building


def test_a_click_tells_about_the_building(tab: Tab, report: Path) -> None:
    table = buildings(report)
    for row in table.nlargest(3, "area_m2").itertuples():
        inside = row.geometry.representative_point()
        tab.js(f"location.hash = '#x={inside.x}&y={inside.y}&z=5&layers=imagery,footprints'")
        tab.rest()
        tab.click(*at(tab, inside.x, inside.y))
        assert text(tab, "id") == f"Building {row.id}"
        area, unit = text(tab, "area").replace("\u202f", " ").rsplit(" ", 1)
        assert (float(area.replace(" ", "")), unit) == (pytest.approx(row.area_m2, abs=0.051), "m²")
        assert float(text(tab, "chance-of")) == pytest.approx(row.probability, abs=0.0056)
        assert view(tab)["id"] == str(row.id)
    tab.js("document.querySelector('#map-stage').focus()")
    tab.key("Escape")
    assert tab.js("document.querySelector('#map-info').hidden")
    tab.key("Enter")
    assert text(tab, "id") == f"Building {row.id}"
    tab.js("document.querySelector('#map-footprints').click()")
    tab.rest()
    assert tab.js("document.querySelector('#map-info').hidden")


def test_a_building_is_found_by_its_id(tab: Tab, report: Path) -> None:
    table = buildings(report)
    row = table.iloc[len(table) // 2]
    find = (
        "(() => {{ const f = document.querySelector('#map-find'); f.value = '{}';"
        " f.dispatchEvent(new Event('change')); }})()"
    )
    tab.js(find.format(row.id))
    tab.rest()
    west, south, east, north = row.geometry.bounds
    assert (float(view(tab)["x"]), float(view(tab)["y"])) == pytest.approx(
        ((west + east) / 2, (south + north) / 2), abs=0.2
    )
    assert text(tab, "id") == f"Building {row.id}"
    tab.js(find.format(10**7))
    assert "No footprint 10000000 is drawn" in text(tab, "missing")


def test_an_address_brings_back_the_view(tab: Tab, report: Path) -> None:
    row = buildings(report).iloc[0]
    tab.js(f"location.hash = '#id={row.id}'")
    tab.rest()
    tab.js("document.querySelector('#map-probability').click()")
    tab.rest()
    address, before = tab.js("location.href"), seen(tab)
    tab.open(address, SIZE)
    tab.rest()
    assert tab.js("location.href") == address
    assert text(tab, "id") == f"Building {row.id}"
    assert np.abs(seen(tab) - before).mean() < 0.5


def test_nonsense_in_an_address_does_nothing(tab: Tab, report: Path) -> None:
    before = seen(tab)
    for nonsense in ("x=a&y=b", "z=-1", "z=1e999", "x=Infinity&y=1&z=1", "id=<b>", "mode=x&opacity=z", "%", "q=%E0%A4"):
        tab.open(f"{report.as_uri()}#{nonsense}", SIZE)
        tab.rest()
        assert np.abs(seen(tab) - before).mean() < 0.5, nonsense


# --- elsewhere


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_the_light_and_in_the_dark(tab: Tab, report: Path, dark: bool) -> None:
    tab.open(report.as_uri(), SIZE, dark=dark)
    levels = tab.js(
        """[...document.querySelectorAll('#map label, #map p, h1, h2, .legend span, dt, dd')].map((part) => {
             const level = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => {
                 v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
               return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
             let behind = part;
             while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
             const [a, b] = [getComputedStyle(part).color, getComputedStyle(behind).backgroundColor].map(level);
             return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })"""
    )
    # WCAG 2.1, contrast (minimum).
    assert len(levels) > 30
    assert min(levels) >= 4.5


def test_everything_can_be_reached_and_has_a_name(tab: Tab) -> None:
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"checkbox", "button", "textbox", "slider", "combobox", "application", "radio"}
    parts = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if node.get("role", {}).get("value") in roles and not node["ignored"]
    ]
    assert {"checkbox", "button", "textbox", "slider", "combobox", "application"} <= {role for role, _ in parts}
    assert [role for role, name in parts if not name.strip()] == []


def test_it_prints(tab: Tab) -> None:
    printed = tab.call("Page.printToPDF", printBackground=True)["data"]
    assert len(printed) > 50_000


def test_without_scripts_there_is_a_picture(tab: Tab, report: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.call("Page.navigate", url="about:blank")
        tab.call("Page.navigate", url=report.as_uri())
        time.sleep(1.5)
        picture = tab.picture()
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5000
