"""Are the workers of a running cluster fit for the work? A bad one fails blocks faster than good ones compute them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from geoseg import __version__
from geoseg.errors import WorkerError

if TYPE_CHECKING:
    from distributed import Client


def muster(client: Client, workers: Mapping[str, Mapping[str, Any]], needs: Iterable[str]) -> None:
    """Ask workers whether they have this geoseg and see some files.

    Args:
        client: Of the cluster.
        workers: Their addresses, and what the scheduler knows of them.
        needs: Paths that every worker must be able to read.

    Raises:
        WorkerError: A worker lacks geoseg, has another one, or does not see a file; names worker and path.
    """
    if not workers:
        return
    # Builtins by name: a function of geoseg's own is what such a worker could not load.
    versions = _answers(client, workers, eval, "__import__('geoseg').__version__")
    wrong = {address: found for address, found in versions.items() if found != __version__}
    if wrong:
        found = next(iter(wrong.values()))
        what = f"has geoseg {found}" if isinstance(found, str) else f"cannot import geoseg ({found})"
        raise WorkerError(
            f"{_named(workers, wrong)} {what}; this is geoseg {__version__}: install the same one where the worker "
            "runs, and start the worker again"
        )
    paths = list(needs)
    answers = _answers(client, workers, unseen, paths) if paths else {}
    lost = {address: found for address, found in answers.items() if found}
    if lost:
        found = next(iter(lost.values()))
        path = found[0] if isinstance(found, list) else found
        raise WorkerError(
            f"{_named(workers, lost)} does not see {path}: every worker needs the same files at the same paths; mount "
            "the folder there, or name the imagery by its URL (/vsicurl/…, /vsis3/…)"
        )


def unseen(paths: Iterable[str]) -> list[str]:
    """Return those of some paths that this process cannot read."""
    return [path for path in paths if not os.access(path, os.R_OK)]


def _answers(client: Client, workers: Iterable[str], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return what a function returns or raises on each worker; workers that are gone meanwhile do not answer."""
    found: dict[str, Any] = client.run(function, *arguments, workers=list(workers), on_error="return")
    return {address: answer for address, answer in found.items() if not isinstance(answer, OSError)}


def _named(workers: Mapping[str, Mapping[str, Any]], wrong: Mapping[str, Any]) -> str:
    """Return the first of some workers in words, and how many more there are."""
    address = next(iter(wrong))
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    name = str(workers[address].get("name", address))
    return f"worker {address}" + (f" ({name})" if name != address else "") + more
