"""What is done: one file per finished block, and the identity of the job they belong to.

The journal lives in ``DIR/.geoseg`` beside the results. A block file appears by renaming a complete temporary
file, so after a crash at any moment each block is either there whole or not at all. The identity of the job
(inputs with size and time, model hash, settings) lies beside the blocks; when it no longer matches, the blocks are of
no use and go.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from geoseg.errors import OutputError
from geoseg.tiles import Tiles

FOLDER = ".geoseg"
RECORDS = 2
"""Kind of records; blocks of another kind are of no use."""
_COMPLETE, _PARTIAL = ".npz", ".partial.npz"
_ARRAYS = ("mask", "probability", "thumbnail", "parts", "settled", "facts")
_CHECKSUM = 4
# What zipfile and numpy answer to bytes that are no archive of arrays.
_NO_RECORD = (
    zipfile.BadZipFile, zlib.error, LookupError, TypeError, ValueError, AttributeError, OSError, EOFError, RuntimeError,
    MemoryError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class BlockRecord:
    """Everything that a block yields, in a form that travels and is stored."""

    mask: Tiles
    """Of the block's core: 255 on buildings (unrounded probability not below the threshold), 0 elsewhere, valid where
    there is data inside the area of interest."""
    probability: Tiles
    """255 = 1.0; valid as the mask."""
    thumbnail: NDArray[np.uint8]
    """``(3, ⌈h/f⌉, ⌈w/f⌉)`` the imagery itself, averaged, for the report."""
    parts: bytes
    """The block's buildings (:class:`geoseg.wholes.Found`)."""
    settled: bytes
    """Finished buildings (:class:`geoseg.settled.Settled`), as the fact ``outlines`` says; no bytes where there are
    none."""
    facts: dict[str, Any]
    """Numbers and messages: windows run, device, seconds by stage, unreadable pieces of inputs, and what
    :func:`geoseg.sights.counted` counts."""

    @property
    def empty(self) -> bool:
        """True when no pixel of the block has data."""
        return bool(self.facts.get("empty"))

    def to_bytes(self) -> bytes:
        """Pack as an ``.npz`` with a checksum of all of it; equal records give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {
            "mask": np.frombuffer(self.mask.to_bytes(), np.uint8),
            "probability": np.frombuffer(self.probability.to_bytes(), np.uint8),
            "thumbnail": self.thumbnail,
            "parts": np.frombuffer(self.parts, dtype=np.uint8),
            "settled": np.frombuffer(self.settled, dtype=np.uint8),
            "facts": np.frombuffer(json.dumps(self.facts, sort_keys=True).encode(), dtype=np.uint8),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            # The archive's comment, its last bytes, holds the checksum: zip's own leave its table of contents out.
            archive.comment = bytes(_CHECKSUM)
        with buffer.getbuffer() as data:
            data[-_CHECKSUM:] = zlib.crc32(data[:-_CHECKSUM]).to_bytes(_CHECKSUM, "big")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> BlockRecord:
        """Unpack; the opposite of :meth:`to_bytes`.

        Raises:
            ValueError: The bytes are not a block record, or no longer those that were packed.
        """
        if zlib.crc32(memoryview(data)[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "big"):
            raise ValueError("not a block record, or a damaged one: its checksum does not fit")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in _ARRAYS}
            mask, probability = (Tiles.from_bytes(arrays[name].tobytes()) for name in ("mask", "probability"))
        except _NO_RECORD as error:
            raise ValueError(f"not a block record: {error}") from error
        return cls(
            mask,
            probability,
            arrays["thumbnail"],
            arrays["parts"].tobytes(),
            arrays["settled"].tobytes(),
            json.loads(arrays["facts"].tobytes()),
        )


class Journal:
    """The finished blocks of one job in one output folder; a context manager that holds the folder's lock."""

    def __init__(self, out: Path) -> None:
        """Look at (and create) ``out``; nothing is read or deleted before :meth:`open`."""
        self.out = out
        self.folder = out / FOLDER
        self._lock = FileLock(self.folder / "lock")
        self._inbox: Path | None = None

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"{self.out}: another geoseg run is writing here; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be written to ({error.strerror})") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._inbox is not None:
            shutil.rmtree(self._inbox, ignore_errors=True)
            self._inbox = None
        self._lock.release()

    def inbox(self) -> Path:
        """Return a new folder, gone when the journal closes, where others may leave finished blocks for :meth:`take`.

        Its name has not been used before. So whoever finds it writes to the disk that this journal is on, and a
        worker that outlived its run finds none.
        """
        for old in self.folder.glob("inbox-*"):
            shutil.rmtree(old, ignore_errors=True)
        self._inbox = self.folder.absolute() / f"inbox-{uuid.uuid4().hex}"
        try:
            self._inbox.mkdir()
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be written to ({error.strerror})") from error
        return self._inbox

    def open(self, identity: Mapping[str, Any], *, fresh: bool = False) -> list[str]:
        """Take up the job, or start it anew.

        Args:
            identity: JSON-able description of all that the blocks depend on.
            fresh: Forget what is there.

        Returns:
            Why blocks that were there had to be forgotten, a line each; empty when there were none or when the
            job goes on.
        """
        wanted = json.loads(json.dumps(identity))
        found = self._identity()
        reasons = differences(found, wanted) if found is not None else []
        if found is None or reasons or fresh:
            had = next(self.blocks(), None) is not None
            self.forget()
            self._store(self.folder / "job.json", json.dumps(wanted, indent=1).encode())
            if not had:
                return []
            return reasons or ["--fresh was given" if fresh else "what they belong to is not recorded or not readable"]
        return []

    def renew(
        self,
        identity: Mapping[str, Any],
        touching: Callable[[Container[str]], Iterable[tuple[int, int]]],
    ) -> list[str]:
        """Forget only the blocks around changed files, if nothing but the content of files has changed.

        Args:
            identity: As for :meth:`open`, which comes next.
            touching: Takes paths, returns the blocks that may depend on those files.

        Returns:
            A line for each changed file; empty when nothing or more than that has changed.
        """
        wanted, found = json.loads(json.dumps(identity)), self._identity()
        if found is None or found.keys() != wanted.keys():
            return []
        if any(found[key] != wanted[key] for key in found if key != "files"):
            return []
        if [_place(item) for item in found["files"]] != [_place(item) for item in wanted["files"]]:
            return []
        pairs = zip(found["files"], wanted["files"], strict=True)
        changed = {new[0] for old, new in pairs if old != new}
        if not changed:
            return []
        for index in touching(changed):
            for ending in (_COMPLETE, _PARTIAL):
                self._path(index, ending).unlink(missing_ok=True)
        # Last: if this is cut off, the next run finds the same files changed again.
        self._store(self.folder / "job.json", json.dumps(wanted, indent=1).encode())
        return [f"input {path} has changed" for path in sorted(changed)]

    @property
    def _blocks(self) -> Path:
        return self.folder / "blocks"

    def _path(self, index: tuple[int, int], ending: str) -> Path:
        # One folder per row of blocks: a folder of a million files is slow almost everywhere.
        return self._blocks / f"{index[0]:05d}" / f"{index[1]:05d}{ending}"

    def blocks(self, *, complete: bool = False) -> Iterator[tuple[int, int]]:
        """Yield the indices of the blocks that are stored, in no particular order.

        ``complete`` leaves out those that a piece of input was missing for: they are worth another try.
        """
        if not self._blocks.is_dir():
            return
        # Desktops and backups leave files of their own anywhere.
        for path in self._blocks.glob("[0-9]*/[0-9]*" + _COMPLETE):
            column, _, partial = path.name.removesuffix(_COMPLETE).partition(".")
            if path.parent.name.isdigit() and column.isdigit() and not (partial and complete):
                yield int(path.parent.name), int(column)

    def put(self, index: tuple[int, int], data: bytes, complete: bool = True) -> None:
        """Store a finished block; it is there completely or not at all."""
        self._store(self._path(index, _COMPLETE if complete else _PARTIAL), data)
        if complete:
            self._path(index, _PARTIAL).unlink(missing_ok=True)

    def take(self, index: tuple[int, int], name: str, complete: bool = True) -> None:
        """Store a finished block that was left in the inbox under ``name``; it is there completely or not at all."""
        if self._inbox is None:
            raise OutputError(f"{self.folder}: no inbox was opened")
        path = self._path(index, _COMPLETE if complete else _PARTIAL)
        try:
            if not os.access(self._inbox / name, os.R_OK):
                raise PermissionError(0, "not there, or not readable by the user that this runs as")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._inbox / name, path)
        except OSError as error:
            raise OutputError(
                f"{self._inbox / name}: a finished block was left there, and cannot be taken ({error.strerror}); "
                "what was stored before is kept, run the same command again to go on"
            ) from error
        if complete:
            self._path(index, _PARTIAL).unlink(missing_ok=True)

    def get(self, index: tuple[int, int]) -> BlockRecord | None:
        """Return a stored block, or None when it is not there or the disk does not give it back.

        A file that does not read (the disk lost it in a power cut) is removed, so that the next run computes it.
        """
        for ending in (_COMPLETE, _PARTIAL):
            path = self._path(index, ending)
            try:
                return BlockRecord.from_bytes(path.read_bytes())
            except OSError:
                continue
            except ValueError:
                path.unlink(missing_ok=True)
        return None

    def forget(self) -> None:
        """Remove the blocks.

        Raises:
            OutputError: They cannot be removed; left there, another job would take them for its own.
        """
        try:
            shutil.rmtree(self._blocks)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self._blocks}: cannot be removed ({error.strerror}); remove it by hand") from error

    def _identity(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / "job.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _store(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"{path.parent}: a finished block cannot be stored ({error.strerror}); what was stored before is "
                "kept, run the same command again once there is room"
            ) from error


def _place(item: list[Any]) -> list[Any]:
    """Return what must stay the same of a file for the blocks far from it to hold: all but size and time."""
    return [item[0], *item[3:]]


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in words where two job descriptions differ, a line for each part."""
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if key == "files" and isinstance(old, list) and isinstance(new, list):
            lines.extend(_input_differences(old, new))
        elif isinstance(old, dict) and isinstance(new, dict):
            lines.extend(f"{key}.{line}" for line in differences(old, new))
        else:
            lines.append(f"{key} was {_short(old)}, is {_short(new)}")
    return lines


def _input_differences(old: list[Any], new: list[Any]) -> list[str]:
    before = {json.dumps(item[:1]): item for item in old}
    after = {json.dumps(item[:1]): item for item in new}
    gone, come = before.keys() - after.keys(), after.keys() - before.keys()
    changed = [key for key in before.keys() & after.keys() if before[key] != after[key]]
    lines = [f"input {before[key][0]} is gone" for key in sorted(gone)]
    lines += [f"input {after[key][0]} is new" for key in sorted(come)]
    lines += [f"input {after[key][0]} has changed" for key in sorted(changed)]
    return lines or ["the inputs come in another order"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
