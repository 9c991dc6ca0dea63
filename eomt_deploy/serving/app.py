"""The HTTP application: Open Inference Protocol, `POST /segment`, metrics and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eomt_deploy import __version__
from eomt_deploy.serving.body import image_of, read_body
from eomt_deploy.serving.guard import App, Guard, error_response
from eomt_deploy.serving.inference import bad, metadata, options_of, works_of
from eomt_deploy.serving.log import RequestLog
from eomt_deploy.serving.rest import JSON_LENGTH_HEADER, infer_response, parse_infer
from eomt_deploy.serving.server import DisconnectedError, ModelServer
from eomt_deploy.serving.work import Answer, RequestError, Work

PAGE = Path(__file__).parent / "page"
COMMON = Path(__file__).parents[1] / "page"
"""Files of the page that do not depend on where the results come from."""
KEY_HEADER = "x-image"
"""Names kept outputs, for requests that only repeat the post-processing."""
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
Threshold = Annotated[float | None, Query(ge=0, le=1)]


def make_app(server: ModelServer, log: RequestLog | None = None) -> App:
    """The application for a server."""
    app = FastAPI(
        title="eomt-deploy",
        version=__version__,
        description="Segmentation with EoMT.",
        docs_url=None,  # it would load scripts from other servers
        redoc_url=None,
    )
    _add_error_handlers(app)
    _add_protocol(app, server)
    _add_segment(app, server)
    _add_page(app, server)
    return Guard(app, server.config, server.metrics, log or RequestLog(server.config.log))


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def _refused(request: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"][1:]))
        return error_response(bad(f"{name}: {first['msg']}.", "See /docs for the parameters."))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        fix = "See /docs for the addresses of this server."
        return error_response(RequestError(error.status_code, f"{error.detail}.", fix=fix))

    @app.exception_handler(Exception)
    async def _failed(request: Request, error: Exception) -> Response:
        what = "The server failed at this request; its log has the details."
        return error_response(RequestError(500, what, fix="Report this with the log."))

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(DisconnectedError)
    async def _gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; only the log does


def _add_protocol(app: FastAPI, server: ModelServer) -> None:
    """The Open Inference Protocol, version 2, and its model repository extension."""
    tags: Any = {"tags": ["Open Inference Protocol"]}

    @app.head("/v2/health/live", include_in_schema=False)
    @app.get("/v2/health/live", **tags)
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @app.head("/v2/health/ready", include_in_schema=False)
    @app.get("/v2/health/ready", **tags)
    async def ready() -> Response:
        """Whether all models can answer requests (200) or not (503)."""
        is_ready = server.ready
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/v2", **tags)
    async def server_metadata() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return server.description()

    @app.get("/v2/models/{model}", **tags)
    @app.get("/v2/models/{model}/versions/{version}", **tags)
    async def model_metadata(model: str, version: str | None = None) -> dict[str, Any]:
        """Inputs and outputs of a model."""
        return metadata(server.pool(model, version).name)

    @app.get("/v2/models/{model}/ready", **tags)
    @app.get("/v2/models/{model}/versions/{version}/ready", **tags)
    async def model_ready(model: str, version: str | None = None) -> Response:
        """Whether a model can answer requests (200) or not (503)."""
        is_ready = server.pool(model, version).ready and not server.stopping
        return JSONResponse({"name": model, "ready": is_ready}, 200 if is_ready else 503)

    @app.post("/v2/models/{model}/infer", **tags)
    @app.post("/v2/models/{model}/versions/{version}/infer", **tags)
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Segment the images of the input `image`; the output `result` has a JSON text for each."""
        pool = server.pool(model, version)
        with server.budget.share() as take:
            body = await read_body(request, server.config.limits, take)
            parsed, binary = parse_infer(body, request.headers.get(JSON_LENGTH_HEADER))
            answers = await server.answer(pool, works_of(parsed), _leaving(request))
        results = [answer.body for answer in answers]
        content, headers = infer_response(model, parsed.id, results, binary=binary)
        return Response(content, headers=headers | _timing(answers))

    @app.post("/v2/repository/index", **tags)
    async def index() -> list[dict[str, str]]:
        """All models and their states."""
        return server.index()

    @app.post("/v2/repository/models/{model}/load", **tags)
    async def load(request: Request, model: str) -> dict[str, str]:
        """Open the file of a model again, after it was replaced."""
        server.pool(model)
        with server.budget.share() as take:
            body = await read_body(request, server.config.limits, take)
        # tritonclient sends an empty object as parameters.
        wants = body.strip() not in (b"", b"{}") and body.replace(b" ", b"") != b'{"parameters":{}}'
        await server.reload(model, {"parameters": True} if wants else None)
        return {"name": model}


def _add_segment(app: FastAPI, server: ModelServer) -> None:
    """The simple interface: an image in, a result out."""

    @app.get("/models", tags=["Segmentation"])
    async def models() -> list[dict[str, Any]]:
        """All models: task, classes, default thresholds, backend."""
        return server.models()

    @app.post("/segment", tags=["Segmentation"], openapi_extra=IMAGE_BODY)
    async def segment(
        request: Request,
        model: str | None = None,
        format: Literal["rle", "polygons", "coco", "panoptic", "png", "overlay"] = "rle",
        score_threshold: Threshold = None,
        mask_threshold: Threshold = None,
        overlap_threshold: Threshold = None,
        classes: Annotated[
            list[str] | None, Query(description="Names or ids of the classes to keep.")
        ] = None,
        tolerance: Annotated[
            float, Query(ge=0, le=1000, description="Maximum error of polygons in pixels.")
        ] = 0,
        keep: Annotated[
            bool, Query(description="Keep the outputs, see the response header X-Image.")
        ] = False,
        image: Annotated[
            str | None,
            Query(description="Value of X-Image: only repeat the post-processing of that image."),
        ] = None,
    ) -> Response:
        """Segment an image: the body is an image file, or a form with the field `image`.

        The default result is JSON with exact masks (COCO RLE). The header Server-Timing has the
        milliseconds of each stage.
        """
        pool = server.pool(model)
        options = options_of(
            {
                "format": format,
                "score_threshold": score_threshold,
                "mask_threshold": mask_threshold,
                "overlap_threshold": overlap_threshold,
                "classes": _class_list(server, pool.name, classes or []),
                "tolerance": tolerance,
            }
        )
        key = image or (pool.new_key() if keep else None)
        with server.budget.share() as take:
            content = None
            if image is None:
                body = await read_body(request, server.config.limits, take)
                content = await image_of(request, body)
            work = Work(content, options, key)
            (answer,) = await server.answer(pool, [work], _leaving(request))
        headers = _timing([answer]) | ({KEY_HEADER: key} if key else {})
        return Response(answer.body, media_type=answer.media_type, headers=headers)

    @app.get("/metrics", tags=["Operation"])
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _class_list(server: ModelServer, model: str, given: Sequence[str]) -> list[str]:
    """Class names from ``classes=car,person`` and ``classes=car&classes=person``."""
    found = server.pool(model).model
    names = {entry["name"] for entry in found.classes} if found else set()
    parts: list[str] = []
    for value in given:
        parts += [value] if value in names else [part.strip() for part in value.split(",")]
    return [part for part in parts if part]


def _add_page(app: FastAPI, server: ModelServer) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(COMMON / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    app.mount("/page/common", StaticFiles(directory=COMMON), name="common")
    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _leaving(request: Request) -> Any:
    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return wait


def _timing(answers: Sequence[Answer]) -> dict[str, str]:
    """The times of the stages, in milliseconds; of several images, the longest."""
    stages = answers[0].seconds
    longest = {stage: max(a.seconds.get(stage, 0) for a in answers) for stage in stages}
    text = ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in longest.items())
    return {"server-timing": text}
