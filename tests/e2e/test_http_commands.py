"""The HTTP API of the installed command, by curl and by the example."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest

from tests.e2e.processes import COMMAND, Finished, Serving, run, serving

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "test_execution.sh"
NOWHERE = "integrations: [{id: far, base_urls: ['http://127.0.0.1:1/v1']}]\n"

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def url(server: Serving, host: str = "localhost") -> str:
    return f"http://{host}:{server.http.rpartition(':')[2]}"


def curl(*words: str) -> Finished:
    return run(["curl", "--silent", "--show-error", "--max-time", "80", *words], no_proxy="*")


def documented(document: str, path: str) -> list[str]:
    """The words of a call that a document shows, with its line breaks."""
    text = (ROOT / document).read_text()
    found = re.search(rf"^curl -X POST http://localhost:8000{path}.*$", text, re.MULTILINE)
    assert found is not None, path
    import shlex

    return shlex.split(found[0])[1:]


def here(words: list[str], server: Serving) -> list[str]:
    return [word.replace("http://localhost:8000", url(server)) for word in words]


def test_the_documented_calls_work_as_they_stand(embedded: Serving) -> None:
    done = curl(*here(documented("README.md", "/v1/execute"), embedded))
    answer = json.loads(done.out)
    assert answer["success"] is True
    assert set(answer) >= {"success", "data", "execution_time_ms", "node_id", "capability"}
    assert answer["data"]["message"]["role"] == "assistant"
    assert answer["data"]["message"]["content"]
    assert answer["data"]["usage"]["completion_tokens"] > 0
    assert answer["capability"] == "chat"
    words = here(documented("README.md", "/v1/integrations/test"), embedded)
    answer = json.loads(curl(*words).out)
    assert answer["success"] is True
    assert answer["response"]
    assert answer["model_used"] == "smollm2-135m-instruct"
    assert answer["latency_ms"] > 0


def test_a_call_for_what_is_not_there_says_what_is(embedded: Serving) -> None:
    words = here(documented("docs/http.md", "/v1/integrations/test"), embedded)
    answer = json.loads(curl(*words).out)
    assert (answer["success"], answer["reason"]) == (False, "INTEGRATION_NOT_FOUND")
    assert "embedded" in answer["error"]


def test_a_stream_comes_piece_by_piece(embedded: Serving) -> None:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "stream": True,
    }
    kind = "Content-Type: application/json"
    path = f"{url(embedded)}/v1/chat/completions"
    done = curl("--no-buffer", "-H", kind, "-d", json.dumps(body), path)
    events = [line for line in done.out.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    assert len(events) > 3


def test_the_example_passes_where_all_is_well(embedded: Serving) -> None:
    done = run([str(EXAMPLE), url(embedded)])
    assert done.status == 0, done.out + done.err
    assert len(re.findall(r"^ok ", done.out, re.MULTILINE)) == 5
    assert not done.err


def test_the_example_fails_where_something_does(tmp_path: Path) -> None:
    config = tmp_path / "atmosphere.yaml"
    config.write_text(NOWHERE)
    with serving(tmp_path, "--config", str(config)) as server:
        done = run([str(EXAMPLE), url(server)])
    assert done.status == 1
    assert len(re.findall(r"^FAIL ", done.out, re.MULTILINE)) == 5
    assert run([str(EXAMPLE), "http://127.0.0.1:1"]).status == 1


def test_a_taken_port_names_the_setting(tmp_path: Path) -> None:
    config = tmp_path / "atmosphere.yaml"
    config.write_text(NOWHERE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [COMMAND, "serve", "--listen", "127.0.0.1:0", "--http", address]
        done = run([*command, "--config", str(config)], ATMOSPHERE_STATE_DIR=str(tmp_path))
    assert done.status == 2
    assert f"http.listen: cannot listen on {address}" in done.err
    assert "--http" in done.err


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    config = tmp_path / "atmosphere.yaml"
    config.write_text(NOWHERE + "http: {enabled: false}\n")
    with serving(tmp_path, "--config", str(config)) as server:
        assert "http=" not in server.ready_line


def test_the_log_holds_nothing_of_what_was_said(tmp_path: Path) -> None:
    config = tmp_path / "atmosphere.yaml"
    config.write_text(NOWHERE)
    kind = "Content-Type: application/json"
    with serving(tmp_path, "--config", str(config)) as server:
        body = '{"intent": "a prompt that is private"}'
        curl("-H", kind, "-d", body, f"{url(server)}/v1/execute")
        curl("-H", kind, "-d", body[:-4], f"{url(server)}/v1/execute")
        done = server.stop()
    lines = [json.loads(line) for line in done.err.splitlines()]
    calls = [(item["method"], item["code"]) for item in lines if item["message"] == "call"]
    assert calls == [("Execute", "UNAVAILABLE"), ("Execute", "INVALID_ARGUMENT")]
    assert "private" not in done.err
