"""The routes, one module for each kind of server whose clients are answered.

To add a route, write a handler and a `RouteSpec` in the module of its dialect: the application, the
OpenAPI document and the metrics follow from it.
"""

from bge_runtime.serving.routes import ollama, openai, pages, qdrant, rerank, tei, weaviate
from bge_runtime.serving.routes.spec import RouteSpec

__all__ = ["RouteSpec", "ollama", "openai", "pages", "qdrant", "rerank", "tei", "weaviate"]
