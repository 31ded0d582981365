"""Several processes that share each batch: torch's own launcher and its distributed data parallelism."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geoseg import errors
from geoseg.errors import SettingError, TrainingError
from geoseg.predict import choose_device


@dataclass(frozen=True)
class Team:
    """The processes of a run, and which one this is."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
            value /= self.world
        return value

    def wrap(self, net: nn.Module, device: torch.device) -> nn.Module:
        """Return a network whose gradients are averaged over the processes."""
        if self.world == 1:
            return net
        if device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            return nn.parallel.DistributedDataParallel(net, device_ids=[device.index])
        return nn.parallel.DistributedDataParallel(net)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


def launched() -> bool:
    """Say whether this process was started by torchrun or by :func:`launch`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(processes: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``work(*arguments)`` in several processes of this machine, as torchrun would; return what each returned.

    Raises:
        TrainingError: One of them failed.
        KeyboardInterrupt: It was interrupted.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="geoseg",
        max_restarts=0,
    )
    try:
        with _quiet():
            returned: dict[int, Any] = elastic_launch(config, work)(*arguments)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(f"process {rank} of {processes} failed: {_told(failure)}") from error
    return [returned[rank] for rank in sorted(returned)]


def _told(failure: Any) -> str:
    """Return what a process said when it failed; of geoseg's own errors the message, of others all."""
    said = failure.error_file_data.get("message")
    if not isinstance(said, dict):
        return str(failure.message)
    kind, _, words = str(said.get("message")).partition(": ")
    if issubclass(getattr(errors, kind, object), errors.GeosegError):
        return words
    return str(said.get("extraInfo", {}).get("py_callstack") or said.get("message")).strip()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's launcher from logging what the error says, too."""
    names = ("elastic.multiprocessing.api", "elastic.agent.server.api")
    loggers = [logging.getLogger(f"torch.distributed.{name}") for name in names]
    loggers.append(logging.getLogger("torch.multiprocessing.spawn"))
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def team(device: str) -> Iterator[tuple[Team, torch.device]]:
    """Join the other processes, when there are any; yield the team and this process's device."""
    if not launched():
        yield Team(), choose_device(device)
        return
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    local = int(os.environ.get("LOCAL_RANK", rank))
    kind = choose_device(device).type
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise SettingError(f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}")
    chosen = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        # What names no device (barriers, say) would otherwise all meet on the first one.
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Team(rank, world), chosen
    finally:
        dist.destroy_process_group()
