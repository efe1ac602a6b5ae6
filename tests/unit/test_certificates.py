"""The server's certificate: what is no usable pair, and when it is read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from atmosphere_grpc.certificates import CertificateError, Certificates

AUTHORITY = trustme.CA()


def write(folder: Path) -> tuple[Path, Path]:
    leaf = AUTHORITY.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder / "cert.pem", folder / "key.pem"


Private = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def key(private: Private, password: str = "") -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


EC = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cert.pem", None, "tls.cert_file = .*: cannot be read"),
        ("cert.pem", b"", "tls.cert_file = .*: holds no certificate in PEM"),
        ("key.pem", None, "tls.key_file = .*: cannot be read"),
        ("key.pem", b"x", "tls.key_file = .*: holds no private key in PEM"),
        ("key.pem", key(EC), "is not the key of the first certificate"),
        ("key.pem", key(EC, "secret"), "the key is encrypted"),
        ("key.pem", key(ed25519.Ed25519PrivateKey.generate()), "RSA and EC keys only"),
    ],
    ids=["no cert", "empty cert", "no key", "no PEM", "another key", "encrypted", "Ed25519"],
)
def test_what_is_no_pair_is_named_by_its_setting(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    pair = write(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CertificateError, match=says):
        Certificates(*pair, None)


def test_authorities_that_are_none_are_named(tmp_path: Path) -> None:
    pair = write(tmp_path)
    with pytest.raises(CertificateError, match=r"tls.client_ca_file = .*: cannot be read"):
        Certificates(*pair, tmp_path / "none")


def test_a_pair_is_given_again_only_when_it_is_another(tmp_path: Path) -> None:
    certificates = Certificates(*write(tmp_path), None)
    assert certificates.renewed() is None
    (tmp_path / "key.pem").touch()
    assert certificates.renewed() is None
    write(tmp_path)
    renewed = certificates.renewed()
    assert renewed is not None
    assert renewed == certificates.pair
    assert renewed.key not in repr(renewed).encode()
    assert certificates.renewed() is None


def test_other_authorities_are_another_pair(tmp_path: Path) -> None:
    pair, ca = write(tmp_path), tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca))
    certificates = Certificates(*pair, ca)
    trustme.CA().cert_pem.write_to_path(str(ca))
    assert certificates.renewed() is not None


@pytest.mark.parametrize(
    ("begins", "ends", "says"),
    [
        (-30, -1, "expired on"),
        (-30, 13, "expires on"),
        (1, 90, "is the clock right?"),
        (-30, 90, ""),
    ],
)
def test_a_certificate_out_of_its_time_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, begins: int, ends: int, says: str
) -> None:
    now, cert, key_pem = datetime.now(UTC), *write(tmp_path)
    held = Certificates(cert, key_pem, None)
    assert not caplog.messages
    leaf = AUTHORITY.issue_cert(
        "127.0.0.1", not_before=now + timedelta(begins), not_after=now + timedelta(ends)
    )
    leaf.cert_chain_pems[0].write_to_path(str(cert))
    leaf.private_key_pem.write_to_path(str(key_pem))
    for use in (held.renewed, lambda: Certificates(cert, key_pem, None)):
        caplog.clear()
        use()
        told = [line for line in caplog.messages if "the certificate" in line]
        assert [says in line for line in told] == [True] * bool(says)
        assert all("tls.cert_file" in line and "renew it" in line for line in told)
