"""The list of models, put together from its pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from atmosphere_grpc.v1 import execution_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

# The most that the contract allows: a list takes one round trip as a rule.
_PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Models:
    """The models of all integrations; iterates over `models`.

    Attributes:
        models: Ordered by integration and then id.
        unavailable: The integrations whose models could not be listed, and why.
    """

    models: tuple[execution_pb2.Model, ...]
    unavailable: tuple[execution_pb2.IntegrationError, ...]

    def __iter__(self) -> Iterator[execution_pb2.Model]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)


class Pages:
    """Follows the pages: `request` is the next one to ask for, None after the last."""

    def __init__(self, integration: str) -> None:
        self._integration = integration
        self._models: list[execution_pb2.Model] = []
        self._unavailable: list[execution_pb2.IntegrationError] = []
        self.request: execution_pb2.ListModelsRequest | None = self._page("")

    def add(self, response: execution_pb2.ListModelsResponse) -> None:
        """Takes a page in."""
        self._models.extend(response.models)
        self._unavailable.extend(response.unavailable)
        token = response.next_page_token
        self.request = self._page(token) if token else None

    def result(self) -> Models:
        """Returns all that the pages held."""
        return Models(tuple(self._models), tuple(self._unavailable))

    def _page(self, token: str) -> execution_pb2.ListModelsRequest:
        return execution_pb2.ListModelsRequest(
            integration_id=self._integration, page_size=_PAGE_SIZE, page_token=token
        )
