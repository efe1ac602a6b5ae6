"""The calls of the service over HTTP: JSON by the contract's names, and OpenAI's API.

It runs in the server's process and event loop, in the same envelope and on the same servicer, so
that a call is the same whichever way it comes.
"""
