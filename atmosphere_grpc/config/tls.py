"""The settings of the server's own certificate, and of those of its callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from atmosphere_grpc.config.section import Section


class ServerTls(Section):
    """What the server shows to its callers, and demands of them."""

    cert_file: Path | None = Field(
        None,
        description="The server's certificate, then those that lead to its authority, as PEM. "
        "Files are read again when they change. Unset: plaintext.",
    )
    key_file: Path | None = Field(None, description="Its private key, as PEM, not encrypted.")
    client_ca_file: Path | None = Field(
        None, description="The authorities of the callers' certificates, as PEM."
    )
    client_auth: Literal["none", "require"] = Field(
        "none",
        description="`require`: a caller without a certificate of `client_ca_file` gets no "
        "connection, and is known by the name in it.",
    )

    @field_validator("client_auth", mode="before")
    @classmethod
    def _all_or_none(cls, value: Any) -> Any:
        if value == "optional":
            raise ValueError(
                "gRPC asks for no certificate that it does not demand; choose require, or none "
                "with API keys or tokens"
            )
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together; give both or neither")
        if self.client_auth == "require" and self.client_ca_file is None:
            raise ValueError("client_auth: require needs client_ca_file, whom to trust")
        if self.client_auth == "require" and not self.enabled:
            raise ValueError("client_auth: require needs cert_file and key_file")
        if self.client_auth == "none" and self.client_ca_file is not None:
            raise ValueError("client_ca_file has no use without client_auth: require")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the server speaks TLS."""
        return self.cert_file is not None
