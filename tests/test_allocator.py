"""Memory that goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from geoseg import allocator


@pytest.mark.skipif(allocator._trim() is None, reason="only with glibc")
def test_what_was_freed_goes_back_once_it_is_much() -> None:
    program = """
import ctypes, os
from geoseg import allocator
allocator.GROWTH = 64 * 2**20
allocator.give_back()
before = allocator.resident()
# Pieces that the heap takes, the last of which keeps the others from the heap's end.
pieces = [bytes(os.urandom(1)) * 60_000 for _ in range(4000)]
last = pieces[-1]
grown = allocator.resident() - before
assert grown > 200 * 2**20, grown
del pieces
kept = allocator.resident() - before
allocator.give_back()
left = allocator.resident() - before
assert kept > 100 * 2**20, kept
assert left < 40 * 2**20, left
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_it_also_goes_back_when_that_was_done_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    now = [100.0]
    monkeypatch.setattr(allocator, "_trim", lambda: trims.append)
    monkeypatch.setattr(allocator, "resident", lambda: 2**30)
    monkeypatch.setattr(allocator, "_least", 2**30)
    monkeypatch.setattr(allocator, "_last", 100.0)
    monkeypatch.setattr(allocator.time, "monotonic", lambda: now[0])
    allocator.give_back()
    assert trims == []
    now[0] += allocator.EVERY_S + 1
    allocator.give_back()
    allocator.give_back()
    assert trims == [0]
