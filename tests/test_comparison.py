"""Figures of hand-made cases: every pixel of the overlay, every number below it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rasters import write as write_raster

from geoseg.cli import main
from geoseg.comparison import draw_comparison
from geoseg.errors import InputError, SettingError
from geoseg.evaluate import evaluate
from geoseg.metrics import Confusion
from geoseg.overlay import (
    BACKGROUND,
    BUILDING,
    FALSE,
    HIT,
    MISSED,
    NO_DATA,
    OPACITY,
    OUTLINE,
    classify,
    overlay,
    shrunk,
)

PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
SVG = "{http://www.w3.org/2000/svg}"
GREY = 100


def save(path: Path, values: np.ndarray, transform: Affine = PLACE, **options: Any) -> Path:
    bands = values if values.ndim == 3 else values[None]
    if bands.dtype == bool:
        bands = bands.astype(np.uint8) * 255
    return write_raster(path, bands, transform=transform, **options)


def scene(folder: Path) -> tuple[Path, Path, Path]:
    """Image of one grey, truth and prediction of 10 × 12 pixels: 6 hits, 2 false, 3 missed."""
    truth, found = np.zeros((10, 12), bool), np.zeros((10, 12), bool)
    truth[2:5, 3:6] = True
    found[2:4, 3:7] = True
    return (
        save(folder / "image.tif", np.full((3, 10, 12), GREY, np.uint8)),
        save(folder / "truth.tif", truth),
        save(folder / "found.tif", found),
    )


def blobs(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    while mask.mean() < 0.3:
        row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        mask[row : row + rng.integers(2, 14), col : col + rng.integers(2, 14)] = True
    return mask


def texts(svg: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter(f"{SVG}text")]  # noqa: S314


def picture(path: Path) -> np.ndarray:
    """(rows, columns, 3) of a PNG."""
    from matplotlib.image import imread

    return np.rint(imread(path)[..., :3] * 255).astype(np.uint8)


def where(pixels: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return (pixels == np.array(colour, np.uint8)).all(axis=2)


def laid(colour: tuple[int, int, int]) -> tuple[int, ...]:
    """A class's colour over the grey of the image, by the definition."""
    base = 45 + 0.65 * GREY
    return tuple(round(base + OPACITY * (part - base)) for part in colour)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1


# --- pixels ------------------------------------------------------------------------------------------------------


def test_every_pixel_of_the_overlay_has_its_class(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    result = draw_comparison(image, truth, [found], tmp_path / "f.png")
    assert result.predictions[0].confusion == Confusion(tp=6, fp=2, fn=3, tn=109)
    pixels = picture(tmp_path / "f.png")
    # 12 pixels are shown as 636, each as a square of 53.
    square = 53
    hit, false, missed = (where(pixels, laid(colour)) for colour in (HIT, FALSE, MISSED))
    assert [int(mask.sum()) for mask in (hit, false, missed)] == [6 * square**2, 2 * square**2, 3 * square**2]
    # The first hit is at row 2, column 3 of its panel; masks stand above, truth to the left, 20 pixels away each.
    top, left, _bottom, _right = box_of(hit)
    lower, third = top - 2 * square, left - 3 * square
    upper, second = lower - 10 * square - 20, third - 12 * square - 20

    def check(row: int, col: int, expected: np.ndarray) -> None:
        panel = pixels[row : row + 10 * square, col : col + 12 * square]
        np.testing.assert_array_equal(panel, expected.repeat(square, axis=0).repeat(square, axis=1))

    expected = np.full((10, 12, 3), 110, np.uint8)
    expected[2:4, 3:6], expected[2:4, 6], expected[4, 3:6] = laid(HIT), laid(FALSE), laid(MISSED)
    check(lower, third, expected)
    masks = np.full((2, 10, 12, 3), BACKGROUND, np.uint8)
    masks[0, 2:5, 3:6] = masks[1, 2:4, 3:7] = BUILDING
    check(upper, second, masks[0])
    check(upper, third, masks[1])
    # 3 × 3 pixels are all contour but for the one in the middle.
    outlined = np.full((10, 12, 3), GREY, np.uint8)
    outlined[2:5, 3:6] = OUTLINE
    outlined[3, 4] = GREY
    check(lower, second, outlined)
    check(upper, second - 12 * square - 20, np.full((10, 12, 3), GREY, np.uint8))


def test_no_data_is_shown_and_does_not_count(tmp_path: Path) -> None:
    _image, truth, found = scene(tmp_path)
    valid = np.ones((10, 12), bool)
    valid[2, :] = False
    image = save(tmp_path / "holed.tif", np.full((3, 10, 12), GREY, np.uint8), mask=valid)
    result = draw_comparison(image, truth, [found], tmp_path / "f.png")
    assert result.predictions[0].confusion == Confusion(tp=3, fp=1, fn=3, tn=101)
    pixels = picture(tmp_path / "f.png")
    assert where(pixels, laid(HIT)).sum() == 3 * 53**2
    # A row in the image, in the outlined truth (less three of its pixels), and in the overlay, beside the key's patch.
    assert 0 <= where(pixels, NO_DATA).sum() - (12 + 9 + 12) * 53**2 < 2000
    draw_comparison(image, truth, [found], tmp_path / "f.svg")
    assert "no data, not counted" in texts(tmp_path / "f.svg")


def test_what_is_too_large_is_shown_as_means_and_counted_in_full(tmp_path: Path) -> None:
    truth, found = blobs((90, 130), 1), blobs((90, 130), 2)
    image = save(tmp_path / "i.tif", np.full((3, 90, 130), GREY, np.uint8))
    result = draw_comparison(
        image, save(tmp_path / "t.tif", truth), [save(tmp_path / "p.tif", found)], tmp_path / "f.svg", panel=40
    )
    assert result.shrink == 4
    assert result.predictions[0].confusion == Confusion.of(found, truth)
    assert any("shown at 1 : 4" in text for text in texts(tmp_path / "f.svg"))


def test_overlay_mixes_by_share() -> None:
    rgb = np.full((3, 1, 2), GREY, np.uint8)
    shares = np.zeros((5, 1, 2), np.float32)
    shares[1, 0, 0] = shares[0, 0, 0] = 0.5
    shares[4, 0, 1] = 1
    mixed = overlay(rgb, shares)
    half = tuple(round(110 + OPACITY / 2 * (part - 110)) for part in HIT)
    assert tuple(mixed[:, 0, 0].tolist()) == half
    assert tuple(mixed[:, 0, 1].tolist()) == NO_DATA


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_shrunk_is_the_mean_of_squares(height: int, width: int, factor: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (2, height, width)).astype(np.uint8)
    small = shrunk(values, factor)
    assert small.shape == (2, -(-height // factor), -(-width // factor))
    for row in range(small.shape[1]):
        for col in range(small.shape[2]):
            square = values[:, row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            assert small[:, row, col] == pytest.approx(square.mean((1, 2)), rel=1e-5)


def test_classify() -> None:
    classes = classify([0, 1, 1, 0, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 0])
    assert classes.tolist() == [0, 1, 2, 3, 4]


# Machado, Oliveira and Fernandes 2009, full severity, on linear light.
BLIND = {
    "none": np.eye(3),
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(rgb: np.ndarray, sight: Any) -> np.ndarray:
    """CIELAB (D65) of 8-bit sRGB as it is seen."""
    unit = np.asarray(rgb, float) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(sight) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.asarray(to_xyz) @ linear / (0.95047, 1, 1.08883)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", BLIND)
@pytest.mark.parametrize("grey", [0, 64, 128, 192, 255])
def test_colours_are_told_apart_by_any_eyes(sight: str, grey: int) -> None:
    rgb = np.full((3, 1, 4), grey, np.uint8)
    seen = overlay(rgb, np.eye(5, dtype=np.float32)[:, None, :4])[:, 0]
    colours = [lab(seen[:, k], BLIND[sight]) for k in range(4)]
    apart = [np.linalg.norm(colours[a] - colours[b]) for a in range(4) for b in range(a)]
    # In CIELAB a difference of 10 is seen at a glance.
    assert min(apart) > 20


# --- numbers -----------------------------------------------------------------------------------------------------


def test_numbers_below_are_those_of_evaluate(tmp_path: Path) -> None:
    truth = blobs((80, 100), 3)
    image = save(tmp_path / "x_rgb.tif", np.full((3, 80, 100), 90, np.uint8))
    reference = save(tmp_path / "x_mask.tif", truth)
    fine = Affine(0.25, 0, 500_003, 0, -0.25, 3_999_998)
    rng = np.random.default_rng(1)
    stored = (np.kron(truth, np.ones((2, 2)))[:140, :180] * 120 + rng.integers(0, 136, (140, 180))).astype(np.uint8)
    probability = save(tmp_path / "p.tif", stored.astype(np.float32) / 255, transform=fine)
    shapes = [shapely.box(500_002 + 7 * k, 3_999_970, 500_006 + 7 * k, 3_999_990) for k in range(6)]
    polygons = tmp_path / "p.gpkg"
    geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32614").to_crs(4326).to_file(polygons)
    mask = save(tmp_path / "m.tif", blobs((80, 100), 4))
    files = [probability, polygons, mask]
    result = draw_comparison(image, reference, files, tmp_path / "f.svg", threshold=0.4, labels=["one", "two", "three"])
    said = texts(tmp_path / "f.svg")
    for one, file in zip(result.predictions, files, strict=True):
        score = evaluate(file, reference, threshold=0.4).total
        assert one.confusion == score.confusion
        assert f"IoU {score.iou:.3f}" in said
        assert f"precision {score.precision:.3f} · recall {score.recall:.3f}" in said
        assert one.label in said
    assert {"x_rgb", "truth", "50 m × 40 m, 0.5 m a pixel"} <= set(said)


def test_polygons_as_truth(tmp_path: Path) -> None:
    image, _truth, found = scene(tmp_path)
    x, y = PLACE @ (3, 5)
    outline = tmp_path / "truth.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(x, y, x + 1.5, y + 1.5)], crs="EPSG:32614").to_file(outline)
    # GeoJSON is in degrees unless it says otherwise; this one says so.
    result = draw_comparison(image, outline, [found], tmp_path / "f.png")
    assert result.predictions[0].confusion == Confusion(tp=6, fp=2, fn=3, tn=109)


def test_a_window_is_compared_alone(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    result = draw_comparison(image, truth, [found], tmp_path / "f.svg", window=(3, 4, 2, 3))
    assert result.predictions[0].confusion == Confusion(tp=2, fp=1, fn=2, tn=1)
    said = texts(tmp_path / "f.svg")
    assert "IoU 0.400" in said
    assert "rows 3 to 4, columns 4 to 6" in said


def test_only_what_the_truth_covers_is_shown(tmp_path: Path) -> None:
    image = save(tmp_path / "i.tif", np.full((3, 40, 60), 90, np.uint8))
    truth = save(tmp_path / "t.tif", np.eye(10, dtype=bool), transform=PLACE @ Affine.translation(20, 5))
    result = draw_comparison(image, truth, [truth], tmp_path / "f.png")
    assert (result.rect.row0, result.rect.col0, result.rect.row1, result.rect.col1) == (5, 20, 15, 30)
    assert result.predictions[0].confusion == Confusion(tp=10, tn=90)


def test_classes_and_pixels_not_labelled(tmp_path: Path) -> None:
    image, _truth, found = scene(tmp_path)
    coded = np.zeros((10, 12), np.uint8)
    coded[2:4, 3:5], coded[2:4, 5:7], coded[9] = 2, 5, 9
    truth = save(tmp_path / "coded.tif", coded)
    with pytest.raises(InputError, match="where a mask has one value"):
        draw_comparison(image, truth, [found], tmp_path / "f.png")
    result = draw_comparison(image, truth, [found], tmp_path / "f.png", classes=[2, 5], ignore=[9])
    assert result.predictions[0].confusion == Confusion(tp=8, tn=100)


def test_a_folder_of_segment_and_names(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        found.rename(tmp_path / run / "mask.tif")
        found = save(tmp_path / "found.tif", np.zeros((10, 12), bool))
    save(tmp_path / "a" / "probability.tif", np.full((10, 12), 0.9, np.float32))
    masks = [tmp_path / "a", tmp_path / "b" / "mask.tif", tmp_path / "a" / "mask.tif"]
    result = draw_comparison(image, truth, masks, tmp_path / "f.png")
    assert [one.label for one in result.predictions] == ["a", "b/mask", "a/mask"]
    assert [one.confusion.tp for one in result.predictions] == [6, 0, 6]
    result = draw_comparison(image, truth, [tmp_path / "a"], tmp_path / "f.png", threshold=0.8)
    assert result.predictions[0].confusion == Confusion(tp=9, fp=111)
    with pytest.raises(InputError, match=r"b: holds no probability\.tif"):
        draw_comparison(image, truth, [tmp_path / "b"], tmp_path / "f.png", threshold=0.8)


def test_sixteen_bits_are_stretched(tmp_path: Path) -> None:
    _image, truth, found = scene(tmp_path)
    deep = np.linspace(1000, 3000, 360).reshape(3, 10, 12).astype(np.uint16)
    image = save(tmp_path / "deep.tif", deep)
    draw_comparison(image, truth, [found], tmp_path / "auto.png")
    draw_comparison(image, truth, [found], tmp_path / "dark.png", value_range=(0, 65535))
    upper = slice(60, 560), slice(20, 600)
    auto, dark = (picture(tmp_path / name)[upper] for name in ("auto.png", "dark.png"))
    assert int(auto.max()) - int(auto.min()) > 240
    assert dark.max() < 13


def test_more_panels_than_columns_go_below(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    draw_comparison(image, truth, [found] * 2, tmp_path / "wide.png", columns=4)
    draw_comparison(image, truth, [found] * 2, tmp_path / "high.png", columns=3)
    wide, high = picture(tmp_path / "wide.png"), picture(tmp_path / "high.png")
    assert (high.shape[0], high.shape[1] < wide.shape[1]) == (2 * wide.shape[0], True)
    assert where(wide, laid(HIT)).sum() == where(high, laid(HIT)).sum() == 12 * 53**2


def test_pictures_without_georeference_are_compared_pixel_by_pixel(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    bare = write_raster(
        tmp_path / "bare.png", np.full((3, 10, 12), 90, np.uint8), driver="PNG", transform=None, crs=None
    )
    result = draw_comparison(bare, truth, [found], tmp_path / "f.png")
    assert (
        result.predictions[0].confusion
        == draw_comparison(image, truth, [found], tmp_path / "g.png").predictions[0].confusion
    )
    assert any("compared pixel by pixel" in note for note in result.notes)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_errors(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    out = tmp_path / "f.png"
    away = save(tmp_path / "away.tif", np.zeros((10, 12), bool), transform=PLACE @ Affine.translation(500, 0))
    with pytest.raises(InputError, match=r"away\.tif does not overlap .*image\.tif"):
        draw_comparison(image, truth, [found, away], out)
    beside = save(tmp_path / "beside.tif", np.zeros((10, 12), bool), transform=PLACE @ Affine.translation(8, 0))
    with pytest.raises(InputError, match=r"beside\.tif: no pixel of rows 0 to 9, columns 0 to 3"):
        draw_comparison(image, truth, [beside], out, window=(0, 0, 10, 4))
    with pytest.raises(InputError, match=r"none\.tif"):
        draw_comparison(image, truth, [tmp_path / "none.tif"], out)
    many = save(tmp_path / "n.tif", np.arange(120, dtype=np.uint8).reshape(10, 12))
    with pytest.raises(InputError, match=r"n\.tif: holds 1 and 119"):
        draw_comparison(image, truth, [many], out)
    for wrong, words in (
        ({"window": (5, 5, 6, 6)}, "inside the image of 10 rows and 12 columns"),
        ({"labels": ["a", "b"]}, "2 labels for 1 predictions"),
        ({"threshold": 1.5}, "a threshold lies above 0"),
        ({"columns": 2}, "need 3"),
        ({"panel": 3}, "at least 16"),
        ({"value_range": (5, 5)}, "the second must be the larger"),
    ):
        with pytest.raises(SettingError, match=words):
            draw_comparison(image, truth, [found], out, **wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="no predictions"):
        draw_comparison(image, truth, [], out)
    with pytest.raises(SettingError, match="a picture ends in"):
        draw_comparison(image, truth, [found], tmp_path / "f.tif")
    assert not out.exists()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    for suffix in ("svg", "png"):
        for name in ("one", "two"):
            draw_comparison(image, truth, [found], tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_command(tmp_path: Path) -> None:
    image, truth, found = scene(tmp_path)
    out = tmp_path / "f.svg"
    options = ["--out", str(out), "--progress", "none", "--label", "mine", "--window", "3,4,2,3"]
    result = CliRunner().invoke(main, ["compare", str(image), str(truth), str(found), *options])
    assert result.exit_code == 0, result.output
    assert result.stdout == "mine · IoU 0.400 · precision 0.667 · recall 0.500\n"
    assert "mine" in texts(out)
    result = CliRunner().invoke(main, ["compare", str(image), str(truth), str(found), *options, "--threshold", "3"])
    assert result.exit_code == 2
    assert result.stderr.startswith("geoseg: a threshold lies above 0")


def test_real_imagery(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "buildings" / "val"
    image, truth = (folder / f"inria_austin1_17_{kind}.tif" for kind in ("rgb", "mask"))
    with rasterio.open(truth) as file:
        mask = file.read(1)
    shifted = write_raster(tmp_path / "shifted.tif", np.roll(mask, 5, axis=1)[None], transform=None, crs=None)
    result = draw_comparison(image, truth, [truth, shifted], tmp_path / "f.svg")
    assert result.predictions[0].confusion.iou == 1
    assert f"IoU {evaluate(shifted, truth).total.iou:.3f}" in texts(tmp_path / "f.svg")
