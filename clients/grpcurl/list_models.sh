#!/usr/bin/env bash
# List the models of all integrations.
. "$(dirname "$0")/call.sh"

call atmosphere.v1.Execution/ListModels '{"page_size": 10}'
