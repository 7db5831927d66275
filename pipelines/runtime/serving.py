"""The scoring service on Ray Serve: one deployment, whose replicas hold a model each.

A replica takes requests while another thread runs the network; what has come in meanwhile is answered together.
Requests beyond `ongoing` wait in Serve's queue, and beyond `queued` they are told to come back later (503).
"""

# Annotations must be types, not text: Serve pickles the class without the names that text would be looked up in.
import asyncio
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.util import metrics
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

import dri_iqa
from dri_iqa.bundle_files import read_config_file, resolve_uri
from dri_iqa.config import ConfigError, from_dict, to_dict
from dri_iqa.default_model import default_model
from pipelines.runtime import uploads
from pipelines.runtime.answers import Answer, Asked, answers
from pipelines.runtime.cluster import connect, is_attached
from pipelines.runtime.config import ClusterConfig
from pipelines.runtime.front_page import front_page
from pipelines.runtime.serve_config import ServeConfig
from pipelines.runtime.uploads import Refused, read_crops, read_picture

NAME = "dri-iqa"
SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
"""Bounds of the latency's histogram."""

app = FastAPI(title=NAME, version=dri_iqa.__version__, docs_url=None, redoc_url=None)
for kind in (Refused, RequestValidationError, HTTPException):
    app.add_exception_handler(kind, uploads.refused)


@serve.deployment(name="scoring")
@serve.ingress(app)
class Scoring:
    """A model behind HTTP."""

    def __init__(self, model: str, values: dict[str, Any]) -> None:
        import torch

        self.config = from_dict(ServeConfig, values, "args")
        torch.set_num_threads(math.ceil(self.config.cpus))
        self.scorer = dri_iqa.load_model(model, precision=self.config.precision)
        self.page = front_page(self.scorer, self.config)
        self.limit = round(self.config.max_body_mb * 1e6)
        batching: Any = self._together
        batching.set_max_batch_size(self.config.batch)
        batching.set_batch_wait_timeout_s(self.config.wait_ms / 1e3)
        self.requests = metrics.Counter("dri_iqa_requests", "Requests.", ("route",))
        self.errors = metrics.Counter("dri_iqa_errors", "Refused requests.", ("route", "kind"))
        self.seconds = metrics.Histogram(
            "dri_iqa_seconds", "From request to answer.", SECONDS, ("route",)
        )

    @app.get("/")
    async def front(self) -> HTMLResponse:
        """The page."""
        return HTMLResponse(self.page)

    @app.get("/health")
    async def health(self) -> dict[str, Any]:
        """Which model answers; a replica is asked only once it has loaded it."""
        head = self.scorer.head
        return {
            "ready": True,
            "model": self.scorer.name,
            "digest": head.digest,
            "scale": to_dict(head.score),
            "crops": head.scoring.crops,
            "version": dri_iqa.__version__,
        }

    @app.post("/score")
    async def score(
        self, request: Request, crops: str | None = None, maps: bool = False
    ) -> JSONResponse:
        """The score of the picture that is the body, or the first file of a form."""
        with self._counted("score"):
            return JSONResponse(await self._answer(request, crops, maps=maps))

    @app.post("/explain")
    async def explain(self, request: Request, crops: str | None = None) -> HTMLResponse:
        """The page of `dri-iqa explain` for that picture."""
        with self._counted("explain"):
            return HTMLResponse(await self._answer(request, crops, page=True))

    async def _answer(self, request: Request, crops: str | None, **wish: bool) -> Any:
        policy = read_crops(crops, self.config.max_crops)
        name, picture = await read_picture(request, self.limit)
        answer = await self._together(Asked(name=name, picture=picture, crops=policy, **wish))
        if isinstance(answer, Refused):
            raise answer
        return answer

    @serve.batch
    async def _together(self, asked: list[Asked]) -> list[Answer]:
        return await asyncio.to_thread(answers, self.scorer, asked)

    @contextmanager
    def _counted(self, route: str) -> Iterator[None]:
        began = time.perf_counter()
        self.requests.inc(tags={"route": route})
        try:
            yield
        except Refused as error:
            self.errors.inc(tags={"route": route, "kind": error.kind})
            raise
        except Exception as error:
            self.errors.inc(tags={"route": route, "kind": type(error).__name__})
            raise
        finally:
            self.seconds.observe(time.perf_counter() - began, tags={"route": route})


def application(args: dict[str, Any]) -> Application:
    """The service for Ray Serve; `args` as in `infra/serve.yaml`, where `deployments` overrides what is set here.

    Raises:
        ConfigError: an unknown key, or no model was named and there is no champion.
        BundleError: no such model.
    """
    config = from_dict(ServeConfig, args, "args")
    model = config.model or _champion()
    if ":/" not in model:
        model = str(Path(model).expanduser().resolve())
    read_config_file(resolve_uri(model))
    return Scoring.options(
        num_replicas=config.replicas,
        max_ongoing_requests=config.ongoing,
        max_queued_requests=config.queued,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
    ).bind(model, to_dict(config))


def _champion() -> str:
    try:
        return default_model()
    except ValueError:
        raise ConfigError(
            "no model: serve.model is not set, DRI_IQA_MODEL neither, and no run has made one\n"
            "set serve.model=FOLDER, or run `make run` first"
        ) from None


class Address(NamedTuple):
    """Where a service is found."""

    page: str
    metrics: str
    """In Prometheus' format: Ray's own, Serve's, and the counters above with `ray_` before their names."""


@contextmanager
def service(
    config: ServeConfig, cluster: ClusterConfig, *, verbose: bool = False
) -> Iterator[Address]:
    """The service on a Ray of its own, for the duration of the block.

    Raises:
        ConfigError: a running cluster is meant, which this would take over, or the port is taken.
        BundleError: no such model.
    """
    if is_attached(cluster):
        raise ConfigError(
            "a running cluster serves what is deployed to it, RAY_ADDRESS names one\n"
            "serve deploy infra/serve.yaml, or set cluster=local for a Ray of its own"
        )
    _check_free(config)
    application_here = application(to_dict(config))
    with connect(cluster, verbose=verbose):
        options = HTTPOptions(
            host=config.host, port=config.port, request_timeout_s=config.timeout_s
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options=options)
            serve.run(application_here, name=NAME, route_prefix="/")
            (node,) = ray.nodes()
            yield Address(
                f"http://{config.host}:{config.port}/",
                f"http://127.0.0.1:{node['MetricsExportPort']}/metrics",
            )
        finally:
            serve.shutdown()


def _check_free(config: ServeConfig) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"{config.host}:{config.port} is taken or not of this machine: {error.strerror}\n"
                "set serve.port to a free one"
            ) from None
