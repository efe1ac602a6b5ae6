"""What is done around every call, whichever way it came: gRPC or HTTP."""
