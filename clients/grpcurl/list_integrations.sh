#!/usr/bin/env bash
# List the integrations and how they are doing.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/ListIntegrations '{}'
