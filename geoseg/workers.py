"""Where blocks are computed: in this process, on this machine's processes, or on a cluster. All of dask is here.

A task is a plain function of ``(job, item)`` that knows nothing of dask. Few tasks are in flight at any time,
whatever the number of blocks, so neither the scheduler nor this process fills up.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from geoseg.errors import SettingError, WorkerError
from geoseg.gpus import may_have_gpu, nvidia_gpus
from geoseg.muster import muster
from geoseg.warm import method

if TYPE_CHECKING:
    from distributed import Client, Future

Job = TypeVar("Job")
Item = TypeVar("Item")
Out = TypeVar("Out")

TOPIC = "geoseg"
"""Of dask's events, what tasks tell while they run."""
GPU = "GPU"
"""Name of the dask resource that a worker with a GPU declares (``dask worker --resources GPU=1``)."""
OVERLAP = 2
"""Blocks at once on a worker: one reads or vectorises while the other has the network."""
OVERLAP_GPU = 16
"""The same on a worker with a GPU, at most: a GPU computes a block in less time than a core needs to read it."""
BLOCK_BYTES = 2 << 30
"""Memory to be there for each of them; 36 tiles of 5000 pixels took half of that."""
QUEUED = 3
"""Blocks under way for each place, so that no worker idles while a result travels. With more than two, dask's scheduler
keeps those that wait to itself until a place is free, instead of handing them to workers beforehand."""
NO_PAGE = "127.0.0.1:0"
"""Where dask's status pages go: unless told, port 8787 of every network this machine is on."""
LOOK_AGAIN_S = 10.0
"""How often to ask for the number of workers, since clusters grow and shrink."""
HOLDERS, SPREAD_S = 64, 10.0
"""Workers that get the job before the work begins, and the longest wait for them: told to copy it to a thousand at
once, dask's scheduler was seen to come to no end."""
TOGETHER_BYTES, MANY = 32_000_000, 64
"""Results are fetched together up to these many bytes and results: what the driver holds at once."""
PATIENCE_S, LOCAL_PATIENCE_S = 600.0, 120.0
"""How long to wait for the first worker of a running cluster, and of one that is started here."""
LEAN = {
    # Neither source code for the status page, nor advice for interactive use: the job of 100 000 files is 18 MB.
    "distributed.diagnostics.computations.nframes": 0,
    "distributed.admin.large-graph-warning-threshold": "1 GB",
}
"""Settings of dask's in this process."""
CORES_PER_WORKER = 8
"""CPU cores that one forward pass still uses well."""


class Workers(Protocol):
    """Something that applies a function to many items, in any order."""

    @property
    def description(self) -> str:
        """In words, for the first line that a user sees."""
        ...

    @property
    def threads(self) -> int | None:
        """CPU threads that a task may use, None to leave it to the task's surroundings."""
        ...

    def map(
        self, function: Callable[[Job, Item], Out], job: Job, items: Iterable[Item]
    ) -> Iterator[tuple[Item, Out | Exception]]:
        """Yield each item with its result, or with the exception that it ended in, as they come."""
        ...

    def wait(self) -> None:
        """Wait, after the ``with``, until all processes have ended that were started."""
        ...

    def listen(self, hear: Callable[[Any], None]) -> None:
        """Call ``hear``, in any thread, with what tasks :func:`tell` while they run; a cluster's are not heard."""
        ...


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def blocks_at_once(threads: int, available: int) -> int:
    """Return how many blocks a worker with a GPU should have in hand.

    Args:
        threads: CPU cores that it may use.
        available: Bytes of memory that it may use.
    """
    return max(OVERLAP, min(threads, OVERLAP_GPU, available // BLOCK_BYTES))


def memory() -> int:
    """Return the bytes of memory that this process and its children may use."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def threads_of_worker() -> int | None:
    """Return the threads of the dask worker that this runs on, None elsewhere."""
    if "distributed" not in sys.modules:  # a worker has imported it
        return None
    from distributed import get_worker

    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return None


_hear: Callable[[Any], None] | None = None


def tell(what: Any) -> None:
    """Send something small from a running task to whoever listens (:meth:`Workers.listen`)."""
    if _hear is not None:
        _hear(what)
        return
    from distributed import get_worker

    try:
        get_worker().log_event(TOPIC, what)
    except ValueError:  # nobody could listen
        return


@dataclass(frozen=True)
class Here:
    """Tasks one after the other in this process: for tests, debuggers, and one-block jobs."""

    threads: int | None = None

    @property
    def description(self) -> str:
        """In words."""
        return "this process"

    def map(
        self, function: Callable[[Job, Item], Out], job: Job, items: Iterable[Item]
    ) -> Iterator[tuple[Item, Out | Exception]]:
        """Yield ``(item, result)`` in the order of the items."""
        for item in items:
            try:
                yield item, function(job, item)
            except Exception as error:  # noqa: BLE001  what a task ends in is a result here, as on a cluster
                yield item, error

    def wait(self) -> None:
        """See :meth:`Workers.wait`."""

    def listen(self, hear: Callable[[Any], None]) -> None:
        """See :meth:`Workers.listen`."""
        global _hear
        _hear = hear


class Dask(AbstractContextManager["Dask"]):
    """Tasks on a dask cluster: one that is started here, or one that is already running."""

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        workers: int | None = None,
        device: str = "auto",
        needs: Iterable[str] = (),
        tasks: int | None = None,
    ) -> None:
        """Say what is wanted; nothing starts before the ``with``.

        Args:
            scheduler: Address of a running scheduler, such as ``tcp://host:8786``, or the file that
                ``dask scheduler --scheduler-file`` writes; None to start workers here.
            workers: Number of local worker processes; by default one per GPU, or one per eight CPU cores.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``: whether local workers get a GPU each.
            needs: Files that every worker of a running cluster must see.
            tasks: How many there are at most: fewer workers than a machine has room for then take more cores each.

        Raises:
            SettingError: Both a scheduler and a number of workers, or fewer than one worker.
        """
        if scheduler is not None and workers is not None:
            raise SettingError("--workers starts local workers and --scheduler uses running ones: give one")
        if workers is not None and workers < 1:
            raise SettingError(f"--workers is {workers}; it must be at least 1")
        self._scheduler, self._wanted, self._device = scheduler, workers, device
        self._tasks = tasks
        self._needs, self._checked = tuple(needs), set[str]()
        self._told: dict[Any, set[str]] = {}
        self._patience = LOCAL_PATIENCE_S if scheduler is None else PATIENCE_S
        self._stack = ExitStack()
        self._client: Client | None = None
        self._end: Thread | None = None
        self.threads: int | None = None
        self.description = "no workers yet"

    def __enter__(self) -> Dask:
        if multiprocessing.parent_process() is not None and self._scheduler is None:
            raise SettingError(
                "workers can only be started from the main program: put the call under if __name__ == '__main__':"
            )
        for name in ("distributed", "distributed.worker", "distributed.nanny", "distributed.scheduler"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        import dask
        import distributed  # noqa: F401  so that its settings are there: else all of them would go with LEAN

        with ExitStack() as stack:
            stack.enter_context(dask.config.set(LEAN))
            client = self._connect() if self._scheduler else self._start(stack)
            stack.callback(client.close)
            self._client = client
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        # Workers take seconds to end, above all those with a GPU, and whoever has their results can go on.
        self._end = Thread(target=self._stack.close, name="workers' end")
        self._end.start()
        if error is not None:
            self.wait()

    def wait(self) -> None:
        """See :meth:`Workers.wait`."""
        if self._end is not None:
            self._end.join()

    def _connect(self) -> Client:
        from distributed import Client

        address = _address(str(self._scheduler))
        try:
            client = Client(address, timeout="10s", set_as_default=False)
        except TypeError as error:
            raise WorkerError(
                f"{address}: dask has no certificates for TLS; name them in its configuration "
                f"(distributed.comm.tls, or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on) ({error})"
            ) from error
        except (OSError, ValueError) as error:
            raise WorkerError(
                f"no dask scheduler answers at {address}: start one with 'dask scheduler' and workers with "
                f"'dask worker ADDRESS', or leave --scheduler out ({error})"
            ) from error
        known = client.scheduler_info(n_workers=-1)["workers"]
        gpus = sum(1 for worker in known.values() if worker.get("resources", {}).get(GPU))
        self.description = f"{len(known)} workers at {address}" + (f", {gpus} with a GPU" if gpus else "")
        return client

    def _start(self, stack: ExitStack) -> Client:
        import dask
        from distributed import Client, Nanny, Scheduler
        from distributed.deploy.spec import SpecCluster

        gpus = self._gpus()
        count = self._wanted or len(gpus) or max(1, min(cores() // CORES_PER_WORKER, self._tasks or cores()))
        self.threads = max(1, cores() // count)
        common = {
            "nthreads": blocks_at_once(self.threads, memory() // count) if gpus else OVERLAP,
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
            "host": "127.0.0.1",
            "dashboard_address": NO_PAGE,
        }
        specs: dict[int, dict[str, Any]] = {}
        for number in range(count):
            options: dict[str, Any] = {**common, "env": {"OMP_NUM_THREADS": str(self.threads)}}
            if gpus:
                options["env"]["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
                options["resources"] = {GPU: 1}
            specs[number] = {"cls": Nanny, "options": options}
        # A memory limit of dask's would pause or kill workers by a guess; what a block takes is bounded by design.
        # A worker with a GPU has processes of its own, which those that are to end with their parent may not have.
        options = {"distributed.worker.daemon": not gpus, "distributed.worker.multiprocessing-method": method()}
        stack.enter_context(dask.config.set(options))
        cluster = stack.enter_context(
            SpecCluster(
                workers=specs,
                scheduler={
                    "cls": Scheduler,
                    "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": NO_PAGE, "dashboard": False},
                },
                silence_logs=logging.CRITICAL,
            )
        )
        kind = "GPU" if gpus else "CPU"
        self.description = f"{count} {kind} worker{'s' if count > 1 else ''}"
        return Client(cluster, set_as_default=False)

    def _gpus(self) -> list[str]:
        """Return the GPUs that local workers are bound to, as CUDA_VISIBLE_DEVICES names them."""
        if self._device == "cpu" or (self._device == "auto" and not may_have_gpu()):
            return []
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        total = nvidia_gpus() if seen is None else None
        if total is None:
            import torch

            total = torch.cuda.device_count()
        names = seen.split(",") if seen else [str(i) for i in range(total)]
        names = names[:total]
        if self._device.startswith("cuda:") and names:
            number = int(self._device.removeprefix("cuda:"))
            return names[number : number + 1]
        return names

    def listen(self, hear: Callable[[Any], None]) -> None:
        """See :meth:`Workers.listen`; the scheduler of a large cluster has better things to do."""
        if self._client is not None and self._scheduler is None:
            self._client.subscribe_topic(TOPIC, lambda event: hear(event[1]))

    def map(
        self, function: Callable[[Job, Item], Out], job: Job, items: Iterable[Item]
    ) -> Iterator[tuple[Item, Out | Exception]]:
        """Yield ``(item, result or exception)`` as they are done, with few in flight.

        A task whose worker dies is run again by the scheduler, three times at most; then the item ends in
        ``distributed.KilledWorker``.

        Raises:
            WorkerError: The connection to the scheduler is lost, no worker comes, or a worker is no good.
        """
        from distributed import as_completed

        client = self._client
        if client is None:
            raise WorkerError("the workers were not started: use 'with Dask(…) as workers'")
        resources, places, addresses = self._places(client)
        looked = monotonic()
        # A task rather than scattered data: if the worker that holds the job dies, the scheduler makes it again.
        held = client.submit(_same, job, pure=False, retries=3, resources=resources)
        self._spread(client, held, addresses)
        # One group of tasks to the scheduler, in whatever batches they come.
        name, numbers = f"{function.__name__}-{uuid.uuid4().hex}", count()
        waiting = iter(items)
        running: dict[Any, Item] = {}
        pool = as_completed(loop=client.loop)

        def refill() -> None:
            batch = list(islice(waiting, max(0, places * QUEUED - len(running))))
            if batch:
                # One message for all: a message for each costs scheduler and driver a millisecond of their one core.
                keys = [(name, number) for number in islice(numbers, len(batch))]
                futures = client.map(function, [held] * len(batch), batch, key=keys, resources=resources)
                running.update(zip((future.key for future in futures), batch, strict=True))
                pool.update(futures)

        refill()
        ready: list[Future] = []
        together = 1
        while running:
            ready += pool.next_batch(block=not ready)
            some, ready = ready[:together], ready[together:]
            results = _outcomes(client, some)
            together = _how_many(results)
            for future in some:
                future.release()
            while some:
                yield running.pop(some.pop(0).key), results.pop(0)
            if monotonic() - looked > LOOK_AGAIN_S:
                resources, places, addresses = self._places(client)
                self._spread(client, held, addresses)
                looked = monotonic()
            refill()

    def _spread(self, client: Client, held: Future, addresses: set[str]) -> None:
        """Give the job to several workers before the work begins; the others fetch it with their first block.

        The scheduler hands a task to a worker that has what it needs, however busy that one is, unless it keeps a queue
        of its own (see :data:`QUEUED`), which it does not for few tasks or for tasks that ask for a GPU.
        """
        wanted = set(sorted(addresses)[:HOLDERS])
        if wanted <= self._told.get(held.key, set()):
            return
        self._told = {held.key: wanted}
        # Beside this thread and not for long: nothing depends on it but how evenly the first blocks are shared.
        helper = Thread(target=_replicate, args=(client, held, wanted), name="spread", daemon=True)
        helper.start()
        helper.join(SPREAD_S)

    def _places(self, client: Client) -> tuple[dict[str, float] | None, int, set[str]]:
        """Return the resource that tasks ask for, how many run at once, and the workers' addresses."""
        known = client.scheduler_info(n_workers=-1)["workers"]
        if not known:
            known = self._awaited(client)
        gpus = {address: worker.get("resources", {}).get(GPU, 0) for address, worker in known.items()}
        usable = {address: worker for address, worker in known.items() if gpus[address] or not any(gpus.values())}
        if self._scheduler is not None:
            # Each is asked once; workers that join later are asked at the next look.
            muster(client, {key: worker for key, worker in usable.items() if key not in self._checked}, self._needs)
            self._checked.update(usable)
        if any(gpus.values()):
            # The blocks that a worker has threads for share its GPU, rounded down so that all of them find room.
            threads = min(worker["nthreads"] for worker in usable.values())
            share = math.floor(1e6 / threads) / 1e6
            return {GPU: share}, max(1, int(sum(gpus.values()) * threads)), set(usable)
        return None, max(1, sum(worker["nthreads"] for worker in usable.values())), set(usable)

    def _awaited(self, client: Client) -> dict[str, Any]:
        """Wait for the first worker."""
        from distributed import TimeoutError as NoWorker

        # Clusters that adapt start a worker when there is something to do, not for someone who waits.
        wish = client.submit(int, pure=False)
        try:
            client.wait_for_workers(1, timeout=self._patience)
        except (NoWorker, TimeoutError) as error:
            raise WorkerError(
                f"no worker came to {self._scheduler or 'the local cluster'} in {self._patience / 60:.0f} minutes"
                + ("; start some with 'dask worker'" if self._scheduler else "")
            ) from error
        finally:
            wish.release()
        known: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        return known


def _outcomes(client: Client, futures: list[Future]) -> list[Any]:
    """Return the results of finished tasks, fetched together, or the exceptions that they ended in."""
    if len(futures) > 1 and all(future.status == "finished" for future in futures):
        with suppress(Exception):  # one by one, below, it shows whose it is
            return list(client.gather(futures))
    return [_outcome(future) for future in futures]


def _how_many(results: list[Any]) -> int:
    """Return how many results to fetch together, going by the last ones: few large ones, many small ones."""
    largest = max(len(getattr(result, "data", b"")) for result in results)
    return max(1, min(MANY, TOGETHER_BYTES // (largest + 1)))


def _outcome(future: Future) -> Any:
    """Return a finished task's result, or the exception that it ended in."""
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except FutureCancelledError as error:
        raise WorkerError("the scheduler was lost; run the same command again to go on") from error
    except Exception as error:  # noqa: BLE001  what a task ends in is a result
        return error


def _address(given: str) -> str:
    """Return the address of a scheduler that is given by its address or by its scheduler file."""
    path = Path(given)
    if "://" in given or not (path.suffix == ".json" or path.is_file()):
        return given
    try:
        return str(json.loads(path.read_text("utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise WorkerError(
            f"{given}: cannot be read as a scheduler file ({reason}); "
            f"'dask scheduler --scheduler-file {given}' writes it"
        ) from error


def _replicate(client: Client, held: Future, addresses: set[str]) -> None:
    with suppress(Exception):  # a worker that dies meanwhile
        client.replicate([held], workers=list(addresses))


def _same(job: Job) -> Job:
    return job


def open_workers(
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    needs: Iterable[str] = (),
    tasks: int | None = None,
) -> AbstractContextManager[Workers]:
    """Return the workers that the options ask for; 0 workers means this process. Arguments as of :class:`Dask`."""
    from contextlib import nullcontext

    if workers == 0 and scheduler is None:
        return nullcontext(Here())
    return Dask(scheduler=scheduler, workers=workers, device=device, needs=needs, tasks=tasks)
