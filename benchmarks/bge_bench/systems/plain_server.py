"""The server that users write first: ``python -m bge_bench.systems.plain_server BUNDLE PORT``.

A Starlette handler that calls ``encode`` in a thread for each request, and answers as OpenAI does.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import bge_runtime


def create_app(model: Any) -> Starlette:
    """Return the application; ``GET /health`` says what runs the model."""

    async def embeddings(request: Request) -> Response:
        given = orjson.loads(await request.body())["input"]
        texts = [given] if isinstance(given, str) else given
        vectors = await asyncio.to_thread(model.encode, texts, show_progress_bar=False)
        data = [
            {"object": "embedding", "index": index, "embedding": base64.b64encode(row).decode()}
            for index, row in enumerate(vectors)
        ]
        return Response(
            orjson.dumps({"object": "list", "data": data}), media_type="application/json"
        )

    async def health(_: Request) -> Response:
        info = model.engine.info
        return Response(orjson.dumps({"precision": info.precision, "in_force": str(info)}))

    routes = [Route("/v1/embeddings", embeddings, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes)


def main() -> None:
    """Serve a bundle: BUNDLE PORT DEVICE PRECISION THREADS."""
    bundle, port, device, precision, threads = sys.argv[1:]
    model = bge_runtime.FlagModel(
        bundle, devices=device, precision=precision, threads=int(threads), passage_max_length=512
    )
    uvicorn.run(create_app(model), port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
