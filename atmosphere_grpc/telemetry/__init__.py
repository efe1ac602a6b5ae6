"""What is told of calls and of the state of things: the access log, metrics, traces."""
