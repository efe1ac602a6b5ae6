"""Intent → capability → integration and model: pure decisions, no I/O."""
