"""The program of one child process: a llama.cpp HTTP server that cannot outlive its parent.

Run as `python -m atmosphere_grpc.embedded.child`. It reads one JSON line (`Orders`) from stdin,
answers with one JSON line on stdout, `{"address": "http://127.0.0.1:PORT"}` or
`{"error": "…"}`, and then serves until it is killed or its stdin closes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any, NoReturn, TypedDict

_PR_SET_PDEATHSIG = 1
_EMBED_TOKENS = 512
_CHAT_CACHE_MIB = 128
_HTTP_THREADS = 64
_VERBOSITY_ERRORS = 1


class Orders(TypedDict):
    """What the parent wants served; sent over stdin so that the key is in no argv or environ.

    `n_ctx` is the chat context in tokens, shared by the `n_parallel` slots; embedding models get
    512 tokens a slot instead. `mean_pooling` is for embedding models whose file names no pooling.
    """

    model_path: str
    alias: str
    embedding: bool
    mean_pooling: bool
    api_key: str
    n_ctx: int
    n_parallel: int
    threads: int
    parent_pid: int


def main() -> NoReturn:
    """Serves until killed; exits 1 when the model cannot be loaded."""
    die_with_parent()
    # Ctrl-C reaches the whole terminal group, and a service manager's SIGTERM the whole control
    # group: when to stop is the parent's decision, which may have calls to finish first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The answer gets the real stdout; whatever native code prints goes to stderr, which is a pipe.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    orders: Orders = json.loads(line)
    if os.getppid() != orders["parent_pid"]:
        os._exit(0)  # the parent died before the death signal was asked for
    watcher = threading.Thread(target=_exit_at_end_of_stdin, daemon=True)
    watcher.start()

    try:
        server = _serve(orders)
    except Exception as error:  # noqa: BLE001 – whatever it is, the parent makes a sentence of it
        print(json.dumps({"error": str(error)}), file=answer, flush=True)
        os._exit(1)
    print(json.dumps({"address": server.listening_address}), file=answer, flush=True)
    answer.close()
    watcher.join()
    os._exit(0)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _exit_at_end_of_stdin() -> None:
    """Where there is no death signal, a parent that is gone shows as the end of stdin."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _serve(orders: Orders) -> Any:
    """Loads the model and starts its HTTP server on a free loopback port.

    Returns:
        The `xllamacpp.Server`; it serves for as long as it is referenced.
    """
    # Not a top-level import: a missing or broken library must be answered, not printed.
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = orders["model_path"]
    params.model_alias = {orders["alias"]}  # else the file's path is shown as the model's id
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [orders["api_key"]]
    params.ui = False
    params.verbosity = _VERBOSITY_ERRORS
    # Each waiting request holds one, and a probe needs one too; by default there are a few.
    params.n_threads_http = _HTTP_THREADS
    params.n_parallel = orders["n_parallel"]
    params.cpuparams.n_threads = orders["threads"]
    params.cpuparams_batch.n_threads = orders["threads"]
    if orders["embedding"]:
        # A text must fit into one physical batch, and every slot may hold a full one.
        tokens = _EMBED_TOKENS * orders["n_parallel"]
        params.embedding = True
        params.n_ctx = params.n_batch = params.n_ubatch = tokens
        if orders["mean_pooling"]:
            params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    else:
        params.n_ctx = orders["n_ctx"]
        # Finished prompts are kept in memory up to this; the default is 8 GiB, 16 MiB a prompt of
        # 700 tokens.
        params.cache_ram_mib = _CHAT_CACHE_MIB
    return llama.Server(params)


if __name__ == "__main__":
    main()
