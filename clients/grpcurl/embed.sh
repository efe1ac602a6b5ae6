#!/usr/bin/env bash
# Turn texts into vectors.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/Embed '{"input": ["a cat on a mat", "a dog on a rug"]}'
