"""What may be shown of an endpoint, and what its headers mean."""

from __future__ import annotations

import pytest

from atmosphere_grpc.backends.wire import Endpoint, WireSettings, _retry_after_s
from atmosphere_grpc.errors import Reason


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://localhost:8080/v1", "localhost:8080"),
        ("http://localhost/v1", "localhost:80"),
        ("https://api.test/v1/", "api.test:443"),
        ("http://user:pass@10.0.0.1:9/v1?key=k", "10.0.0.1:9"),
        ("http://[::1]:8080/v1", "[::1]:8080"),
    ],
)
def test_of_an_endpoint_its_host_and_port_are_shown(base_url: str, address: str) -> None:
    assert Endpoint(WireSettings("x", base_url)).address == address


def test_headers_which_may_hold_secrets_are_not_shown() -> None:
    settings = WireSettings("x", "http://h/v1", headers={"authorization": "Bearer hush"})
    assert "hush" not in repr(settings)


def test_a_failure_names_the_integration_the_address_and_what_to_do() -> None:
    endpoint = Endpoint(WireSettings("mine", "http://h:1/v1", hint="start it"))
    unavailable = endpoint.unavailable("connection refused", detail="errno 111")
    assert unavailable.message == 'integration "mine": connection refused at h:1 – start it'
    assert unavailable.detail == "errno 111"
    assert (unavailable.reason, unavailable.retry_delay_s) == (Reason.BACKEND_UNAVAILABLE, 1.0)
    assert endpoint.contract("odd").reason is Reason.BACKEND_CONTRACT
    assert endpoint.truncated("it ended").reason is Reason.STREAM_TRUNCATED


def test_without_a_hint_there_is_no_dash() -> None:
    endpoint = Endpoint(WireSettings("mine", "http://h:1/v1"))
    assert endpoint.unavailable("refused").message == 'integration "mine": refused at h:1'


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("999999", 3600.0),
        ("1" * 400, 3600.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_and_at_most_an_hour(value: str, seconds: float | None) -> None:
    assert _retry_after_s({"retry-after": value}) == seconds
    assert _retry_after_s({}) is None
