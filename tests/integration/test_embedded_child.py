"""The embedded default for real: llama.cpp child processes that start, serve, die and come back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import xllamacpp

from atmosphere_grpc.embedded import child
from atmosphere_grpc.embedded.gguf_file import EmbeddedError
from atmosphere_grpc.embedded.models import (
    ModelFile,
    find_chat_model,
    find_embed_model,
)
from atmosphere_grpc.embedded.supervisor import Backoff, ChildState, LlamaServer

# Recorded from a conversion that was checked against an independent BERT (cosine 0.999999).
HELLO = [-0.0628757, 0.0548547, 0.0519623, 0.0857371, -0.0828920, -0.0745807, 0.0684499, 0.0183894]
SOON = Backoff(initial_s=0.01)
HELPER = """
import asyncio, sys
from pathlib import Path
from atmosphere_grpc.embedded.models import find_embed_model
from atmosphere_grpc.embedded.supervisor import Backoff, ChildState, LlamaServer
{body}
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def embed_model(cache: None) -> ModelFile:
    return find_embed_model(None, lambda _: None)


@pytest.fixture
async def chat() -> AsyncIterator[LlamaServer]:
    server = LlamaServer(find_chat_model(None), threads=2, n_ctx=1024)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def embed(embed_model: ModelFile) -> AsyncIterator[LlamaServer]:
    server = LlamaServer(embed_model, threads=1, backoff=SOON)
    await server.start()
    yield server
    await server.stop()


def client(server: LlamaServer) -> httpx.AsyncClient:
    assert server.address is not None
    return httpx.AsyncClient(
        base_url=server.address,
        headers={"authorization": f"Bearer {server.api_key}"},
        timeout=30,
        trust_env=False,
    )


async def embeddings(server: LlamaServer, *texts: str) -> list[list[float]]:
    async with client(server) as http:
        response = await http.post("/v1/embeddings", json={"input": texts})
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.005)


def pid_of(server: LlamaServer) -> int:
    assert server.pid is not None
    return server.pid


def orders_for(model: ModelFile, parent_pid: int) -> child.Orders:
    return child.Orders(
        model_path=str(model.path),
        alias=model.id,
        embedding=model.capability == "embed",
        mean_pooling=False,
        api_key="key",
        n_ctx=1024,
        n_parallel=2,
        threads=3,
        parent_pid=parent_pid,
    )


def is_gone(pid: int) -> bool:
    """Whether the process has ended; an orphan may stay a zombie where nobody reaps it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.asynccontextmanager
async def python(body: str, stdin: int = DEVNULL) -> AsyncIterator[Process]:
    """Another Python process that runs the body; gone when the block is left."""
    helper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HELPER.format(body=body)),
        stdin=stdin,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        async with asyncio.timeout(60):
            yield helper
    finally:
        with contextlib.suppress(ProcessLookupError):
            helper.kill()
        await helper.wait()


async def test_the_chat_model_is_listed_by_its_id_and_answers(chat: LlamaServer) -> None:
    assert (chat.state, chat.restarts, chat.last_error) == (ChildState.RUNNING, 0, "")
    async with client(chat) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        response = await http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8},
        )
    assert [model["id"] for model in listed] == ["smollm2-135m-instruct"]
    assert response.json()["choices"][0]["message"]["content"].strip()


async def test_the_key_is_asked_for_and_is_in_no_argv_and_no_environment(
    embed: LlamaServer,
) -> None:
    async with client(embed) as http:
        refused = await http.get("/v1/models", headers={"authorization": "Bearer guess"})
    assert refused.status_code == 401
    process = psutil.Process(pid_of(embed))
    assert embed.api_key not in str(process.cmdline()) + str(process.environ())


async def test_the_converted_model_embeds_as_the_original_does(embed: LlamaServer) -> None:
    (hello,) = await embeddings(embed, "hello")
    assert len(hello) == 384
    assert hello[:8] == pytest.approx(HELLO, abs=1e-4)
    assert cosine(hello, hello) == pytest.approx(1, abs=1e-5)


async def test_similar_sentences_are_closer_than_unrelated_ones(embed: LlamaServer) -> None:
    pasta, spaghetti, stocks = await embeddings(
        embed,
        "How do I cook pasta?",
        "What is the best way to boil spaghetti?",
        "The stock market fell on Tuesday.",
    )
    assert cosine(pasta, spaghetti) > 0.6
    assert cosine(pasta, stocks) < 0.2


async def test_a_text_of_512_tokens_fits_and_a_longer_one_is_refused(embed: LlamaServer) -> None:
    # [CLS] and [SEP] are counted too
    assert len(await embeddings(embed, "word " * 510)) == 1
    async with client(embed) as http:
        response = await http.post("/v1/embeddings", json={"input": "word " * 511})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "exceed_context_size_error"


async def test_a_killed_child_is_noticed_and_serves_again(embed: LlamaServer) -> None:
    seen: list[tuple[ChildState, str | None, str]] = []
    embed.on_change = lambda: seen.append((embed.state, embed.address, embed.last_error))
    before = pid_of(embed)
    os.kill(before, signal.SIGKILL)
    await until(lambda: embed.restarts == 1 and embed.state is ChildState.RUNNING)
    assert pid_of(embed) != before
    assert [state for state, _, _ in seen] == [ChildState.RESTARTING, ChildState.RUNNING]
    (_, down, reason), (_, up, _) = seen
    assert down is None
    assert up == embed.address
    assert reason.startswith(
        "the llama.cpp server for all-minilm-l6-v2 was killed by SIGKILL; restarting in 0.0 s"
    )
    assert len(await embeddings(embed, "hello")) == 1


async def test_a_failed_restart_is_tried_again(embed_model: ModelFile, tmp_path: Path) -> None:
    file, hidden = tmp_path / "model.gguf", tmp_path / "hidden.gguf"
    file.symlink_to(embed_model.path)
    server = LlamaServer(dataclasses.replace(embed_model, path=file), threads=1, backoff=SOON)
    await server.start()
    file.rename(hidden)
    os.kill(pid_of(server), signal.SIGKILL)
    await until(lambda: server.restarts >= 2)
    assert "could not load" in server.last_error
    assert str(file) in server.last_error
    hidden.rename(file)
    await until(lambda: server.state is ChildState.RUNNING)
    await server.stop()


async def test_an_on_change_hook_that_fails_does_not_end_the_supervision(
    embed: LlamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    embed.on_change = broken
    os.kill(pid_of(embed), signal.SIGKILL)
    await until(lambda: embed.restarts == 1 and embed.state is ChildState.RUNNING)
    assert "hook" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_the_whole_group_is_left_to_the_parent(
    embed: LlamaServer, number: signal.Signals
) -> None:
    os.kill(pid_of(embed), number)
    assert len(await embeddings(embed, "hello")) == 1
    assert embed.restarts == 0


async def test_stop_ends_and_reaps_the_child_and_may_be_repeated(embed_model: ModelFile) -> None:
    server = LlamaServer(embed_model, threads=1)
    await server.stop()
    await server.start()
    with pytest.raises(RuntimeError, match="already started"):
        await server.start()
    pid = pid_of(server)
    await asyncio.gather(server.stop(), server.stop())
    assert not psutil.pid_exists(pid)
    assert (server.state, server.pid, server.address) == (ChildState.STOPPED, None, None)
    await server.stop()


async def test_a_child_that_hangs_is_stopped_all_the_same(embed_model: ModelFile) -> None:
    server = LlamaServer(embed_model, threads=1)
    await server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("way", ["stop", "cancel"])
@pytest.mark.parametrize("moment", ["at once", "spawned"])
async def test_a_start_that_is_broken_off_leaves_nothing(
    embed_model: ModelFile, way: str, moment: str
) -> None:
    server = LlamaServer(embed_model, threads=1)
    children = {process.pid for process in psutil.Process().children()}
    starting = asyncio.create_task(server.start())
    if moment == "spawned":
        await until(lambda: server.pid is not None)
    else:
        await asyncio.sleep(0)  # only lets it begin
    if way == "stop":
        await server.stop()
        with pytest.raises(EmbeddedError, match="stopped while it was starting"):
            await starting
    else:
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert (server.state, server.pid) == (ChildState.STOPPED, None)
    assert {process.pid for process in psutil.Process().children()} <= children


async def test_stop_during_the_wait_before_a_restart(embed_model: ModelFile) -> None:
    server = LlamaServer(embed_model, threads=1, backoff=Backoff(initial_s=30))
    await server.start()
    os.kill(pid_of(server), signal.SIGKILL)
    await until(lambda: server.state is ChildState.RESTARTING)
    await server.stop()
    assert (server.state, server.pid) == (ChildState.STOPPED, None)


async def test_a_first_start_that_fails_tells_llama_cpps_own_reason(
    embed_model: ModelFile, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(embed_model.path.read_bytes()[:2_000_000])
    server = LlamaServer(dataclasses.replace(embed_model, path=broken), threads=1)
    with pytest.raises(EmbeddedError, match=r"could not load .*broken\.gguf: .*corrupted"):
        await server.start()
    assert (server.state, server.pid) == (ChildState.STOPPED, None)


@pytest.mark.parametrize("moment", ["server.pid", "server.address"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_child_dies_with_its_parent(loop: str, moment: str) -> None:
    """A parent killed by SIGKILL runs no clean-up: neither while loading nor while serving."""
    body = f"""
import {loop} as chosen
async def main():
    server = LlamaServer(find_embed_model(None, lambda _: None), threads=1)
    starting = asyncio.create_task(server.start())
    while not {moment}: await asyncio.sleep(0)
    print(server.pid, flush=True)
    await asyncio.Event().wait()
chosen.run(main())
"""
    async with python(body) as helper:
        assert helper.stdout is not None
        pid = int(await helper.stdout.readline())
        assert not is_gone(pid)
        helper.kill()
        await until(lambda: is_gone(pid))


# The death signal is Linux's; elsewhere the closed stdin is all there is.
@pytest.mark.parametrize("held", ["parent", "stdin"] if sys.platform == "linux" else ["parent"])
async def test_either_a_dead_parent_or_a_closed_stdin_ends_the_child(
    embed_model: ModelFile, held: str
) -> None:
    """Each alone: native code that loads a model keeps the thread that watches stdin waiting."""
    body = """
import os, subprocess
subprocess.Popen([sys.executable, "-P", "-m", "atmosphere_grpc.embedded.child"], stdin=0)
print(os.getpid(), flush=True)
asyncio.run(asyncio.Event().wait())
"""
    theirs, ours = os.pipe()
    async with python(body, stdin=theirs) as helper:
        os.close(theirs)
        assert helper.stdout is not None
        parent = int(await helper.stdout.readline())
        os.write(ours, json.dumps(orders_for(embed_model, parent)).encode() + b"\n")
        assert b"address" in await helper.stdout.readline()
        (process,) = psutil.Process(parent).children()
        if held == "parent":
            os.close(ours)
        else:
            helper.kill()
        await until(lambda: is_gone(process.pid))
    if held == "stdin":
        os.close(ours)


async def test_it_works_under_uvloop() -> None:
    body = """
import os, signal, uvloop
async def main():
    model = find_embed_model(None, lambda _: None)
    server = LlamaServer(model, threads=1, backoff=Backoff(initial_s=0.01))
    states, running = [], asyncio.Event()
    def changed():
        states.append(server.state.value)
        if server.state is ChildState.RUNNING: running.set()
    server.on_change = changed
    await server.start()
    running.clear()
    os.kill(server.pid, signal.SIGKILL)
    await running.wait()
    await server.stop()
    print(*states)
uvloop.run(main())
"""
    async with python(body) as helper:
        output, _ = await helper.communicate()
    assert output.decode().split() == "starting running restarting running stopped".split()


async def test_two_processes_may_convert_into_one_empty_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, embed_model: ModelFile
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    body = "print(find_embed_model(None, lambda _: None).path)"
    async with python(body) as one, python(body) as other:
        outputs = await asyncio.gather(one.communicate(), other.communicate())
    (file,) = (tmp_path / "atmosphere-grpc").iterdir()
    assert [Path(output.decode().strip()) for output, _ in outputs] == [file, file]
    assert file.read_bytes() == embed_model.path.read_bytes()


def test_the_child_serves_loopback_only_and_bounds_its_prompt_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama.cpp's own bound is 8 GiB of finished prompts, 16 MiB each."""
    monkeypatch.setattr(xllamacpp, "Server", lambda params: params)
    params = child._serve(orders_for(find_chat_model(None), parent_pid=1))
    assert (params.hostnames, params.port, params.api_keys) == (["127.0.0.1"], 0, ["key"])
    assert (params.ui, params.n_ctx, params.n_parallel) == (False, 1024, 2)
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (3, 3)
    assert params.cache_ram_mib == 128


def test_the_wait_before_a_restart_doubles_up_to_its_cap() -> None:
    steady = Backoff(jitter=0)
    assert [steady.delay_s(n) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert steady.delay_s(10_000) == 30
    assert all(0.4 <= Backoff().delay_s(1) <= 0.6 for _ in range(100))
