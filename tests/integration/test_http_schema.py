"""The OpenAPI document against the server: what it says is what happens, and nothing breaks."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fakes import FakeServer
from tests.integration.conftest import openai, serving

if TYPE_CHECKING:
    from pathlib import Path

CHECKS: Any = [
    not_a_server_error,
    allow_header_conformance,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
#: Requests a path and a mode: enough for each field, few enough to be run with every change.
EXAMPLES = 8
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def _send(case: Any) -> None:
    # A deadline that is too short is an honest 504.
    for name in [item for item in case.headers or () if item.lower() == "x-request-timeout"]:
        del case.headers[name]
    case.validate_response(case.call(timeout=20), checks=CHECKS)


def _attack(url: str, stopped: threading.Event) -> list[str]:
    """Sends what the document allows, and what it does not, to every path; gives what is wrong."""
    wrong: list[str] = []
    found: Any
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        for mode in MODES:
            if stopped.is_set():
                return wrong
            try:
                case = operation.as_strategy(generation_mode=mode)
                SETTINGS(hypothesis.given(case=case)(_send))()
            except hypothesis.errors.Unsatisfiable:
                pass  # there is nothing that it does not allow
            except Exception as error:  # noqa: BLE001 - all that is wrong is told at once
                wrong.append(f"{operation.label} ({mode.value}): {error}")
    return wrong


@pytest.mark.filterwarnings("default")
async def test_what_the_document_says_is_what_happens(tmp_path: Path, fake: FakeServer) -> None:
    async with serving(tmp_path, openai(fake.base_url), http={"listen": "127.0.0.1:0"}) as served:
        stopped = threading.Event()
        try:
            wrong = await asyncio.to_thread(_attack, f"http://{served.http}", stopped)
        finally:
            stopped.set()
    assert not wrong, "\n\n".join(wrong)
    generated = [request for request in fake.requests if request.method == "POST"]
    assert generated  # not all of it was refused
