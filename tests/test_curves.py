"""The table of a run, read and refused; what the pictures say, read from their text; how close lines are labelled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from geoseg.cli import main
from geoseg.curves import COLUMNS, Curve, Line, Point, _spread, draw_curves, draw_run, parse_reference, read_curve
from geoseg.errors import InputError, OutputError, SettingError
from geoseg.figure import PALETTE

HEADER = "epoch,step,seconds,learning_rate,train_loss,train_iou,val_loss,val_iou,threshold"
SVG = "{http://www.w3.org/2000/svg}"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def run(name: str, ious: dict[int, float | None], loss: float = 1.0) -> Curve:
    """A run with a validation IoU by epoch."""
    points = [
        Point(epoch, 10 * epoch, 60.0 * epoch, 1e-3, loss / epoch, 0.5, None if iou is None else 1.0, iou, iou and 0.4)
        for epoch, iou in ious.items()
    ]
    return Curve(name, tuple(points))


def texts(svg: Path) -> list[str]:
    """All text of an SVG."""
    found = ["".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter(f"{SVG}text")]  # noqa: S314
    return [text for text in found if text]


def pixels(png: Path) -> np.ndarray:
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(png) as picture:
        return picture.read([1, 2, 3])


# --- the table ---------------------------------------------------------------------------------------------------


def test_columns_are_the_agreed_ones() -> None:
    assert ",".join(COLUMNS) == HEADER


@pytest.mark.parametrize("by_folder", [True, False])
def test_table_is_read_with_its_gaps(tmp_path: Path, by_folder: bool) -> None:
    folder = table(tmp_path / "seed-1", "1,10,3.5,0.001,1.25,0.3,,,", "2,20,7,1e-05,1.0,,1.5,0.25,0.35")
    curve = read_curve(folder if by_folder else folder / "curves.csv")
    assert curve.name == "seed-1"
    assert curve.points == (
        Point(1, 10, 3.5, 0.001, 1.25, 0.3, None, None, None),
        Point(2, 20, 7.0, 1e-5, 1.0, None, 1.5, 0.25, 0.35),
    )
    assert curve.series("val_iou") == ([2], [0.25])


def test_a_file_of_another_name_gives_the_run_its_name(tmp_path: Path) -> None:
    table(tmp_path, "1,10,3.5,0.001,1.25,0.3,,,")
    (tmp_path / "curves.csv").rename(tmp_path / "scratch.csv")
    assert read_curve(tmp_path / "scratch.csv").name == "scratch"


def test_best_is_the_first_of_equals_and_last_the_last_validated() -> None:
    curve = run("a", {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.5, 5: None})
    assert curve.best is not None
    assert curve.last is not None
    assert (curve.best.epoch, curve.last.epoch) == (2, 4)
    assert run("b", {1: None}).best is None


GOOD = "1,10,3.5,0.001,1.25,0.3,1.5,0.25,0.35"


@pytest.mark.parametrize(
    ("rows", "line", "words"),
    [
        ((GOOD, "two,20,7,0.001,1,0.3,,,"), 3, "epoch is 'two', not a whole number"),
        ((GOOD, "2,20,7,0.001,1,0.3,,"), 3, "8 cells, not 9"),
        ((GOOD, "2,20,7,0.001,,0.3,,,"), 3, "train_loss is '', not a number"),
        ((GOOD, "2,20,7,0.001,nan,0.3,,,"), 3, "train_loss is nan; it must be finite"),
        ((GOOD, "2,20,7,0.001,1,0.3,1,1.2,0.5"), 3, "val_iou is 1.2; it must lie between 0 and 1"),
        ((GOOD, GOOD), 3, "epoch 1 follows epoch 1"),
        (("0,10,3.5,0.001,1.25,0.3,,,",), 2, "epoch is 0; it must be at least 1"),
        ((GOOD, "2,20,-7,0.001,1,0.3,,,"), 3, "seconds is -7.0"),
    ],
)
def test_errors_name_file_line_and_what_is_there(tmp_path: Path, rows: tuple[str, ...], line: int, words: str) -> None:
    folder = table(tmp_path / "run", *rows)
    with pytest.raises(InputError) as error:
        read_curve(folder)
    assert f"{folder / 'curves.csv'}: line {line}" in str(error.value)
    assert words in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1 must be 'epoch,step.*is 'epoch,loss'"):
        read_curve(table(tmp_path / "a", "1,2", header="epoch,loss"))
    with pytest.raises(InputError, match="no such file"):
        read_curve(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no curves\.csv"):
        read_curve(tmp_path / "empty")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(InputError, match="is nothing"):
        read_curve(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00e")
    with pytest.raises(InputError, match=r"x\.csv: cannot be read as a table"):
        read_curve(tmp_path / "x.csv")


# --- one run -----------------------------------------------------------------------------------------------------


def polylines(svg: Path, colour: str) -> list[int]:
    """Number of vertices of each line of a colour, those of the legend included."""
    found = []
    for path in ElementTree.parse(svg).iter(f"{SVG}path"):  # noqa: S314
        style = path.get("style", "")
        vertices = len(re.findall("[ML]", path.get("d", "")))
        if f"stroke: {colour}" in style and "fill: none" in style:
            found.append(vertices)
    return found


def test_a_runs_picture_has_three_panels_with_its_numbers(tmp_path: Path) -> None:
    curve = run("unet11, scratch", {epoch: 0.7 - 0.01 * abs(epoch - 30) for epoch in range(1, 41)})
    draw_run(curve, tmp_path / "curves.svg")
    said = texts(tmp_path / "curves.svg")
    assert "unet11, scratch · epoch 40, step 400, 40.0 min · best validation IoU 0.7000 in epoch 30" in said
    assert {"loss", "IoU", "threshold of the best IoU", "learning rate"} <= set(said)
    assert said.count("epoch") == 3
    assert said.count("training") == said.count("validation") == 2
    # Losses, and IoUs: each a line of all 40 epochs, threshold the third panel's.
    lines = [polylines(tmp_path / "curves.svg", colour).count(40) for colour in PALETTE[:3]]
    assert lines == [2, 2, 1]


def y_labels(svg: Path) -> set[str]:
    return {text for text in texts(svg) if re.fullmatch(r"[\d.e-]+", text)}


def test_loss_is_logarithmic_only_where_it_spans_more_than_a_decade(tmp_path: Path) -> None:
    narrow, wide = (run("a", {1: 0.5, 2: 0.5, last: 0.6}) for last in (8, 50))
    draw_run(narrow, tmp_path / "narrow.svg")
    draw_run(wide, tmp_path / "wide.svg")
    assert "0.05" in y_labels(tmp_path / "wide.svg")
    assert "0.05" not in y_labels(tmp_path / "narrow.svg")


@pytest.mark.parametrize("ious", [{}, {1: None}, {1: 0.5}, {1: None, 2: 0.0}])
def test_few_epochs_can_be_drawn(tmp_path: Path, ious: dict[int, float | None]) -> None:
    draw_run(run("early", ious), tmp_path / "curves.png")
    picture = pixels(tmp_path / "curves.png")
    assert picture.shape == (3, 370, 1200)
    said = draw_run(run("early", ious), tmp_path / "curves.svg") or texts(tmp_path / "curves.svg")
    assert any(text.startswith("early · no epoch yet" if not ious else "early · epoch") for text in said)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    curve = run("a", {1: 0.5, 2: 0.6})
    for suffix in ("svg", "png", "pdf"):
        draw_run(curve, tmp_path / f"one.{suffix}")
        draw_run(curve, tmp_path / f"two.{suffix}")
        one = (tmp_path / f"one.{suffix}").read_bytes()
        assert one == (tmp_path / f"two.{suffix}").read_bytes()
        assert b"Matplotlib v" not in one
        assert b"<dc:date>" not in one


def test_a_users_settings_of_matplotlib_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    curve = run("a", {1: 0.5, 2: 0.6})
    draw_run(curve, tmp_path / "one.svg")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "path"}):
        draw_run(curve, tmp_path / "two.svg")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_failed_drawing_leaves_the_last_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    draw_run(run("a", {1: 0.5}), tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()

    def fail(_figure: Figure, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OutputError, match="no space left"):
        draw_run(run("a", {1: 0.5, 2: 0.6}), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


# --- several runs ------------------------------------------------------------------------------------------------


def test_seeds_are_one_line_of_means_between_lowest_and_highest() -> None:
    line = Line.of("x", [run("a", {1: 0.2, 2: 0.5, 3: 0.4}), run("b", {1: 0.4, 2: 0.7, 3: None})])
    assert line.epochs == (1, 2)
    assert line.mean == pytest.approx((0.3, 0.6))
    assert (line.low, line.high) == ((0.2, 0.5), (0.4, 0.7))
    assert line.best == (2, pytest.approx(0.6))
    assert line.summary() == "x (2 runs) · best 0.600 (epoch 2) · last 0.600 (epoch 2)"


def test_figure_3_says_what_is_in_it(tmp_path: Path) -> None:
    runs = [run("s1", {1: 0.4, 2: 0.5}), run("t", {1: 0.6, 2: 0.65, 3: 0.62}), run("s2", {1: 0.5, 2: 0.6})]
    lines = draw_curves(
        runs, tmp_path / "f.svg", labels=["scratch", "ImageNet", "scratch"], reference=[(0.687, "paper"), (0.593, "")]
    )
    assert [(line.label, line.runs) for line in lines] == [("scratch", 2), ("ImageNet", 1)]
    said = texts(tmp_path / "f.svg")
    assert "scratch (2 runs) · best 0.550 (epoch 2) · last 0.550 (epoch 2)" in said
    assert "ImageNet · best 0.650 (epoch 2) · last 0.620 (epoch 3)" in said
    assert "0.687 paper" in said
    assert "0.593" in said
    assert "validation IoU, at each epoch's best threshold" in said
    drawn = (tmp_path / "f.svg").read_text(encoding="utf-8")
    # One band, in the colour of the line with two runs.
    assert drawn.count("fill-opacity: 0.18") == 1
    assert f"fill: {PALETTE[0]}; fill-opacity: 0.18" in drawn


def test_names_are_no_formulas_and_never_left_out(tmp_path: Path) -> None:
    draw_curves([run("_a$^x$b\n\udcff", {1: 0.5})], tmp_path / "f.svg")
    assert "_a$^x$b \N{REPLACEMENT CHARACTER} · best 0.500 (epoch 1) · last 0.500 (epoch 1)" in texts(
        tmp_path / "f.svg"
    )


def test_runs_that_cannot_be_drawn(tmp_path: Path) -> None:
    out = tmp_path / "f.png"
    one, none = run("one", {1: 0.5}), run("none", {1: None})
    with pytest.raises(InputError, match="none: no epoch was validated yet"):
        draw_curves([one, none], out)
    with pytest.raises(InputError, match="one, two: no epoch was validated in all"):
        draw_curves([one, run("two", {1: None, 2: 0.5})], out, labels=["x", "x"])
    with pytest.raises(SettingError, match="1 labels for 2 runs"):
        draw_curves([one, one], out, labels=["x"])
    with pytest.raises(SettingError, match="no runs"):
        draw_curves([], out)
    with pytest.raises(SettingError, match=r"reference is 69"):
        draw_curves([one], out, reference=[(69, "percent")])
    with pytest.raises(SettingError, match=r"not in '\.gif'"):
        draw_curves([one], tmp_path / "f.gif")
    with pytest.raises(OutputError, match="does not exist"):
        draw_curves([one], tmp_path / "nowhere" / "f.png")
    assert list(tmp_path.iterdir()) == []


def test_references_are_parsed() -> None:
    assert parse_reference("0.687:paper: best") == (0.687, "paper: best")
    assert parse_reference("0.5") == (0.5, "")
    for wrong in ("paper", "68.7:percent", "nan", ""):
        with pytest.raises(SettingError, match="reference is"):
            parse_reference(wrong)


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted), st.floats(0.001, 0.2))
def test_labels_keep_their_distance_and_stay_where_there_is_room(values: list[float], gap: float) -> None:
    places = _spread(values, gap)
    assert len(places) == len(values)
    steps = np.diff(places)
    assert (steps >= gap - 1e-9).all()
    if (np.diff(values) >= gap).all():
        assert places == pytest.approx(values)
    # Nothing moves as a whole.
    assert sum(places) == pytest.approx(sum(values), abs=1e-9)


def test_command(tmp_path: Path) -> None:
    a = table(tmp_path / "seed-1", "1,10,3.5,0.001,1.25,0.3,1,0.4,0.5")
    b = table(tmp_path / "seed-2", "1,10,3.5,0.001,1.25,0.3,1,0.6,0.5")
    out = tmp_path / "figure.svg"
    result = CliRunner().invoke(main, ["curves", str(a), str(b), "--out", str(out), "--reference", "0.687:paper"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"seed-{n} · best 0.{k}00 (epoch 1) · last 0.{k}00 (epoch 1)" for n, k in ((1, 4), (2, 6))
    ]
    assert "0.687 paper" in texts(out)
    labels = ["--label", "scratch", "--label", "scratch"]
    result = CliRunner().invoke(main, ["curves", str(a), str(b), "--out", str(out), *labels])
    assert result.stdout == "scratch (2 runs) · best 0.500 (epoch 1) · last 0.500 (epoch 1)\n"
    result = CliRunner().invoke(main, ["curves", str(a), str(b), "--out", str(out), *labels[:2]])
    assert (result.exit_code, result.stderr) == (
        2,
        "geoseg: 1 labels for 2 runs; give one for each, in their order\n",
    )


def test_drawing_needs_no_display_and_no_pyplot(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from geoseg.curves import Curve, Point, draw_run; "
        "assert not any(name.startswith('matplotlib') for name in sys.modules); "
        "draw_run(Curve('a', (Point(1, 1, 1.0, 1e-3, 1.0, .5),)), sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, cwd=root)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "jpg"])
def test_every_kind_of_picture_can_be_written(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"curves.{ending}"
    draw_run(run("a", {1: 0.5, 2: 0.6}), out)
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8\xff"}
    assert out.read_bytes().startswith(begins[ending])
