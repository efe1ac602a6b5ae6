"""The metrics of several workers, read at one address.

What they count lies in files, one set a worker, which its successor goes on with: a count outlives
who counted. How things are is asked of each, and labelled by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import prometheus_client.values
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from atmosphere_grpc.telemetry import catalogue
from atmosphere_grpc.telemetry.catalogue import METRICS, Kind
from atmosphere_grpc.telemetry.endpoint import MetricsEndpoint

#: How long a worker may take to say how things are, in seconds; else it is left out.
ASK_S = 1.0
WORKER = "worker"
#: The file of a folder that is locked as long as its server lives.
LOCK = "lock"
#: How old a folder is at least that is taken for one that was left behind, in seconds.
LEFT_S = 60.0


class Gauges(Protocol):
    """A worker's answer."""

    @property
    def gauges(self) -> list[tuple[str, list[str], float]]:
        """Each gauge's name, the values of its labels, and its own value."""


class Worker(Protocol):
    """A worker, as far as it is asked."""

    number: int
    restarts: int

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""

    async def gauges(self, limit_s: float) -> Gauges | None:
        """How things are in it; None when it does not say in time."""


@contextlib.contextmanager
def metrics_folder(state_dir: Path) -> Iterator[str]:
    """A new folder for what workers count, gone with the block.

    Those go as well that servers left behind which were killed.

    Raises:
        OSError: There is no place for one.
    """
    with contextlib.ExitStack() as stack:
        prefix = "atmosphere-metrics-"
        try:
            made = tempfile.TemporaryDirectory(prefix=prefix)
        except OSError:
            state_dir.mkdir(parents=True, exist_ok=True)
            prefix = "metrics-"
            made = tempfile.TemporaryDirectory(prefix=prefix, dir=state_dir)
        stack.callback(made.cleanup)
        lock = stack.enter_context(Path(made.name, LOCK).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in Path(made.name).parent.glob(f"{prefix}*"):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)
        yield made.name


def _is_left(folder: Path) -> bool:
    """Whether a folder is one of this user's whose server is gone."""
    try:
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < LEFT_S:
            return False
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or no such folder
        return False
    return True


def count_in(folder: str, worker: int) -> None:
    """Has this process count in a folder, as a worker; before the first metric is made."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    # By its number, not its process: whoever takes its place goes on where it ended.
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(  # type: ignore[no-untyped-call]
        process_identifier=lambda: f"worker{worker}"
    )


class SharedMetrics:
    """Answers `GET /metrics` for all workers.

    Args:
        folder: Where they count.
        workers: Gives the workers.
    """

    def __init__(self, folder: str, workers: Callable[[], Sequence[Worker]]) -> None:
        self._workers = workers
        self._endpoint = MetricsEndpoint(self._rendered)
        self._asked = _Asked()
        self._metrics = CollectorRegistry()
        MultiProcessCollector(self._metrics, path=folder)  # type: ignore[no-untyped-call]
        self._metrics.register(self._asked)
        self.address = ""

    def bind(self, listen: str) -> None:
        """Takes an address, and notes the one that it got, with the real port.

        Raises:
            OSError: It cannot be had.
        """
        self.address = self._endpoint.bind(listen)

    async def start(self) -> None:
        """Answers from now on."""
        await self._endpoint.start()

    async def stop(self) -> None:
        """Gives the address back."""
        await self._endpoint.stop()

    async def _rendered(self, accept: str) -> tuple[bytes, str]:
        encode, media_type = choose_encoder(accept)
        workers = self._workers()
        answers = await asyncio.gather(*(worker.gauges(ASK_S) for worker in workers))
        self._asked.take(workers, answers)
        return await asyncio.to_thread(encode, self._metrics), media_type


class _Asked(Collector):
    """What the workers said last, labelled by worker, and what their processes use."""

    def __init__(self) -> None:
        self._families: list[Metric] = []
        self._processes: dict[str, int] = {}

    def take(self, workers: Sequence[Worker], answers: Sequence[Gauges | None]) -> None:
        """Takes over what workers said."""
        families = {
            metric.name: GaugeMetricFamily(
                metric.name, metric.help, labels=(*metric.labels, WORKER)
            )
            for metric in METRICS
            if metric.kind is Kind.STATE
        }
        item = catalogue.RESTARTS
        restarts = CounterMetricFamily(item.name, item.help, labels=item.labels)
        for worker, answer in zip(workers, answers, strict=True):
            restarts.add_metric((str(worker.number),), worker.restarts)
            for name, labels, value in answer.gauges if answer else ():
                families[name].add_metric((*labels, str(worker.number)), value)
        self._families = [*families.values(), restarts]
        self._processes = {str(item.number): item.pid for item in workers if item.pid}
        self._processes["parent"] = os.getpid()

    def collect(self) -> Iterable[Metric]:
        """What they said last."""
        yield from self._families
        yield from _merged(
            family for name, pid in self._processes.items() for family in _labelled(name, pid)
        )


def _labelled(worker: str, pid: int) -> Iterator[Metric]:
    """What a process uses, of Linux's own account, labelled by it."""
    for family in ProcessCollector(pid=lambda: pid, registry=None).collect():
        family.samples = [
            sample._replace(labels={**sample.labels, WORKER: worker}) for sample in family.samples
        ]
        yield family


def _merged(families: Iterable[Metric]) -> Iterable[Metric]:
    """Families of one name as one: a name is given once."""
    merged: dict[str, Metric] = {}
    for family in families:
        if (known := merged.setdefault(family.name, family)) is not family:
            known.samples += family.samples
    return merged.values()
