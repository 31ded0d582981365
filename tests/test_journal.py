"""What survives: records as bytes, blocks on disk, crashes, damage, changed jobs, a second run."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geoseg.errors import OutputError
from geoseg.inbox import leave
from geoseg.journal import BlockRecord, Journal, differences
from geoseg.tiles import Tiles, tiles_of
from geoseg.tiling import Rect

JOB: dict[str, Any] = {
    "geoseg": "0.1.0",
    "files": [["a.tif", 10, "t0", [1, 2, 3]], ["b.tif", 20, "t0", [1, 2, 3]]],
    "model": "5f3a",
    "tiling": {"cell": 512, "halo": 192, "core": 2048},
    "scaling": {"low": 0.0, "mean": (0.485, 0.456, 0.406)},
    "tta": False,
}
"""With a tuple, as dataclasses.asdict leaves it: JSON gives back a list."""


def tiles(pixels: np.ndarray, valid: np.ndarray, whole: bool = True) -> Tiles:
    """Of a raster as large as the pixels, or of one that they are the corner of."""
    height, width = shape = pixels.shape
    values = pixels * np.uint8(255) if pixels.dtype == bool else pixels
    return tiles_of(
        Rect(0, 0, height, width),
        values,
        valid,
        shape if whole else (height + 9, width + 9),
        average=pixels.dtype != bool,
    )


@st.composite
def records(draw) -> BlockRecord:
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    factor = draw(st.integers(1, 3))
    facts = st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.lists(st.integers()), max_size=4)
    valid = draw(hnp.arrays(bool, shape))
    grey = draw(hnp.arrays(np.uint8, shape))
    whole = draw(st.booleans())
    return BlockRecord(
        tiles(grey > 99, valid, whole),
        tiles(grey, valid, whole),
        draw(hnp.arrays(np.uint8, (3, -(-shape[0] // factor), -(-shape[1] // factor)))),
        draw(st.binary(max_size=50)),
        draw(st.binary(max_size=50)),
        draw(facts),
    )


def record(seed: int = 0, **facts: Any) -> BlockRecord:
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (9, 13), dtype=np.uint8)
    small = rng.integers(0, 256, (3, 5, 7), dtype=np.uint8)
    return BlockRecord(tiles(grey > 99, grey > 40), tiles(grey, grey > 40), small, b"parts", b"outlines", facts)


def assert_same(found: BlockRecord | None, expected: BlockRecord) -> None:
    assert found is not None
    for name in ("probability", "mask"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(one.places, other.places)
        np.testing.assert_array_equal(one.sizes, other.sizes)
        assert one.data == other.data
        assert len(one.pieces) == len(other.pieces)
        for piece, wanted in zip(one.pieces, other.pieces, strict=True):
            assert (piece.level, piece.rect) == (wanted.level, wanted.rect)
            np.testing.assert_array_equal(piece.values, wanted.values)
            np.testing.assert_array_equal(piece.valid, wanted.valid)
    np.testing.assert_array_equal(found.thumbnail, expected.thumbnail)
    assert found.thumbnail.dtype == expected.thumbnail.dtype
    assert (found.parts, found.settled, found.facts) == (expected.parts, expected.settled, expected.facts)


# --------------------------------------------------------------------------------- records as bytes


@given(records())
@settings(deadline=None)
def test_a_record_comes_back_as_it_was_and_packs_to_the_same_bytes(given_record):
    data = given_record.to_bytes()
    found = BlockRecord.from_bytes(data)
    assert_same(found, given_record)
    assert found.to_bytes() == data


def test_the_order_of_facts_and_of_memory_does_not_show_in_the_bytes():
    one = record(a=1, b=2)
    other = BlockRecord(one.mask, one.probability, one.thumbnail, one.parts, one.settled, {"b": 2, "a": 1})
    assert one.to_bytes() == other.to_bytes()


def test_bytes_do_not_depend_on_the_clock_and_are_an_archive_that_numpy_opens(monkeypatch):
    before = record().to_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    assert record().to_bytes() == before
    with np.load(io.BytesIO(before), allow_pickle=False) as packed:
        assert packed["probability"].tobytes() == record().probability.to_bytes()


def test_empty_is_what_the_facts_say():
    assert record(empty=True).empty
    assert not record().empty


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_any_damage_is_noticed(data):
    good = record().to_bytes()
    kind = data.draw(st.sampled_from(["flip", "zeros", "noise", "cut", "append"]))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = {
        "flip": lambda: good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :],
        "zeros": lambda: good[:at] + bytes(len(good) - at),
        "noise": lambda: good[:at] + (noise := data.draw(st.binary(min_size=1, max_size=64))) + good[at + len(noise) :],
        "cut": lambda: good[:at],
        "append": lambda: good + data.draw(st.binary(min_size=1, max_size=64)),
    }[kind]()
    if bad == good:
        return
    with pytest.raises(ValueError, match="block record"):
        BlockRecord.from_bytes(bad)


def sealed(members: dict[str, bytes]) -> bytes:
    """An archive whose checksum fits, as somebody would make who knows the format."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
        packed.comment = bytes(4)
    data = buffer.getvalue()[:-4]
    return data + zlib.crc32(data).to_bytes(4, "big")


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_record_is_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(sprung)], dtype=object)
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap does not work"
    sprung.unlink()
    fields = {
        **{f"{name}.npy": npy(np.frombuffer(Tiles.none().to_bytes(), np.uint8)) for name in ("probability", "mask")},
        "thumbnail.npy": npy(np.zeros((3, 2, 2), np.uint8)),
        **{f"{name}.npy": npy(trap, pickled=True) for name in ("parts", "settled", "facts")},
    }
    with pytest.raises(ValueError, match=r"pickle|Object arrays"):
        BlockRecord.from_bytes(sealed(fields))
    assert not sprung.exists()
    for plain in (pickle.dumps(Trap(sprung)), npy(trap, pickled=True)):
        with pytest.raises(ValueError, match="block record"):
            BlockRecord.from_bytes(plain)
        with pytest.raises(ValueError, match=r"pickle|Object arrays|block record"):
            BlockRecord.from_bytes(plain + zlib.crc32(plain).to_bytes(4, "big"))
    assert not sprung.exists()


SOME = tiles(np.full((2, 2), 7, np.uint8), np.eye(2, dtype=bool), whole=False).to_bytes()


def changed_at(at: int, value: int) -> np.ndarray:
    data = bytearray(SOME)
    data[at : at + 8] = value.to_bytes(8, "little", signed=True)
    return np.frombuffer(bytes(data), np.uint8)


@pytest.mark.parametrize(
    "changed",
    [
        {"mask": np.frombuffer(SOME[:-1], np.uint8)},
        {"mask": np.frombuffer(SOME + b"\0", np.uint8)},
        {"mask": np.frombuffer(SOME[:20], np.uint8)},
        {"mask": changed_at(0, 1)},
        {"mask": changed_at(0, 2**40)},
        {"mask": changed_at(0, -1)},
        {"mask": changed_at(8, 2)},
        {"mask": changed_at(16, 3)},
        {"mask": changed_at(24 + 8, -3)},
        {"mask": changed_at(24 + 24, 2**31)},
        {"probability": None},
        {"facts": np.frombuffer(b"{", np.uint8)},
        {"mask": None},
    ],
)
def test_archives_with_other_arrays_are_no_records(changed):
    arrays: dict[str, Any] = {
        "mask": np.frombuffer(SOME, np.uint8),
        "probability": np.frombuffer(SOME, np.uint8),
        "thumbnail": np.zeros((3, 1, 1), np.uint8),
        "parts": np.zeros(0, np.uint8),
        "settled": np.zeros(0, np.uint8),
        "facts": np.frombuffer(b"{}", np.uint8),
    }

    def packed(these: dict[str, Any]) -> bytes:
        return sealed({f"{name}.npy": npy(array) for name, array in these.items() if array is not None})

    assert BlockRecord.from_bytes(packed(arrays)).facts == {}
    with pytest.raises(ValueError):
        BlockRecord.from_bytes(packed(arrays | changed))


# ------------------------------------------------------------------------------------ blocks on disk


@given(st.dictionaries(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), st.booleans(), max_size=5))
@settings(deadline=None, max_examples=30)
def test_blocks_are_found_again_complete_or_partial(blocks):
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        assert journal.open(JOB) == []
        for index, complete in blocks.items():
            journal.put(index, record(index[0], where=list(index)).to_bytes(), complete)
        assert sorted(journal.blocks()) == sorted(blocks)
        assert sorted(journal.blocks(complete=True)) == sorted(i for i, complete in blocks.items() if complete)
        for index in blocks:
            assert_same(journal.get(index), record(index[0], where=list(index)))
        assert journal.get((7, 10**6 + 1)) is None


def test_a_complete_block_takes_the_place_of_a_partial_one(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record(1).to_bytes(), False)
        journal.put((0, 0), record(2).to_bytes(), True)
        assert list(journal.blocks()) == list(journal.blocks(complete=True)) == [(0, 0)]
        assert_same(journal.get((0, 0)), record(2))


def test_blocks_survive_the_end_of_the_process_that_stored_them(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((2, 3), record().to_bytes())
    with Journal(tmp_path) as journal:
        assert journal.open(JOB) == []
        assert list(journal.blocks(complete=True)) == [(2, 3)]
        assert_same(journal.get((2, 3)), record())


def test_a_crash_while_storing_leaves_no_block_and_harms_no_other(tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*_: Any) -> None:
        raise Crash

    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record(1).to_bytes())
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            for index in ((0, 0), (0, 1)):
                with pytest.raises(Crash):
                    journal.put(index, record(2).to_bytes())
    assert list(tmp_path.rglob("*.tmp")), "nothing was left half done"
    with Journal(tmp_path) as journal:
        assert journal.open(JOB) == []
        assert list(journal.blocks()) == [(0, 0)]
        assert_same(journal.get((0, 0)), record(1))
        assert journal.get((0, 1)) is None
        journal.put((0, 1), record(3).to_bytes())
        assert_same(journal.get((0, 1)), record(3))


@pytest.mark.parametrize("damage", [b"", b"PK", bytes(700), b"\x93NUMPY\x01\x00"])
def test_a_block_file_that_does_not_read_is_removed(tmp_path, damage):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        (path,) = tmp_path.rglob("*.npz")
        path.write_bytes(damage)
        assert journal.get((0, 0)) is None
        assert not path.exists()
        assert list(journal.blocks()) == []


def test_a_partial_block_stands_in_for_a_damaged_complete_one(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record(1).to_bytes())
        (path,) = tmp_path.rglob("*.npz")
        journal.put((0, 0), record(2).to_bytes(), False)
        path.write_bytes(b"lost")
        assert_same(journal.get((0, 0)), record(2))
        assert list(journal.blocks(complete=True)) == []


def test_forget_removes_blocks_and_may_be_called_again(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        journal.forget()
        journal.forget()
        assert list(journal.blocks()) == []
        assert journal.open(JOB) == []


# -------------------------------------------------------------------------------- whose blocks they are


def changed(path: str, value: Any) -> dict[str, Any]:
    job = json.loads(json.dumps(JOB))
    *parents, last = path.split(".")
    place = job
    for name in parents:
        place = place[name]
    place[last] = value
    return job


A, B = JOB["files"]


@pytest.mark.parametrize(
    ("job", "reasons"),
    [
        (changed("files", [A]), ["input b.tif is gone"]),
        (changed("files", [A, B, ["c.tif", 1, "t", [1, 2, 3]]]), ["input c.tif is new"]),
        (changed("files", [A, ["b.tif", 21, "t0", [1, 2, 3]]]), ["input b.tif has changed"]),
        (changed("files", [A, ["b.tif", 20, "t1", [1, 2, 3]]]), ["input b.tif has changed"]),
        (changed("files", [["z.tif", *A[1:]], B]), ["input a.tif is gone", "input z.tif is new"]),
        (changed("files", [B, A]), ["the inputs come in another order"]),
        (changed("model", "77aa"), ['model was "5f3a", is "77aa"']),
        (changed("tta", True), ["tta was false, is true"]),
        (changed("tiling.halo", 64), ["tiling.halo was 192, is 64"]),
        (changed("scaling.mean", [0, 0, 0]), ["scaling.mean was [0.485, 0.456, 0.406], is [0, 0, 0]"]),
        (changed("aoi", "9f"), ['aoi was null, is "9f"']),
    ],
)
def test_a_changed_job_starts_afresh_and_says_why(tmp_path, job, reasons):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        assert journal.open(job) == reasons
        assert list(journal.blocks()) == []
        assert journal.open(job) == []
        # Going back is another change; what was forgotten does not return.
        journal.put((1, 1), record().to_bytes())
        assert len(journal.open(JOB)) == len(reasons)
        assert list(journal.blocks()) == []


def test_long_values_are_cut_in_the_reasons():
    (line,) = differences({"crs": "x" * 500}, {"crs": "y" * 500})
    assert len(line) < 150
    assert line.startswith('crs was "xxx')
    assert "…" in line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values), st.dictionaries(st.text(max_size=3), json_values))
def test_two_descriptions_differ_exactly_when_there_is_a_line(one, other):
    # A key that is not there and one that is null mean the same.
    def told(job: Any) -> Any:
        return {k: told(v) for k, v in job.items() if v is not None} if isinstance(job, dict) else job

    lines = differences(one, other)
    assert differences(one, one) == []
    if told(one) == told(other):
        assert lines == []
    elif all(isinstance(one.get(k), dict) == isinstance(other.get(k), dict) for k in one.keys() | other.keys()):
        assert lines


def test_nothing_to_forget_is_nothing_to_say(tmp_path):
    with Journal(tmp_path) as journal:
        assert journal.open(JOB) == []
        assert journal.open(changed("model", "other")) == []
        assert journal.open(JOB, fresh=True) == []


def test_fresh_forgets(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        assert journal.open(JOB, fresh=True) == ["--fresh was given"]
        assert list(journal.blocks()) == []


@pytest.mark.parametrize("damage", [None, "", "[1, 2]", "{", "\udc80"])
def test_blocks_of_an_unknown_job_are_forgotten(tmp_path, damage):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        path = journal.folder / "job.json"
        path.unlink()
        if damage is not None:
            path.write_bytes(damage.encode("utf-8", "surrogateescape"))
        (reason,) = journal.open(JOB)
        assert "not recorded" in reason
        assert list(journal.blocks()) == []
        assert journal.open(JOB) == []


def test_blocks_that_cannot_be_removed_are_not_taken_over(tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record().to_bytes())
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", refuse)
            with pytest.raises(OutputError, match="Permission denied"):
                journal.open(changed("model", "other"))
        # The block still belongs to the job that it was made for.
        assert journal.open(JOB) == []
        assert list(journal.blocks()) == [(0, 0)]


# -------------------------------------------------------------------------------- one run at a time, and no room


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with Journal(tmp_path), pytest.raises(OutputError, match="another geoseg run"), Journal(tmp_path):
        pass
    with Journal(tmp_path) as journal:
        assert journal.open(JOB) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, pathlib, geoseg.journal as j\n"
        "with j.Journal(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    input()"
    )
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another geoseg run"), Journal(tmp_path):
            pass
        other.kill()
        other.wait()
    with Journal(tmp_path) as journal:
        assert journal.open(JOB) == []


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"out: cannot be written to \("), Journal(tmp_path / "out"):
        pass
    with pytest.raises(OutputError, match="cannot be written to"), Journal(tmp_path / "out" / "below"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_in_words_and_what_was_stored_stays(tmp_path):
    with Journal(tmp_path) as journal:
        journal.open(JOB)
        journal.put((0, 0), record(1).to_bytes())
        (stored,) = tmp_path.rglob("*.npz")
        for index, name in (((0, 0), "00000.npz.tmp"), ((0, 1), "00001.npz.tmp")):
            (stored.parent / name).symlink_to("/dev/full")
            with pytest.raises(OutputError, match=r"No space left on device.*run the same command again"):
                journal.put(index, record(2).to_bytes())
        assert not list(tmp_path.rglob("*.tmp"))
        assert list(journal.blocks()) == [(0, 0)]
        assert_same(journal.get((0, 0)), record(1))


# --- the inbox


def test_a_block_that_was_left_is_taken(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open({"a": 1})
        journal.put((0, 1), record(1).to_bytes(), False)
        inbox = journal.inbox()
        name = leave(str(inbox), (0, 1), record(2).to_bytes())
        other = leave(str(inbox), (0, 1), record(2).to_bytes())
        assert name is not None
        assert other is not None
        assert name != other  # two workers at the same block are not in each other's way
        assert list(journal.blocks(complete=True)) == []
        journal.take((0, 1), name)
        assert list(journal.blocks()) == [(0, 1)]
        assert_same(journal.get((0, 1)), record(2))
        with pytest.raises(
            OutputError, match=rf"{name}: a finished block was left there, and cannot be taken \(not there"
        ):
            journal.take((0, 1), name)
    assert not inbox.exists()


def test_who_outlived_its_run_finds_no_inbox(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        old = journal.inbox()
        assert journal.inbox() != old
        assert leave(str(old), (0, 0), b"late") is None
    assert leave(str(old), (0, 0), b"late") is None
    assert [path.name for path in (tmp_path / ".geoseg").iterdir()] == ["lock"]


def test_what_a_crash_left_in_the_inbox_goes(tmp_path: Path) -> None:
    left = tmp_path / ".geoseg" / "inbox-0123"
    left.mkdir(parents=True)
    (left / "0-0-1.npz").write_bytes(b"x")
    with Journal(tmp_path) as journal:
        journal.inbox()
        assert not left.exists()
