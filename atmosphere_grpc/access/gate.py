"""Who makes a call, by what it brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atmosphere_grpc.access.caller import Caller, Credentials, Rejected, unauthenticated
from atmosphere_grpc.access.key_file import KeyFile
from atmosphere_grpc.access.keys import PREFIX
from atmosphere_grpc.access.policy import Permit, Policy
from atmosphere_grpc.access.tokens import Tokens

UNLIMITED = Policy()


@dataclass(frozen=True, slots=True)
class Gate:
    """The ways to say who calls, and what each caller may do.

    Attributes:
        required: Whether callers must say who they are.
        keys: The API keys; None: they are not looked at.
        tokens: What checks JWTs; None: they are not looked at.
        callers: What callers may do, by their names.
        default: What others may do.
    """

    required: bool = False
    keys: KeyFile | None = None
    tokens: Tokens | None = None
    callers: Mapping[str, Policy] = field(default_factory=dict)
    default: Policy = UNLIMITED

    async def caller(self, credentials: Credentials) -> Caller:
        """Who makes a call.

        What is sent must be good, also where it is not required: a mistake is not to be taken for
        a stranger.

        Raises:
            Failure: UNAUTHENTICATED.
        """
        try:
            looked_at = self.keys is not None or self.tokens is not None
            if looked_at and (sent := _sent(credentials)) is not None:
                return await self._by(sent)
            if credentials.identities:
                return self._by_certificate(credentials.identities)
        except Rejected as error:
            raise unauthenticated(str(error)) from None
        if self.required:
            raise unauthenticated("neither a key, a token nor a certificate was sent")
        # Its port is another with each connection, which must not be a way to begin anew.
        account = f"peer:{credentials.peer.rpartition(':')[0]}"
        return Caller(credentials.peer, account, self.default, Permit(self.default))

    async def _by(self, sent: str) -> Caller:
        if sent.startswith(PREFIX):
            if self.keys is None:
                raise Rejected("API keys are not looked at")
            key = self.keys.find(sent)
            if isinstance(key, str):
                raise Rejected(key)
            return self._caller(f"key:{key.name}", key.policy)
        if self.tokens is None:
            raise Rejected("what was sent is no API key, and auth.jwt is not set")
        subject = await self.tokens.check(sent)
        return self._caller(f"jwt:{subject.name}", None, subject.scope)

    def _by_certificate(self, identities: tuple[str, ...]) -> Caller:
        names = [f"tls:{name}" for name in identities if name.isprintable()]
        if not names:
            raise Rejected("the names in the certificate are not printable")
        known = next((name for name in names if name in self.callers), names[0])
        return self._caller(known, None)

    def _caller(self, name: str, own: Policy | None, scope: Policy | None = None) -> Caller:
        policy = own or self.callers.get(name, self.default)
        permit = Permit(policy) if scope is None else Permit(policy, scope)
        return Caller(name, name, policy, permit)


def _sent(credentials: Credentials) -> str | None:
    """The key or token that was sent; None: none was.

    Raises:
        Rejected: Several were, or in a form that is not known.
    """
    sent = set(credentials.api_keys)
    for value in credentials.authorization:
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Rejected("authorization has another scheme than Bearer")
        sent.add(rest.strip())
    if len(sent) > 1:
        raise Rejected("several keys or tokens were sent")
    return sent.pop() if sent else None
