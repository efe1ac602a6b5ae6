#!/usr/bin/env bash
# Ask the server what it serves.
. "$(dirname "$0")/call.sh"

"${GRPCURL:-grpcurl}" ${GRPCURL_FLAGS:--plaintext} "$target" list
"${GRPCURL:-grpcurl}" ${GRPCURL_FLAGS:--plaintext} "$target" describe atmosphere.v1.Execution
