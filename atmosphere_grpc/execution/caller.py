"""Whose call it is, for fairness between callers."""

from contextvars import ContextVar

#: The caller of the call that runs; empty for none in particular.
caller: ContextVar[str] = ContextVar("caller", default="")
