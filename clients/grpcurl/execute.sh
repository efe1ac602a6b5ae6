#!/usr/bin/env bash
# Route an intent to a capability, run it, and say what happened.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/Execute '{
  "intent": "What is 2+2?",
  "kwargs": {"temperature": 0, "max_tokens": 32}
}'
