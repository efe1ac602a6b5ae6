"""The embedded default: real local models served by llama.cpp child processes.

`models` finds the model files, `convert` makes the embedding model's file, `child` is the
program a child process runs, `supervisor` keeps that process alive. Nothing is re-exported here:
the child process imports this package and must stay light.
"""
