"""Whose call it is, for fairness between callers, and what that caller may use."""

from contextvars import ContextVar

from atmosphere_grpc.access.policy import Permit

#: The caller of the call that runs: a name, or where the call comes from; empty for none in
#: particular.
caller: ContextVar[str] = ContextVar("caller", default="")
#: What that caller may use; everything where nobody calls.
permit: ContextVar[Permit] = ContextVar("permit", default=Permit())  # noqa: B039 - never changed
