"""Atmosphere's execution layer as a gRPC service."""
