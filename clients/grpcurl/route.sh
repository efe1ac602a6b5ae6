#!/usr/bin/env bash
# Say what Execute would do, and call no model.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/Route '{"intent": "What is 2+2?"}'
