"""Work shared out among processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from geoseg import processes as module
from geoseg.errors import SettingError, WorkerError
from geoseg.processes import BATCH, FEWEST, WORTH, WORTH_COLD, Pool, how_many, pool_for, shares, side_by_side


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))
    return number**2, os.getpid()


def refuse(number: int) -> int:
    if number == 3:
        raise SettingError("three")
    return number


def die(number: int) -> int:
    if number == 2:
        os._exit(1)
    return number


@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_results_come_in_order(count: int) -> None:
    found = list(side_by_side(square, range(count), 2))
    assert [value for value, _ in found] == [number**2 for number in range(count)]
    if count > 2:
        assert os.getpid() not in {where for _, where in found}
    assert [value for value, _ in side_by_side(square, range(count), 1)] == [number**2 for number in range(count)]


def test_few_items_are_held() -> None:
    taken = []
    results = side_by_side(square, (taken.append(n) or n for n in range(100)), 2)
    next(results)
    assert len(taken) <= 2 * module.AHEAD + 1
    results.close()


def test_processes_that_are_ready() -> None:
    with pool_for(2, module.WORTH_BLOCKS) as pool:
        assert isinstance(pool, Pool)
        assert [value for value, _ in side_by_side(square, range(5), 2, pool)] == [0, 1, 4, 9, 16]
    with pool_for(1, 100) as none, pool_for(2, module.WORTH_BLOCKS - 1) as neither:
        assert none is neither is None


def test_errors_come_as_they_are() -> None:
    with pytest.raises(SettingError, match="three"):
        list(side_by_side(refuse, range(9), 2))


def test_a_process_that_dies() -> None:
    with pytest.raises(WorkerError, match="run the same command again"):
        list(side_by_side(die, range(9), 2))


def interrupts(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number


def test_an_interruption_is_for_the_main_program() -> None:
    assert list(side_by_side(interrupts, range(4), 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("warm", [True, False])
def test_shares(warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_warm", lambda: warm)
    worth = WORTH if warm else WORTH_COLD
    assert shares(10**6, 1) == (1, BATCH)
    assert shares(10**6, 4) == (4, BATCH)
    assert shares(worth - 1, 16) == (1, FEWEST)
    assert shares(worth, 2) == (2, FEWEST)
    assert shares(worth, 64) == (-(-worth // FEWEST), FEWEST)


@pytest.mark.parametrize("buildings", [0, 1, WORTH, 50_000, 10**6])
def test_batches_do_not_depend_on_the_number_of_processes(buildings: int) -> None:
    assert len({shares(buildings, processes)[1] for processes in (1, 2, 7, 64)}) == 1


def test_new_processes_start_where_the_main_program_bears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 5)
    program = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert (how_many(), how_many(started=True)) == (1, 5)
    program.__file__ = "/usr/bin/geoseg"
    assert how_many() == 5


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from geoseg.processes import Pool

        if __name__ == "__main__":
            pool = Pool(2)
            print([pool.submit(abs, n).result() for n in (-1, -2)], flush=True)
            time.sleep(600)
        """)
    )
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "[1, 2]\n"
    family = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.wait()
    patience = time.monotonic() + 20
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
        assert time.monotonic() < patience
        time.sleep(0.1)
