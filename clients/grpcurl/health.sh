#!/usr/bin/env bash
# Ask whether the service can answer; exit status 0 whatever it says.
. "$(dirname "$0")/call.sh"

call grpc.health.v1.Health/Check '{"service": "atmosphere.v1.Execution"}'
