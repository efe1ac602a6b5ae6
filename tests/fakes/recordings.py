"""What real servers answered, byte by byte: the files of `tests/data/wire`.

A `.resp.txt` is a whole HTTP answer with its status line, headers and framing; a
`.body.txt` is a body only.
"""

from __future__ import annotations

from pathlib import Path

WIRE = Path(__file__).parent.parent / "data" / "wire"


def read(name: str | Path) -> bytes:
    """The bytes of a recording, by its name in `tests/data/wire` or its path."""
    return (WIRE / name).read_bytes()


def status(name: str | Path) -> int:
    """The HTTP status of a recorded answer."""
    return int(read(name).split(b" ", 2)[1])


def body(name: str | Path) -> bytes:
    """The body of a recorded answer, without its framing; what there is of a broken-off one."""
    data = read(name)
    if str(name).endswith(".body.txt"):
        return data
    _, payload, _ = _split(data)
    return payload


def is_whole(data: bytes) -> bool:
    """Whether an answer ends as its own framing says."""
    _, _, whole = _split(data)
    return whole


def _split(data: bytes) -> tuple[dict[str, str], bytes, bool]:
    """Headers, body without framing, and whether that is whole."""
    top, _, rest = data.partition(b"\r\n\r\n")
    pairs = (line.partition(":") for line in top.decode().split("\r\n")[1:])
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding") != "chunked":
        return headers, rest, len(rest) == int(headers.get("content-length", "-1"))
    payload = b""
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        if not (size := int(line, 16)):
            return headers, payload, True
        payload += rest[:size]
        rest = rest[size + 2 :]
    return headers, payload, False
