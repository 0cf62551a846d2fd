"""A FastAPI application that embeds texts.

    MODEL=bge-small-en-v1.5 uvicorn fastapi_app:app
    curl localhost:8000/embed -H 'content-type: application/json' -d '{"texts": ["a heat pump"]}'

It prints `{"vectors": [[...]]}`. The model is opened once, before the first request. `embed` is a
plain function, so FastAPI runs it in a thread: one model may be called by any number of threads.
For batches across requests, queues and metrics, use `bge-serve`. Needs `pip install
'bge-runtime[cpu]' fastapi uvicorn`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from bge_runtime import FlagModel


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the model, and compute one vector, so that the first request need not wait."""
    app.state.model = FlagModel(os.environ["MODEL"])
    app.state.model.encode("warm up")
    yield


app = FastAPI(lifespan=lifespan)


class Texts(BaseModel):
    """Texts to embed, as queries or as passages."""

    texts: list[str] = Field(min_length=1, max_length=256)
    is_query: bool = False


class Vectors(BaseModel):
    """A vector for each text."""

    vectors: list[list[float]]


@app.post("/embed")
def embed(body: Texts, request: Request) -> Vectors:
    """Return the vectors of some texts."""
    model = request.app.state.model
    encode = model.encode_queries if body.is_query else model.encode_corpus
    return Vectors(vectors=encode(body.texts).tolist())
