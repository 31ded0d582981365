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
