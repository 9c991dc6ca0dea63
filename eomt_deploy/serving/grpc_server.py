"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio

from eomt_deploy.errors import UsageError
from eomt_deploy.serving.guard import is_authorised
from eomt_deploy.serving.inference import (
    INPUT,
    MAX_TENSORS,
    OUTPUT,
    InferRequest,
    Tensor,
    bad,
    join_bytes,
    metadata,
    split_bytes,
    uint8_of,
    works_of,
)
from eomt_deploy.serving.log import RequestLog
from eomt_deploy.serving.protocol import CALLS, MESSAGES, SERVICE
from eomt_deploy.serving.server import DisconnectedError, ModelServer
from eomt_deploy.serving.work import RequestError

OPEN_CALLS = ("ServerLive", "ServerReady")
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""gRPC status codes by HTTP status; all others are INTERNAL."""
RETRY = "retry-after"
Call = Callable[[Any], Awaitable[Mapping[str, Any]]]


class _TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuse calls without the token before their message is received."""

    def __init__(self, token: str | None, refused: Callable[[str], None]) -> None:
        self._token, self._refused = token, refused

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        sent = dict(handler_call_details.invocation_metadata or ())
        header = str(sent.get("authorization", ""))
        if name in OPEN_CALLS or is_authorised(self._token, header):
            return await continuation(handler_call_details)

        self._refused(name)

        async def refuse(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(
                STATUS[401],
                "The token is missing or wrong. Send the metadata `authorization: Bearer TOKEN`.",
            )

        # A handler of a stream starts without waiting for a message.
        return grpc.stream_unary_rpc_method_handler(refuse)


class GrpcServer:
    """The gRPC server of a :class:`ModelServer`.

    Args:
        server: the models.
        log: receives a line for each call.
    """

    def __init__(self, server: ModelServer, log: RequestLog) -> None:
        self._server, self._log = server, log
        limit = server.config.limits.body_bytes
        self._grpc = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_idle_ms", 600_000),
            ],
            interceptors=[_TokenCheck(server.config.token, self._count_refused)],
            maximum_concurrent_rpcs=server.config.limits.calls,
        )
        calls: dict[str, Call] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name, call),
                request_deserializer=MESSAGES[CALLS[name][0]].FromString,
                response_serializer=MESSAGES[CALLS[name][1]].SerializeToString,
            )
            for name, call in calls.items()
        }
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            UsageError: the port cannot be used.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            found = int(self._grpc.add_insecure_port(address))
        except RuntimeError:
            found = 0
        if not found:
            raise UsageError(
                f"gRPC cannot listen on {address}.",
                why="Another program may use this port.",
                fix="Choose another one with --grpc-port, or leave gRPC out with --no-grpc.",
            )
        await self._grpc.start()
        return found

    async def stop(self, seconds: float) -> None:
        """Accept no more calls, and wait for those that run."""
        await self._grpc.stop(seconds)

    def _handler(self, name: str, call: Call) -> Callable[[Any, Any], Awaitable[Any]]:
        response = MESSAGES[CALLS[name][1]]

        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            began = time.perf_counter()
            status = "INTERNAL"
            try:
                answer = response(**await call(request))
                status = "OK"
                return answer
            except RequestError as error:
                code = STATUS.get(error.status, grpc.StatusCode.INTERNAL)
                status = code.name
                trailers = ((RETRY, str(round(error.retry_after))),) if error.retry_after else ()
                await context.abort(code, str(error), trailers)
            except (DisconnectedError, asyncio.CancelledError):
                status = "CANCELLED"
                raise
            except Exception as error:
                if isinstance(error, grpc.aio.AbortError):
                    raise
                traceback.print_exc()
                what = "The server failed at this request; its log has the details."
                await context.abort(grpc.StatusCode.INTERNAL, what)
            finally:
                seconds = time.perf_counter() - began
                self._server.metrics.request("grpc", name, status, seconds)
                self._log.write(
                    protocol="grpc", route=name, status=status, seconds=round(seconds, 4)
                )

        return handle

    def _count_refused(self, name: str) -> None:
        route = name if name in CALLS else "other"
        self._server.metrics.request("grpc", route, "UNAUTHENTICATED", 0.0)
        self._log.write(protocol="grpc", route=route, status="UNAUTHENTICATED")

    async def _live(self, request: Any) -> Mapping[str, Any]:
        return {"live": True}

    async def _ready(self, request: Any) -> Mapping[str, Any]:
        return {"ready": self._server.ready}

    async def _server_metadata(self, request: Any) -> Mapping[str, Any]:
        return self._server.description()

    async def _model_ready(self, request: Any) -> Mapping[str, Any]:
        pool = self._server.pool(request.name, request.version)
        return {"ready": pool.ready and not self._server.stopping}

    async def _model_metadata(self, request: Any) -> Mapping[str, Any]:
        return metadata(self._server.pool(request.name, request.version).name)

    async def _index(self, request: Any) -> Mapping[str, Any]:
        return {"models": self._server.index()}

    async def _load(self, request: Any) -> Mapping[str, Any]:
        await self._server.reload(request.model_name, dict(request.parameters))
        return {}

    async def _infer(self, request: Any) -> Mapping[str, Any]:
        pool = self._server.pool(request.model_name, request.model_version)
        with self._server.budget.share() as take:
            take(request.ByteSize())
            parsed, binary = _parse(request)
            answers = await self._server.answer(pool, works_of(parsed))
        results = [answer.body for answer in answers]
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [len(results)]}
        response: dict[str, Any] = {
            "model_name": pool.name,
            "model_version": "1",
            "id": request.id,
            "outputs": [output],
        }
        if binary:
            response["raw_output_contents"] = [join_bytes(results)]
        else:
            output["contents"] = {"bytes_contents": results}
        return response


def _parse(request: Any) -> tuple[InferRequest, bool]:
    """The request, and whether its output shall be in `raw_output_contents`.

    Raises:
        RequestError: it does not follow the protocol.
    """
    raw = list(request.raw_input_contents)
    if len(request.inputs) > MAX_TENSORS:
        raise bad(f"The request has {len(request.inputs)} inputs.")
    if raw and len(raw) != len(request.inputs):
        raise bad(f"There are {len(request.inputs)} inputs and {len(raw)} raw contents.")
    inputs = []
    for position, tensor in enumerate(request.inputs):
        data: Any
        if raw:
            content = raw[position]
            data = split_bytes(content) if tensor.datatype == "BYTES" else content
        elif tensor.datatype == "BYTES":
            data = list(tensor.contents.bytes_contents)
        elif tensor.datatype == "UINT8":
            data = uint8_of(list(tensor.contents.uint_contents))
        else:
            raise bad(f"The datatype of {INPUT!r} must be BYTES or UINT8.")
        inputs.append(Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for name, value in request.parameters.items()
    }
    outputs = [output.name for output in request.outputs]
    return InferRequest(inputs, parameters, outputs, request.id), bool(raw)
