#!/usr/bin/env bash
# Five checks of a running server: health, models, an intent, an intent for one model, an
# integration. Exits with 1 when one of them fails.
#
#   examples/test_execution.sh [http://localhost:8000] [integration] [model]
#
# Without an integration and a model, the first usable one and its default are taken. A server that
# asks who calls gets ATMOSPHERE_API_KEY.
set -u

url=${1:-http://localhost:8000}
integration=${2:-}
model=${3:-}
failed=0
headers=(-H 'Content-Type: application/json')
[ -n "${ATMOSPHERE_API_KEY:-}" ] && headers+=(-H "x-api-key: $ATMOSPHERE_API_KEY")
command -v curl >/dev/null || { echo "curl is needed" >&2; exit 2; }
python=$(command -v python3 || command -v python) || { echo "python3 is needed" >&2; exit 2; }

# Reads JSON on stdin; prints what a Python expression makes of it, as `answer`.
get() {
    "$python" -c 'import json, sys; answer = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1" 2>/dev/null
}

# A string as JSON.
quoted() {
    "$python" -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$1"
}

call() { # path [body]
    curl --silent --show-error --max-time 120 "${headers[@]}" ${2:+-X POST -d "$2"} "$url$1"
}

check() { # title, condition, what to show, answer
    if [ "$(get "$2" <<<"$4")" = True ]; then
        echo "ok    $1: $(get "$3" <<<"$4")"
    else
        failed=1
        echo "FAIL  $1: ${4:-no answer from $url}"
    fi
}

check "health" 'answer["status"] == "SERVING"' 'answer["status"]' "$(call /health)"

models=$(call /v1/models)
check "models" 'len(answer["models"]) > 0' '", ".join(m["id"] for m in answer["models"][:5])' "$models"

if [ -z "$integration" ]; then
    usable='[i for i in answer["integrations"] if i["state"] == "INTEGRATION_STATE_UP" and i["default_model"]][0]'
    listed=$(call /v1/integrations)
    integration=$(get "$usable"'["id"]' <<<"$listed")
    model=${model:-$(get "$usable"'["default_model"]' <<<"$listed")}
fi

said='answer["success"] and bool(answer["data"]["message"]["content"])'
shown='"%s (%s, %.0f ms)" % (answer["data"]["message"]["content"][:60].replace("\n", " "), answer["data"]["model"], answer["execution_time_ms"])'
limits='"kwargs": {"max_tokens": 32}'
check "execute" "$said" "$shown" "$(call /v1/execute "{\"intent\": \"What is 2+2?\", $limits}")"
check "execute on $model" "$said" "$shown" \
    "$(call /v1/execute "{\"intent\": \"What is 2+2?\", \"model\": $(quoted "$model"), \"integration_id\": $(quoted "$integration"), $limits}")"
check "test of $integration" 'answer["success"]' \
    '"%s (%s, %.0f ms)" % (answer["response"][:60].replace("\n", " "), answer["model_used"], answer["latency_ms"])' \
    "$(call /v1/integrations/test "{\"integration_id\": $(quoted "$integration"), \"prompt\": \"Count to 5\", \"model\": $(quoted "$model")}")"

exit $failed
