"""Writes what a proxy needs to turn JSON into calls: the service's descriptors, and all they name.

Those of the details of errors are among them, so that they can be shown as JSON too.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import any_pb2, descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

from atmosphere_grpc.v1 import execution_pb2

TARGET = Path(__file__).parent.parent / "deploy" / "envoy" / "atmosphere.binpb"


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The files, each after those that it imports."""
    ordered: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        ordered.setdefault(file.name, file)

    for module in (any_pb2, error_details_pb2, status_pb2, execution_pb2):
        add(module.DESCRIPTOR)
    made = descriptor_pb2.FileDescriptorSet()
    for file in ordered.values():
        file.CopyToProto(made.file.add())  # type: ignore[no-untyped-call, unused-ignore]
    return made


def main() -> None:
    """Writes the file."""
    TARGET.write_bytes(descriptors().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
