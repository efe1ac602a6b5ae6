# What the transcripts share: where the server is, and how grpcurl is called.
#
#   ATMOSPHERE_TARGET  the server [127.0.0.1:50051]
#   GRPCURL            the command [grpcurl]
#   GRPCURL_FLAGS      its flags [-plaintext]
set -euo pipefail
target="${ATMOSPHERE_TARGET:-127.0.0.1:50051}"

call() { # METHOD JSON
	# shellcheck disable=SC2086  # the flags are words
	"${GRPCURL:-grpcurl}" ${GRPCURL_FLAGS:--plaintext} -emit-defaults -d "$2" "$target" "$1"
}
