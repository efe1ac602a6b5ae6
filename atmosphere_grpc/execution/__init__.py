"""Carries a decision out: within its time, attempt by attempt, told exactly."""
