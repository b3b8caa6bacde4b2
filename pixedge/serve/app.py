"""The server's addresses, and who stands before them.

Origins ── CORS, where asked for ── Locked ──┬── POST /v1/chat/completions
                                             ├── GET  /v1/models, /v1/models/NAME
                                             ├── GET  /health, /metrics
                                             └── GET  /, the page
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pixedge.model import Model
from pixedge.sampling import SamplingParams
from pixedge.serve.body import Gone
from pixedge.serve.chat import Chat
from pixedge.serve.doors import Locked, Origins
from pixedge.serve.driver import Driver, engine_failed
from pixedge.serve.errors import Refusal, json_response, refusal
from pixedge.serve.metrics import CONTENT_TYPE, Metrics
from pixedge.serve.openapi import describe
from pixedge.serve.page import load_page
from pixedge.serve.settings import Settings

_LOG = logging.getLogger("pixedge.serve")


class Service:
    """One model being served: what the addresses answer."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """Prepare to serve; ``running`` starts and ends it."""
        self.model, self.settings = model, settings
        self.metrics = Metrics(model.engine, settings.names)
        self.driver = Driver(model.engine, self.metrics, self._fail)
        self.chat = Chat(model, self.driver, self.metrics, settings)
        self.state = "starting"
        self._created = int(time.time())
        self._page = load_page()
        self._description = describe(settings.names[0], bool(settings.keys))

    @contextlib.asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Step the engine while the server runs."""
        self.driver.start(asyncio.get_running_loop())
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            self.state = "draining"
            warming.cancel()
            await asyncio.to_thread(self.close)

    async def _warm_up(self) -> None:
        """Answer once, so that the first client does not wait for what is only made when it is used."""
        picture = Image.new("RGB", (64, 64), "white")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}]
        try:
            await asyncio.to_thread(self.model.generate, messages, SamplingParams(max_tokens=2))
        except Exception:
            _LOG.exception("the model cannot answer")
            self.state = "failed"
        if self.state == "starting":
            self.state = "ready"

    def close(self) -> None:
        """End the threads; what is under way ends with them."""
        self.chat.close()
        self.driver.stop()

    def drain(self) -> None:
        """Take no more requests."""
        self.state = "draining"

    def end(self) -> None:
        """Cancel what is still under way."""
        self.driver.cancel_all(_shutting_down)

    def _fail(self) -> None:
        """Take no more requests, because none would be answered."""
        if self.state != "draining":
            self.state = "failed"

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        status = 500
        try:
            if self.state != "ready":
                raise self._not_ready()
            response = await self.chat.answer(request)
            status = response.status_code
            return response
        except Gone:
            status = 499
            return Response(status_code=400)  # nobody reads it
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception as error:
            response = _answer_to(error)
            status = response.status_code
            return response
        finally:
            self.metrics.answered(status)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response({"object": "list", "data": [self._model(n) for n in self.settings.names]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        if name not in self.settings.names:
            raise Refusal(404, f"the model {name[:80]!r} is not served here", code="model_not_found")
        return json_response(self._model(name))

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return json_response({"status": self.state}, 200 if self.state == "ready" else 503)

    async def metrics_text(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Response:
        """GET /."""
        return Response(self._page.body, headers=self._page.headers)

    async def description(self, request: Request) -> Response:
        """GET /openapi.json."""
        return json_response(self._description)

    def _not_ready(self) -> Refusal:
        if self.state == "failed":
            return engine_failed()
        message = f"the server is {self.state}; ask again in a moment"
        return Refusal(503, message, code=self.state, headers={"retry-after": "2"})

    def _model(self, name: str) -> dict[str, Any]:
        engine = self.model.engine
        longest = min(self.model.config.decoder.context, engine.cache.tokens)
        about = {"id": name, "object": "model", "created": self._created, "owned_by": "pixedge"}
        return about | {"max_model_len": longest}


def create_app(model: Model, settings: Settings) -> Starlette:
    """Give the ASGI application; ``app.state.service`` is its Service."""
    service = Service(model, settings)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.origins),
        allow_methods=["GET", "POST"],
        # openai-js sends ten of its own, and proxies and tracers add theirs; the origin is what is checked.
        allow_headers=["*"],
        expose_headers=["retry-after"],
        allow_private_network=True,
    )
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", service.complete, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.one_model),
            Route("/health", service.health),
            Route("/metrics", service.metrics_text),
            Route("/openapi.json", service.description),
            Route("/", service.page),
        ],
        middleware=[
            Middleware(Origins, settings=settings),
            *([cors] if settings.origins else []),
            Middleware(Locked, settings=settings),
        ],
        exception_handlers={HTTPException: _http_error, Refusal: _refused, Exception: _refused},
        lifespan=service.running,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _shutting_down() -> Refusal:
    return Refusal(503, "the server shuts down; ask again later", code="shutting_down")


async def _refused(request: Request, error: Exception) -> Response:
    return _answer_to(error)


def _answer_to(error: Exception) -> Response:
    """Give the answer to a request that failed.

    A function of its own, so that no variable of a frame in the error's traceback holds the error: such a
    cycle keeps the request's body until the garbage collector comes by.
    """
    found = refusal(error)
    if found is not error and found.status == 500:
        _LOG.error("a request failed", exc_info=error)
    return found.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:80]  # request.url parses the Host header, which may hold anything
    sentences = {
        404: f"there is nothing at {path!r}; POST to /v1/chat/completions",
        405: f"{path!r} does not take {request.method}",
    }
    message = sentences.get(error.status_code, error.detail)
    return Refusal(error.status_code, message, headers=error.headers).response()
