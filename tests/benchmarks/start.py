"""Seconds from the command to the first forward pass of a worker, and what the command needs to print its help.

    python tests/benchmarks/start.py [IMAGE...] [--runs N] [-- further options of segment]

Without images a synthetic tile of 1600 × 1600 pixels, which makes four blocks, so that a worker is started.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from geoseg.sample import write_sample

HOOK = """
import importlib.abc, os, sys, time

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "geoseg.block":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            build = module.predictor_of
            def predictor_of(job):
                predictor = build(job)
                note("model ready")
                windows = predictor.windows
                def first(*args, **kwargs):
                    note("first window")
                    return windows(*args, **kwargs)
                predictor.windows = first
                return predictor
            module.predictor_of = predictor_of
        spec.loader.exec_module = exec_module
        return spec

def note(what):
    with open(os.environ["GEOSEG_BENCHMARK"], "a") as file:
        file.write(f"{time.time()} {what}\\n")

import importlib.util
sys.meta_path.insert(0, Watch())
"""
"""A ``sitecustomize`` for the command and its workers: notes when the model is there and the first window goes in."""


def once(images: list[str], options: list[str]) -> dict[str, float]:
    """Run the command; return seconds from its start to what the hook noted first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(HOOK)
        log = folder / "log"
        paths = os.pathsep.join([name, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "GEOSEG_BENCHMARK": str(log)}
        command = [sys.executable, "-m", "geoseg", "segment", *images, "--out", str(folder / "out"), *options]
        start = time.time()
        subprocess.run([*command, "--progress", "none"], env=environment, check=True, capture_output=True)
        end = time.time() - start
        seconds: dict[str, float] = {}
        for line in log.read_text().splitlines():
            at, what = line.split(" ", 1)
            seconds.setdefault(what, float(at) - start)
        return {**seconds, "end": end}


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    given, options = parser.parse_known_args()
    helps = []
    for _ in range(given.runs):
        clock = time.perf_counter()
        subprocess.run([sys.executable, "-m", "geoseg", "--help"], check=True, capture_output=True)
        helps.append(time.perf_counter() - clock)
    print(f"help         {statistics.median(helps):6.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        images = given.images
        if not images:
            write_sample(Path(folder) / "city", size=1600, grid=(1, 1), seed=0)
            images = [str(Path(folder) / "city" / "images")]
        found = [once(images, [o for o in options if o != "--"]) for _ in range(given.runs)]
    for what in found[0]:
        values = [one[what] for one in found]
        print(f"{what:12} {statistics.median(values):6.2f} s   ({min(values):.2f} – {max(values):.2f})")


if __name__ == "__main__":
    main()
