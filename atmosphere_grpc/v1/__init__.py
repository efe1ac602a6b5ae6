"""Generated from protos/atmosphere_grpc/v1 by `make proto`."""
