#!/usr/bin/env bash
# Prompt one integration. A backend that fails is an answer with success false.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/TestIntegration '{
  "integration_id": "embedded",
  "prompt": "Count to 5"
}'
