"""What programs and people are told on stderr."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import GeosegError, SettingError
from geoseg.progress import Bars, Lines, Progress, open_progress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("geoseg.progress.time", clock)
    return clock


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


# ------------------------------------------------------------------------------------------ JSON lines


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10**9)), max_size=20), st.integers(0, 5), st.text())
def test_every_line_is_one_json_object_and_done_never_goes_back(steps, resumed, text):
    stream = io.StringIO()
    total = resumed + sum(step for step, _ in steps)
    with Lines(stream, every=0) as lines:
        lines.stage("segmenting", total, done=resumed, pixels=True)
        for step, pixels in steps:
            lines.advance(step, pixels)
            lines.say(text)
        lines.warn(text)
    found = events(stream)
    told = [event for event in found if event["event"] == "progress"]
    assert len(told) == len(steps) + 1
    assert told[0]["done"] == resumed
    assert told[-1]["done"] == told[-1]["total"] == total
    assert all(a["done"] <= b["done"] for a, b in itertools.pairwise(told))
    for event in told:
        assert set(event) == {"event", "stage", "done", "total", "pixels_per_second", "seconds_left"}
        assert event["seconds_left"] is None or event["seconds_left"] >= 0
    assert [e["text"] for e in found if e["event"] == "info"] == [text] * len(steps)
    assert [e["text"] for e in found if e["event"] == "warning"] == [text]


def test_rate_and_time_left_by_hand(clock):
    stream = io.StringIO()
    lines = Lines(stream)
    lines.stage("segmenting", 10, done=4, pixels=True)
    clock.now += 2
    lines.advance(1, 3_000_000)
    first, second = events(stream)
    assert first == {
        "event": "progress", "stage": "segmenting", "done": 4, "total": 10,
        "pixels_per_second": None, "seconds_left": None,
    }  # fmt: skip
    # One block in two seconds: the five that are left take ten; the four of an earlier run are not counted.
    assert (second["done"], second["pixels_per_second"], second["seconds_left"]) == (5, 1_500_000, 10.0)


def test_lines_are_not_more_often_than_asked_but_the_last_one_always_comes(clock):
    stream = io.StringIO()
    lines = Lines(stream, every=0.5)
    lines.stage("writing", 98)
    for _ in range(98):
        clock.now += 0.1
        lines.advance()
    done = [event["done"] for event in events(stream)]
    assert done[0] == 0
    assert done[-1] == 98
    assert 17 <= len(done) <= 23


def test_a_new_stage_starts_from_its_own_numbers(clock):
    stream = io.StringIO()
    lines = Lines(stream)
    lines.stage("one", 1, pixels=True)
    clock.now += 1
    lines.advance(1, 500)
    lines.stage("two", 3)
    assert events(stream)[-1] == {
        "event": "progress", "stage": "two", "done": 0, "total": 3, "pixels_per_second": None, "seconds_left": None,
    }  # fmt: skip


def test_a_message_of_several_lines_is_one_line():
    stream = io.StringIO()
    Lines(stream).warn('two\nlines "quoted" – ünïcode')
    assert stream.getvalue().count("\n") == 1
    assert events(stream) == [{"event": "warning", "text": 'two\nlines "quoted" – ünïcode'}]


# ------------------------------------------------------------------------------------------------ bars


@pytest.mark.parametrize("text", ["a [red]b[/red] c.tif", "t:warning:.tif", "C:\\x [1/2]", "x" * 300, "[/]"])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_names_are_printed_as_they_are(stream, text):
    shown = stream()
    with Bars(shown) as bars:
        bars.say(text)
        bars.warn(text)
        bars.stage("segmenting", 3, pixels=True)
        bars.say(text)
    assert shown.getvalue().count(text) == 3


def test_without_a_terminal_there_are_few_plain_lines(clock):
    stream = io.StringIO()
    with Bars(stream) as bars:
        bars.stage("segmenting", 100, done=10, pixels=True)
        for _ in range(90):
            clock.now += 1
            bars.advance(1, 2_000_000)
        bars.stage("writing footprints", 1)
        bars.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "segmenting: 100 blocks, 10 of them done before"
    assert lines[1] == "  41/100 2 Mpx/s"
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_the_bar_goes_away_even_when_the_work_fails():
    stream = Terminal()

    def work() -> None:
        with Bars(stream) as bars:
            bars.stage("segmenting", 2, pixels=True)
            bars.advance(1, 10)
            raise GeosegError("no more")

    with pytest.raises(GeosegError, match="no more"):
        work()
    # The cursor, hidden while a bar is drawn, is shown again.
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


# --------------------------------------------------------------------------------------------- choosing


def test_kinds(capsys):
    stream = io.StringIO()
    assert type(open_progress("none", stream)) is Progress
    assert isinstance(open_progress("json", stream), Lines)
    assert isinstance(open_progress("bar", stream), Bars)
    assert isinstance(open_progress("auto", stream), Bars)
    with open_progress("none", stream) as silent:
        silent.stage("x", 3, done=1, pixels=True)
        silent.advance(2, 5)
        silent.say("x")
        silent.warn("x")
    assert stream.getvalue() == ""
    open_progress("json").say("to stderr")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {"event": "info", "text": "to stderr"}
    with pytest.raises(SettingError, match=r"'loud' is not one of auto, bar, json, none"):
        open_progress("loud")


def test_a_block_under_way_moves_the_line_and_its_end_takes_the_place_of_its_share() -> None:
    from geoseg.segment import UnderWay

    stream = io.StringIO()
    shown = Lines(stream, every=0)
    shown.stage("segmenting", 4)
    under_way = UnderWay(shown)
    under_way.hear(((0, 0), 0.25))
    under_way.hear(([0, 1], 0.5))  # lists, as they come over a network
    shown.advance(1, 100)
    under_way.end((0, 0))
    under_way.hear(((0, 0), 0.75))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["done"] for event in events] == [0, 0.25, 0.75, 1, 1.5]
    assert events[-1]["total"] == 4


def test_a_run_tells_how_far_its_only_block_is(
    tmp_path: Path, narrow_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single block of some seconds would otherwise look like a program that hangs."""
    from conftest import blobs, write_tile

    from geoseg import block, predict
    from geoseg.segment import segment

    heard: list[float] = []

    class Heard(Progress):
        def within(self, share: float) -> None:
            heard.append(share)

    monkeypatch.setattr(predict, "_STRIP_PIXELS", 1)
    monkeypatch.setattr(
        block._Share, "__init__", lambda self, *a: vars(self).update(_index=a[0], _total=a[1], _done=0, _last=-10.0)
    )
    write_tile(tmp_path / "a.tif", blobs((128, 64)))
    segment(tmp_path / "a.tif", tmp_path / "out", progress=Heard(), model=str(narrow_model), device="cpu")
    assert heard[0] == 0.25
    assert heard[-1] == 0
