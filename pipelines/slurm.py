"""Footprints on a Slurm cluster: as many jobs as there is work for, each a dask worker.

    python pipelines/slurm.py ortho footprints --jobs 32 --cores 64 --queue compute
    python pipelines/slurm.py ortho footprints --jobs 16 --gpus --cores 16 --queue gpu
    python pipelines/slurm.py ortho footprints --gpus --show         # only print the job that would be submitted

Runs where jobs are submitted, in tmux or as a small job of its own; needs pip install 'geoseg[slurm]'. Imagery, output
folder and this Python lie on the cluster's shared file system. Jobs come and go: one that is preempted or reaches its
time costs the blocks it was at, which others take over. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import geoseg


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", help="folder, file or glob of the imagery")
    parser.add_argument("out", help="folder for the results")
    parser.add_argument("--jobs", type=int, default=8, help="Slurm jobs at most")
    parser.add_argument("--cores", type=int, default=16, help="CPU cores of a job")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each job")
    parser.add_argument("--queue", help="partition, as sbatch -p")
    parser.add_argument("--account", help="as sbatch -A")
    parser.add_argument("--walltime", default="04:00:00", help="as sbatch -t")
    parser.add_argument("--interface", help="network between the nodes, such as ib0")
    parser.add_argument("--show", action="store_true", help="print the job script and end")
    return parser.parse_args(words)


def job_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of dask_jobqueue.SLURMCluster."""
    common: dict[str, Any] = {
        "job_name": "geoseg",
        "queue": given.queue,
        "account": given.account,
        "walltime": given.walltime,
        "interface": given.interface,
    }
    # A worker that ends before its job is killed hands its work over in peace.
    leave = ["--lifetime", f"{max(60, seconds(given.walltime) - 300)}s", "--lifetime-stagger", "60s"]
    if given.gpus:
        # One worker, whose processes read and vectorise blocks while one has the GPU: as many as it has threads, which
        # a worker that dask ends with its parent may not start.
        threads = max(2, min(given.cores, 16))
        gpu: dict[str, Any] = {
            "cores": threads,
            "processes": 1,
            "job_cpu": given.cores,
            "memory": f"{16 + 2 * threads}GB",
        }
        gpu["job_script_prologue"] = ["export DASK_DISTRIBUTED__WORKER__DAEMON=False"]
        extra = {"job_extra_directives": ["--gres=gpu:1"], "worker_extra_args": ["--resources", "GPU=1", *leave]}
        return {**common, **gpu, **extra}
    # Processes of up to eight cores, which one forward pass still uses well, and 6 GB.
    processes = max(1, given.cores // 8)
    memory = f"{6 * processes}GB"
    return {**common, "cores": given.cores, "processes": processes, "memory": memory, "worker_extra_args": leave}


def seconds(walltime: str) -> int:
    """Return the seconds of HH:MM:SS, or of D-HH:MM:SS."""
    days, _, rest = walltime.rpartition("-")
    hours, minutes, rest_seconds = (int(part) for part in rest.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_seconds


def main() -> None:
    """Start the cluster, find the buildings, end the cluster."""
    from dask_jobqueue import SLURMCluster

    given = arguments()
    with SLURMCluster(**job_of(given)) as cluster:
        if given.show:
            print(cluster.job_script())
            return
        cluster.adapt(minimum_jobs=1, maximum_jobs=given.jobs)
        result = geoseg.segment(given.inputs, given.out, scheduler=cluster.scheduler_address)
    print(f"{result.buildings} buildings in {result.out}", file=sys.stderr)
    sys.exit(0 if result.complete else 1)


if __name__ == "__main__":
    main()
