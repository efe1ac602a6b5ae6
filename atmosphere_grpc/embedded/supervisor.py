"""Keeping one llama.cpp server child process alive: start, notice death, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import random
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from atmosphere_grpc.embedded.child import Orders
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.embedded.models import ModelFile

logger = logging.getLogger(__name__)

_LOAD_TIMEOUT_S = 60.0
_LINE_CHARS = 500  # of the child's log: longer lines are cut
#: What a child is given of the environment: what finds libraries, and what tunes them.
_NEEDED = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR XDG_CACHE_HOME VIRTUAL_ENV LD_LIBRARY_PATH "
    "LD_PRELOAD".split()
)
_NEEDED_PREFIXES = (
    *("LC_", "PYTHON", "DYLD_", "OMP_", "GOMP_", "KMP_", "GGML_", "OPENBLAS_", "MKL_"),
    *("CUDA_", "HIP_", "HSA_", "ROCR_", "VK_", "SYCL_", "ONEAPI_"),
)
_SIGNALS = {number.value: number.name for number in signal.Signals}


class ChildState(enum.Enum):
    """Where the child process is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart.

    Attributes:
        initial_s: Seconds before the first restart; doubled for each failure in a row.
        cap_s: The longest wait, seconds.
        jitter: The share a wait varies by at random, so that servers do not march in step.
        healthy_s: A run of this many seconds ends the row of failures.
    """

    initial_s: float = 0.5
    cap_s: float = 30.0
    jitter: float = 0.2
    healthy_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 or more)."""
        wait = self.initial_s * 2.0 ** min(failures - 1, 32)
        spread = random.uniform(-self.jitter, self.jitter)  # noqa: S311 – not a secret
        return min(self.cap_s, wait * (1 + spread))


class LlamaServer:
    """One llama.cpp server in a child process, restarted whenever it dies.

    Start it from the main thread: on Linux the child dies with the *thread* that spawned it.

    Args:
        model: What to serve.
        threads: CPU threads the child computes with.
        n_ctx: Context in tokens, shared by the slots (embedding models: 512 tokens a slot).
        n_parallel: Slots, that is requests computed at once; further ones queue in the child.
        backoff: The waits before restarts; by default 0.5 s doubling to 30 s.

    Attributes (to read, but for `on_change`):
        model: What is served.
        api_key: The bearer token the child asks for; known to this process and the child only.
        state: Where the child is in its life.
        address: The base URL, `http://127.0.0.1:41234`; None while down, another after a restart.
        last_error: The latest problem in plain words, kept after recovery; empty if none.
        restarts: How often a child was started in place of one that died.
        on_change: Called after each change of `state`, in the event loop; must not block.
    """

    def __init__(
        self,
        model: ModelFile,
        *,
        threads: int,
        n_ctx: int = 8192,
        n_parallel: int = 2,
        backoff: Backoff | None = None,
    ) -> None:
        self.model = model
        self.api_key = secrets.token_urlsafe(32)
        self.state = ChildState.STOPPED
        self.address: str | None = None
        self.last_error = ""
        self.restarts = 0
        self.on_change: Callable[[], None] | None = None
        self._orders = Orders(
            model_path=str(model.path),
            alias=model.id,
            embedding=model.capability == "embed",
            mean_pooling=model.capability == "embed" and not model.states_pooling,
            api_key=self.api_key,
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            threads=threads,
            parent_pid=0,  # known when it is started: this object may be made before a fork
        )
        self._name = f"the llama.cpp server for {model.id}"
        self._backoff = backoff or Backoff()
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is no child."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the child and waits until its model is loaded and served.

        Raises:
            EmbeddedError: The model could not be served, or `stop` was called meanwhile; no
                process is left. There is no retry: what fails the first time is a set-up error.
            RuntimeError: It is started already.
        """
        if self._task is not None and not self._task.done():
            raise RuntimeError(f"{self._name} is already started")
        self._stopping = False
        self._orders["parent_pid"] = os.getpid()
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._task = asyncio.create_task(self._supervise(loaded), name=self._name)
        try:
            await asyncio.wait({loaded, task}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if task.cancelled():
            raise EmbeddedError(f"{self._name} was stopped while it was starting")
        if task.done():
            task.result()

    async def stop(self) -> None:
        """Kills the child and reaps it; harmless at any time."""
        if (task := self._task) is None:
            return
        if not self._stopping:  # a second cancellation would interrupt the clean-up of the first
            self._stopping = True
            task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # `start` has reported it
        if self._process is not None:  # the clean-up itself was cancelled after its SIGKILL
            await self._process.wait()
            self._process = None
        self._become(ChildState.STOPPED)  # a task cancelled before its first step did not say so

    async def _supervise(self, loaded: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        self._become(ChildState.STARTING)
        try:
            while True:
                ran_s = 0.0
                try:
                    async with self._child() as (process, drained):
                        self.address = await self._load(process, drained)
                        since = loop.time()
                        logger.info("%s is ready at %s", self._name, self.address)
                        self._become(ChildState.RUNNING)
                        if not loaded.done():
                            loaded.set_result(None)
                        problem = f"{self._name} {_ending(await process.wait())}"
                        ran_s = loop.time() - since
                except EmbeddedError as error:
                    self.last_error = problem = str(error)
                    if not loaded.done():
                        raise
                failures = 1 if ran_s >= self._backoff.healthy_s else failures + 1
                delay_s = self._backoff.delay_s(failures)
                self.last_error = f"{problem}; restarting in {delay_s:.1f} s"
                logger.warning("%s", self.last_error)
                self._become(ChildState.RESTARTING)
                await asyncio.sleep(delay_s)
                self.restarts += 1
        finally:
            self._become(ChildState.STOPPED)

    @contextlib.asynccontextmanager
    async def _child(self) -> AsyncIterator[tuple[Process, asyncio.Task[str]]]:
        """Spawns a child and drains its stderr; however the block is left, the child is dead."""
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                # -P: a file in the working directory must not stand in for a standard module.
                sys.executable, "-P", "-m", "atmosphere_grpc.embedded.child",
                stdin=PIPE, stdout=PIPE, stderr=PIPE,
                # The child finds what this process finds, however that came to be importable.
                env={**_environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        )  # fmt: skip
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await _end(await spawning)  # left half-made, it would be killed but not reaped
            raise
        except OSError as error:
            raise EmbeddedError(f"{self._name} could not be started: {error}") from None
        self._process = process
        drained = asyncio.create_task(self._drain(cast(asyncio.StreamReader, process.stderr)))
        try:
            yield process, drained
        finally:
            self.address = None
            await _end(process)
            await asyncio.wait({drained}, timeout=1)  # its last words
            drained.cancel()
            self._process = None

    async def _load(self, process: Process, drained: asyncio.Task[str]) -> str:
        """Sends the orders and returns the address the child answers with.

        Raises:
            EmbeddedError: The child answered with an error, died, or took too long.
        """
        stdin = cast(asyncio.StreamWriter, process.stdin)
        stdout = cast(asyncio.StreamReader, process.stdout)
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                # Broken by a child that died at once (uvloop: RuntimeError); its status says why.
                with contextlib.suppress(ConnectionError, RuntimeError):
                    stdin.write(json.dumps(self._orders).encode() + b"\n")
                    await stdin.drain()
                answer = await stdout.readline()
                if not answer.endswith(b"\n"):
                    ending = _ending(await process.wait())
                    raise EmbeddedError(f"{self._name} {ending} while loading {self.model.path}")
        except TimeoutError:
            raise EmbeddedError(
                f"{self._name} did not load {self.model.path} within {_LOAD_TIMEOUT_S:.0f} s – "
                "use a smaller model, or give it more memory"
            ) from None
        reply: dict[str, str] = json.loads(answer)
        if "error" in reply:
            reason = await drained or reply["error"]
            raise EmbeddedError(
                f"{self._name} could not load {self.model.path}: {reason} – "
                "check that this llama.cpp supports the model and that there is memory for it"
            )
        return reply["address"]

    async def _drain(self, stderr: asyncio.StreamReader) -> str:
        """Reads the child's stderr, so that it can neither block the child nor reach a terminal.

        Returns:
            The first error llama.cpp logged, `0.00.046.302 E where: what`, less its time.
        """
        first_error, rest = "", b""
        while chunk := await stderr.read(1 << 16):
            *lines, rest = (rest[-_LINE_CHARS:] + chunk).split(b"\n")
            for line in lines:
                text = line[:_LINE_CHARS].decode(errors="replace")
                first_error = first_error or text.partition(" E ")[2].strip()
                logger.debug("%s: %s", self.model.id, text)
        return first_error

    def _become(self, state: ChildState) -> None:
        if state is self.state:
            return
        self.state = state
        try:
            if self.on_change is not None:
                self.on_change()
        except Exception:
            logger.exception("the on_change hook of %s failed", self._name)


def _environment() -> dict[str, str]:
    """What a child needs of the environment: the secrets in it are none of its business."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _NEEDED or name.startswith(_NEEDED_PREFIXES)
    }


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {_SIGNALS.get(-status, f'signal {-status}')}"


async def _end(process: Process) -> None:
    """Kills and reaps a process: it has nothing to save, and heeds no other signal."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
