"""The client for ordinary, blocking code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from atmosphere_grpc.v1 import execution_pb2, execution_pb2_grpc

from . import _connection, _request
from ._call import Call, CallOptions, GenerateOptions, prepare
from ._listing import Models, Pages
from ._wire import HealthCheckRequest, HealthCheckResponse, serving_status
from .chat import ChatStream
from .errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from atmosphere_grpc.v1 import chat_pb2

Request = TypeVar("Request")
Response = TypeVar("Response")


class AtmosphereClient:
    """A client of `atmosphere.v1.Execution`. It may be shared by threads.

        with AtmosphereClient() as client:
            print(client.execute("Why is the sky blue?").data.message.content)

    Each method takes the options of a call: `timeout`, `metadata`, `wait_for_ready` and
    `request_id` (see `CallOptions`); those that reach a model take `temperature`,
    `max_tokens` and the others of `Sampling` too. Each raises an `AtmosphereError` when
    the call fails, and a TypeError or ValueError, before anything is sent, for arguments
    that make no request.

    Args:
        target: The server, as ``host:port`` or any other name that gRPC resolves.
        tls: Whether to speak TLS. Otherwise in plaintext.
        ca_certificate: Whom to trust, in PEM: the bytes, or the path of the file. None:
            the certificate authorities that come with gRPC.
        client_certificate: The client's own certificate, for mutual TLS.
        client_key: Its key.
        token: Sent as ``authorization: Bearer …`` with each call.
        api_key: An API key instead, as ``atmosphere-grpc keys create`` prints it; sent as
            ``x-api-key``.
        allow_insecure_token: Whether the token or key may leave this machine in plaintext.
        timeout: Seconds that a call may take which does not say otherwise. None: no limit.
        options: Further options of the gRPC channel; they win over this client's own.
        channel: A channel to use as it is. It stays open when the client closes.

    Raises:
        ValueError: The arguments do not fit together.
        OSError: A certificate or key cannot be read.
    """

    def __init__(
        self,
        target: str = _connection.DEFAULT_TARGET,
        *,
        tls: bool = False,
        ca_certificate: _connection.Pem | None = None,
        client_certificate: _connection.Pem | None = None,
        client_key: _connection.Pem | None = None,
        token: str | None = None,
        api_key: str | None = None,
        allow_insecure_token: bool = False,
        timeout: float | None = None,
        options: _connection.ChannelOptions | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        connection = _connection.connection(
            target,
            tls=tls,
            ca_certificate=ca_certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            token=token,
            api_key=api_key,
            allow_insecure_token=allow_insecure_token,
            options=options,
            brings_channel=channel is not None,
        )
        self._timeout = timeout
        self._metadata = connection.metadata
        self._owns_channel = channel is None
        self._channel = connection.open() if channel is None else channel
        self._stub = execution_pb2_grpc.ExecutionStub(self._channel)
        self._check: grpc.UnaryUnaryMultiCallable[Any, Any] = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        self._closed = False

    def execute(
        self,
        intent: str,
        *,
        kwargs: Mapping[str, Any] | None = None,
        capability: str = "",
        integration: str = "",
        model: str = "",
        route: str = "",
        **options: Unpack[GenerateOptions],
    ) -> execution_pb2.ExecuteResponse:
        """Routes an intent to a capability, runs it, and says what happened.

        Args:
            intent: What is wanted, in plain words; also the prompt, unless `kwargs` has one.
            kwargs: Named arguments of the original HTTP API, such as `prompt` or `text`; and
                `data`, a list of texts (``classify``) or of rows (``anomaly``).
            capability: ``chat``, ``generate``, ``rag``, ``vision``, ``embed``, ``classify`` or
                ``anomaly``. Empty: the router decides.
            integration: The integration. Empty: the first usable one.
            model: The model. Empty: the route's, else the integration's default.
            route: The route, by name. Empty: the router decides.
            **options: See `GenerateOptions`.
        """
        request = _request.intent(
            execution_pb2.ExecuteRequest,
            intent,
            kwargs=kwargs,
            capability=capability,
            integration=integration,
            model=model,
            route=route,
            options=options,
        )
        return self._unary(self._stub.Execute, request, self._call(options, GenerateOptions))

    def chat(
        self,
        messages: _request.Messages,
        *,
        model: str = "",
        integration: str = "",
        tools: Sequence[_request.ToolLike] = (),
        tool_choice: _request.ToolChoiceLike | None = None,
        response_format: _request.ResponseFormatLike | None = None,
        session_id: str = "",
        max_delay_ms: int = 0,
        extra: Mapping[str, Any] | None = None,
        on_progress: Callable[[chat_pb2.Progress], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ChatStream:
        """Continues a conversation. The call begins at once; its answer streams in.

        Args:
            messages: A string (what the user says), a message, or a sequence of messages:
                each a dictionary with `role` and `content`, or a `chat_pb2.Message`. The
                content may be a list of parts, such as ``{"text": …}`` and ``{"image":
                {"data": …, "media_type": …}}``.
            model: The model. Empty: the integration's default.
            integration: The integration. Empty: the first usable one that has the model.
            tools: Functions that the model may call, each a dictionary with `name`,
                `description`, `parameters` (a JSON Schema) and `strict`, or a `chat_pb2.Tool`.
            tool_choice: ``"auto"``, ``"none"``, ``"required"`` or ``{"name": …}``.
            response_format: ``"text"``, ``"json_object"``, a JSON Schema as a dictionary, or
                OpenAI's ``{"type": "json_schema", …}``.
            session_id: A conversation that the backend keeps, where it can.
            max_delay_ms: How long the server may join text. 0: its default.
            extra: Further fields of the backend's own request, by what its kind knows.
            on_progress: Called with each sign of life while there is nothing to show yet.
            **options: See `GenerateOptions`; `timeout` holds for the whole stream.
        """
        request = _request.chat(
            messages,
            model=model,
            integration=integration,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            session_id=session_id,
            max_delay_ms=max_delay_ms,
            extra=extra,
            options=options,
        )
        call = self._call(options, GenerateOptions)
        with translated():
            return ChatStream(self._stub.Chat(request, **call.arguments()), on_progress)

    def embed(
        self,
        input: str | Sequence[str],  # noqa: A002 – the name that it has everywhere
        *,
        model: str = "",
        integration: str = "",
        dimensions: int | None = None,
        **options: Unpack[CallOptions],
    ) -> execution_pb2.EmbedResponse:
        """Turns texts into vectors, one each, in their order.

        Args:
            input: The text, or texts.
            model: The model. Empty: the integration's default for embeddings.
            integration: The integration. Empty: the first usable one that has the model.
            dimensions: The length of the vectors. None: the model's own.
            **options: See `CallOptions`.
        """
        request = _request.embed(input, model=model, integration=integration, dimensions=dimensions)
        return self._unary(self._stub.Embed, request, self._call(options))

    def models(self, integration: str = "", **options: Unpack[CallOptions]) -> Models:
        """Lists the models of all integrations, or of one.

        One that is down does not hide the others; it is in `Models.unavailable`.
        """
        call = self._call(options)
        pages = Pages(integration)
        while pages.request is not None:
            pages.add(self._unary(self._stub.ListModels, pages.request, call))
        return pages.result()

    def integrations(self, **options: Unpack[CallOptions]) -> list[execution_pb2.Integration]:
        """Lists the integrations and how they are doing."""
        request = execution_pb2.ListIntegrationsRequest()
        response = self._unary(self._stub.ListIntegrations, request, self._call(options))
        return list(response.integrations)

    def test_integration(
        self,
        integration: str,
        prompt: str = "",
        model: str = "",
        **options: Unpack[CallOptions],
    ) -> execution_pb2.TestIntegrationResponse:
        """Prompts one integration, without retry or fallback.

        A backend that fails is no exception, but an answer with `success` False.

        Args:
            integration: The integration.
            prompt: The prompt. Empty: the server's own.
            model: The model. Empty: the integration's default.
            **options: See `CallOptions`.
        """
        request = execution_pb2.TestIntegrationRequest(
            integration_id=integration, prompt=prompt, model=model
        )
        return self._unary(self._stub.TestIntegration, request, self._call(options))

    def route(
        self,
        intent: str,
        *,
        kwargs: Mapping[str, Any] | None = None,
        capability: str = "",
        integration: str = "",
        model: str = "",
        route: str = "",
        **options: Unpack[GenerateOptions],
    ) -> chat_pb2.RouteDecision:
        """Says what `execute` would do with the same arguments, and has nothing generated."""
        request = _request.intent(
            execution_pb2.RouteRequest,
            intent,
            kwargs=kwargs,
            capability=capability,
            integration=integration,
            model=model,
            route=route,
            options=options,
        )
        call = self._call(options, GenerateOptions)
        return self._unary(self._stub.Route, request, call).route

    def health(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Returns the health of a service, such as ``SERVING`` or ``NOT_SERVING``.

        Args:
            service: The service's full name. Empty: the server as a whole.
            **options: See `CallOptions`.
        """
        request = HealthCheckRequest(service=service)
        return serving_status(self._unary(self._check, request, self._call(options)))

    def close(self) -> None:
        """Closes the channel, unless it was brought; calls under way are cancelled."""
        self._closed = True
        if self._owns_channel:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, options: Mapping[str, Any], allowed: type = CallOptions) -> Call:
        if self._closed:
            raise RuntimeError("the client is closed")
        return prepare(options, allowed, timeout=self._timeout, metadata=self._metadata)

    def _unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        call: Call,
    ) -> Response:
        with translated():
            return method(request, **call.arguments())
