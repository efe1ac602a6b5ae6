"""The server's certificate and key, read again when their files change."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from atmosphere_grpc.watch import Watch

log = logging.getLogger(__name__)

#: How long before its end a certificate is warned about.
SOON = timedelta(days=14)


class CertificateError(Exception):
    """A certificate or key cannot be used; the text names the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a server shows, as PEM, and whose certificates it accepts; None: it asks for none."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


class Certificates:
    """The pair in some files.

    Args:
        cert_file: The certificate, and those that lead to its authority.
        key_file: Its key.
        client_ca_file: The authorities of the callers' certificates; None: none are asked for.

    Raises:
        CertificateError: They cannot be used.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        self._files = (cert_file, key_file, client_ca_file)
        self._watch = Watch(path for path in self._files if path is not None)
        self._lock = threading.Lock()
        self._trouble = ""
        self._watch.changed()
        self._pair = read(*self._files)
        _warn_of_its_time(cert_file, self._pair)

    @property
    def pair(self) -> Pair:
        """The last one that could be used."""
        return self._pair

    def renewed(self) -> Pair | None:
        """The pair, if it is another one than at the call before; None: it is not.

        May be called by any thread. Files that do not fit together, as when only one of them is
        written yet, leave the pair as it was; the log says why.
        """
        with self._lock:
            if not self._watch.changed():
                return None
            try:
                pair = read(*self._files)
            except CertificateError as error:
                if str(error) != self._trouble:
                    log.error("%s – the certificate from before goes on", error)
                self._trouble = str(error)
                return None
            self._trouble = ""
            if pair == self._pair:
                return None
            self._pair = pair
            log.info("the server's certificate was read anew")
            _warn_of_its_time(self._files[0], pair)
            return pair


def read(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> Pair:
    """The pair in some files.

    Raises:
        CertificateError: It cannot be used.
    """
    certificate = _content("tls.cert_file", cert_file)
    key = _content("tls.key_file", key_file)
    chain = _certificates("tls.cert_file", cert_file, certificate)
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise CertificateError(
            f"tls.key_file = {key_file}: the key is encrypted; give one that is not, which only "
            "the server may read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"tls.key_file = {key_file}: holds no private key in PEM") from None
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CertificateError(f"tls.key_file = {key_file}: gRPC knows RSA and EC keys only")
    if private.public_key() != chain[0].public_key():
        raise CertificateError(
            f"tls.key_file = {key_file}: is not the key of the first certificate in {cert_file}"
        )
    if client_ca_file is None:
        return Pair(certificate, key)
    client_ca = _content("tls.client_ca_file", client_ca_file)
    _certificates("tls.client_ca_file", client_ca_file, client_ca)
    return Pair(certificate, key, client_ca)


def _warn_of_its_time(cert_file: Path, pair: Pair) -> None:
    """Says so in the log when callers do not accept a certificate any longer, or soon will not."""
    now = datetime.now(UTC)
    for certificate in x509.load_pem_x509_certificates(pair.certificate):
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if ends <= now:
            what = f"expired on {ends:%Y-%m-%d %H:%M} UTC, and callers refuse it"
        elif ends - now < SOON:
            what = f"expires on {ends:%Y-%m-%d %H:%M} UTC"
        elif begins > now:
            what = f"is valid from {begins:%Y-%m-%d %H:%M} UTC on only: is the clock right?"
        else:
            continue
        name = certificate.subject.rfc4514_string() or f"no. {certificate.serial_number:x}"
        log.warning(
            "tls.cert_file = %s: the certificate %s %s – renew it; no restart is needed",
            cert_file,
            name,
            what,
        )


def _content(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{setting} = {path}: cannot be read ({error.strerror})") from None


def _certificates(setting: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise CertificateError(f"{setting} = {path}: holds no certificate in PEM") from None
