"""What holds for the vectors of every dialect."""

from __future__ import annotations

from collections.abc import Sequence

from atmosphere_grpc.backends.wire import Endpoint
from atmosphere_grpc.domain import EmbedCall
from atmosphere_grpc.errors import Failure, Reason, Violation


def check_vectors(endpoint: Endpoint, call: EmbedCall, vectors: Sequence[Sequence[float]]) -> None:
    """That there is one vector a text, and that they have one length: that asked for, if any.

    Raises:
        Failure: BACKEND_CONTRACT, or UNSUPPORTED_PARAMETER for the length.
    """
    if len(vectors) != len(call.input):
        raise endpoint.contract(f"it answered {len(call.input)} texts with {len(vectors)} vectors")
    lengths = {len(vector) for vector in vectors}
    if len(lengths) != 1 or 0 in lengths:
        raise endpoint.contract("its vectors are empty or differ in length")
    if call.dimensions is not None and lengths != {call.dimensions}:
        raise Failure(
            Reason.UNSUPPORTED_PARAMETER,
            f"dimensions: the model returns vectors of {lengths.pop()}, not of "
            f"{call.dimensions} – leave dimensions unset",
            violations=[Violation("dimensions", "not supported by this model")],
        )
