"""The server's certificate for HTTPS, with those of its callers where it asks for them."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path
from typing import Any

from atmosphere_grpc.certificates import Certificates, Pair


class Secured:
    """A TLS context that shows the certificate that is in the files when a connection begins.

    Args:
        certificates: The files.
    """

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._latest = _context_of(certificates.pair)
        #: What the listener is given.
        self.context = self._latest
        self.context.sni_callback = self._renew

    def _renew(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        if (pair := self._certificates.renewed()) is not None:
            self._latest = _context_of(pair)
        connection.context = self._latest


def _context_of(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # The library takes them from files only; this one is the owner's alone, and gone at once.
    with tempfile.TemporaryDirectory(prefix="atmosphere-") as folder:
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes(pair.key + b"\n" + pair.certificate)
        context.load_cert_chain(path)
    if pair.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pair.client_ca.decode("ascii", errors="ignore"))
    return context
