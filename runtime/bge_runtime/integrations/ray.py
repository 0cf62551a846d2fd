"""Ray: embed datasets with Ray Data, and serve models with Ray Serve.

Each process opens the model with the processors, or the GPUs, that Ray granted it. A node finds a
model once: the first process downloads or exports it, and the others take it from the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from bge_runtime.integrations import not_installed

try:
    import pyarrow as pa
    from ray import serve
    from ray.data.block import BlockAccessor

    from bge_runtime.bulk import TableEmbedder, granted_options, opening_lock
    from bge_runtime.serving import ServeOptions, create_app, open_served_model
except ImportError as error:
    raise not_installed("ray", error) from error

_STOP_S = 5.0
"""Seconds for a replica to stop, after its last requests."""


class Embedder:
    """Adds vectors to the rows of a dataset: a class for ``Dataset.map_batches``.

    ::

        vectors = dataset.map_batches(
            Embedder,
            fn_constructor_kwargs={"model": "BAAI/bge-m3", "return_sparse": True},
            batch_size=2048, batch_format="pyarrow", num_cpus=4,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        )

    It takes batches of any of Ray's formats, and returns tables of Arrow: the columns that are
    kept, ``dense`` (lists of fixed size), ``sparse`` (structs of ``indices``, ascending, and
    ``values``) and ``colbert`` (lists of lists of fixed size).

    A text that is null gets null in place of vectors, as in other functions of Arrow. An empty one
    is embedded, as `bge_runtime.FlagModel.encode` does.
    """

    def __init__(
        self,
        model: str,
        *,
        text: str | Sequence[str] = "text",
        template: str | None = None,
        keep: Sequence[str] | None = None,
        query: bool = False,
        instruction: str | None = None,
        max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        dtype: str = "float32",
        colbert_dtype: str = "float16",
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the model, with the processors or GPUs that the actor was granted.

        Args:
            model: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagModel`. A
                folder must be on every node.
            text: Column with the texts, or several.
            template: How several columns make a text, such as ``"{title}: {body}"``. None puts each
                on a line of its own.
            keep: Columns that the output keeps; None for all.
            query: Whether texts are queries, which get the instruction for them.
            instruction: That instruction; None for the one that the model's authors recommend,
                ``""`` for none.
            max_length: Maximum tokens of a text; None for the model's default of 512.
            return_dense: Add dense vectors.
            return_sparse: Add lexical weights, for BGE-M3.
            return_colbert_vecs: Add ColBERT vectors, for BGE-M3.
            dtype: Type of dense vectors: ``float32`` or ``float16``.
            colbert_dtype: Type of ColBERT vectors.
            model_options: Arguments of `bge_runtime.FlagAutoModel.from_finetuned`, such as
                ``precision``. ``threads`` and ``devices`` take the place of what was granted.

        Raises:
            ValueError: If an argument is wrong, or does not fit the model.
            BgeError: If the model cannot be opened.
        """
        self._keep = None if keep is None else list(keep)
        with opening_lock(model):
            self._embedder = TableEmbedder(
                model,
                text=text,
                template=template,
                query=query,
                instruction=instruction,
                max_length=max_length,
                return_dense=return_dense,
                return_sparse=return_sparse,
                return_colbert_vecs=return_colbert_vecs,
                dtype=dtype,
                colbert_dtype=colbert_dtype,
                model_options=granted_options(model_options),
            )

    def __call__(self, batch: Mapping[str, NDArray[Any]] | pa.Table | Any) -> pa.Table:
        """Return a batch with vectors.

        Args:
            batch: A dictionary of NumPy arrays, a table of Arrow or a DataFrame of pandas.

        Raises:
            InputError: If the batch lacks a column, or a text cannot be embedded.
            ValueError: If the batch has a column of the name of one that is added.
        """
        table = _as_table(batch)
        kept = table if self._keep is None else table.select(self._keep)
        for field in self._embedder.fields:
            if field.name in kept.column_names:
                raise ValueError(
                    f"the batch already has a column {field.name!r}; rename it, or name the "
                    "columns that the output keeps"
                )
        vectors = self._embedder.embed(table)
        for field, column in zip(vectors.schema, vectors.columns, strict=True):
            kept = kept.append_column(field, column)
        return kept


def _as_table(batch: Any) -> pa.Table:
    """Return a batch of any of Ray's formats as a table of Arrow."""
    if isinstance(batch, pa.Table):
        return batch
    block = BlockAccessor.batch_to_block(batch)
    return block if isinstance(block, pa.Table) else BlockAccessor.for_block(block).to_arrow()


def serve_app(
    model: str,
    *,
    name: str | None = None,
    replicas: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    target_ongoing_requests: float = 32,
    max_ongoing_requests: int = 256,
    max_queued_requests: int = 1024,
    options: ServeOptions | None = None,
    max_length: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    **deployment: Any,
) -> serve.Application:
    """Return ``bge-serve``'s application for ``ray.serve.run``.

    A replica batches the requests that it has, as ``bge-serve`` does. It computes with the
    processors or GPUs that it was granted. Requests that find no room get status 429, from Ray if
    all replicas have ``max_ongoing_requests``, and else from the replica.

    Args:
        model: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagModel`. A folder
            must be on every node.
        name: Name under which requests name the model; None for the bundle's.
        replicas: Number of replicas, or the least and the most of them: then Ray starts and stops
            replicas with the load.
        num_cpus: Processors of a replica.
        num_gpus: GPUs of a replica.
        target_ongoing_requests: Requests of a replica above which Ray starts another one. More of
            them fill larger batches, and wait longer.
        max_ongoing_requests: Requests that a replica has at once; further ones wait.
        max_queued_requests: Requests that wait on a node.
        options: How to serve, as in `bge_runtime.serving.ServeOptions`.
        max_length: Tokens at which texts are cut; None for what the model reads, 8,192 at most.
        model_options: ``devices``, ``engine``, ``precision``, ``threads``, ``revision``,
            ``query_instruction`` and ``passage_instruction``.
        **deployment: Further arguments of ``ray.serve.deployment``, which go before those above.

    Raises:
        ValueError: If the number of replicas is not a range.
    """
    options = options or ServeOptions()
    asked = dict(model_options or {})

    def build() -> Any:
        with opening_lock(model):
            opened = open_served_model(model, **granted_options(asked))
        return create_app({name or opened.name: opened}, options, max_length=max_length)

    @serve.ingress(build)
    class BgeServe:
        def check_health(self) -> None:
            """Fail if an engine has stalled: then Ray replaces the replica."""
            app: Any = self.app  # type: ignore[attr-defined]  # of `ingress`
            for served in app.state.models:
                if served.trouble is not None:
                    raise RuntimeError(served.trouble)

    settings = {
        "name": "bge-serve",
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": max_ongoing_requests,
        "max_queued_requests": max_queued_requests,
        "graceful_shutdown_timeout_s": options.drain_timeout_s + _STOP_S,
        **(
            {}
            if "autoscaling_config" in deployment
            else _scaling(replicas, target_ongoing_requests)
        ),
        **_backpressure(),
        **deployment,
    }
    return serve.deployment(**settings)(BgeServe).bind()


def _scaling(replicas: int | tuple[int, int], target: float) -> dict[str, Any]:
    """Return the arguments of a deployment for a number of replicas, or for a range."""
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    least, most = replicas
    if not 0 <= least <= most or not most:
        raise ValueError(f"replicas={replicas!r} must be the least and the most of them")
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target,
        }
    }


def _backpressure() -> dict[str, Any]:
    """Return the arguments by which Ray answers 429, where this version can; older ones say 503."""
    if "backpressure_config" not in inspect.signature(serve.deployment).parameters:
        return {}
    return {"backpressure_config": {"status_code": 429, "retry_after_s": 1}}
