#!/usr/bin/env bash
# Continue a conversation; the answer streams in, event by event.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/Chat '{
  "messages": [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Name three colours."}
  ],
  "sampling": {"temperature": 0, "max_tokens": 32}
}'
