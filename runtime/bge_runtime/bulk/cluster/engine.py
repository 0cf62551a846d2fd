"""The engine of a job that runs on a cluster of Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bge_runtime.bulk.cluster.actor import ShardActor, Work
from bge_runtime.bulk.cluster.pool import ActorPool
from bge_runtime.bulk.job import Job
from bge_runtime.bulk.options import JobOptions
from bge_runtime.bulk.output import OutputFolder
from bge_runtime.bulk.shards import Advance, OnAdvance
from bge_runtime.bulk.vectors import ModelDescription
from bge_runtime.models import AnyFlagModel

logger = logging.getLogger(__name__)


class RayEngine:
    """Computes shards on a cluster."""

    def __init__(
        self,
        model: str | os.PathLike[str] | AnyFlagModel,
        options: JobOptions,
        *,
        instruction: str | None,
        model_options: Mapping[str, Any],
        ray_options: Mapping[str, Any],
    ) -> None:
        """Connect to Ray, if the process has not done so.

        Args:
            model: As in `bge_runtime.bulk.embed_dataset`, but not an opened model.
            options: What is computed.
            instruction: As in `bge_runtime.bulk.embed_dataset`.
            model_options: Likewise.
            ray_options: ``concurrency``, the most actors; and options of an actor, such as
                ``num_cpus`` and ``num_gpus``.

        Raises:
            ImportError: If Ray is not installed.
            TypeError: If the model is opened already.
            ValueError: If an option is wrong.
        """
        if not isinstance(model, str | os.PathLike):
            raise TypeError(
                "engine='ray' opens the model on every node; pass its name or folder, and what "
                "was set on the opened one in model_options"
            )
        ray = _import_ray()
        if not ray.is_initialized():
            ray.init()
        actor = {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": "SPREAD", **ray_options}
        most = _most_actors(actor.pop("concurrency", None), actor, ray.nodes())
        # Lost ones are replaced here: Ray would hold back a shard until its actor is restarted.
        remote = ray.remote(ShardActor).options(**{**actor, "max_restarts": 0})
        # A node may start its processes in another folder.
        name = str(Path(model).absolute()) if Path(model).exists() else os.fspath(model)

        def start() -> Any:
            return remote.remote(
                name, options, instruction=instruction, model_options=dict(model_options)
            )

        self._actors = ActorPool(start, most)

    def describe(self) -> ModelDescription:
        """Return the model, as it runs on the first node that has opened it."""
        return self._actors.describe()

    def run(
        self, job: Job, shards: Sequence[int], folder: OutputFolder, on_advance: OnAdvance
    ) -> dict[int, dict[str, Any]]:
        """Compute shards, and return their records.

        Raises:
            InputError: If the input cannot be read, or a row is bad and the job stops there.
            OutputError: If a shard cannot be written, or a node has another output folder.
            BgeError: If a shard cannot be computed.
        """
        import ray

        with folder.probe() as probe:
            work = [ray.put(Work(job, folder.location, probe))]
            records = {}
            try:
                for shard, record in self._actors.run(shards, work):
                    records[shard] = record
                    on_advance(Advance(record["rows"], record["embedded"], record["tokens"]))
            finally:
                self._actors.close()
        return records


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"engine='ray' needs a package that is not installed ({error}). Run "
            "`pip install 'bge-runtime[ray]'`"
        ) from error
    return ray


def _most_actors(
    concurrency: int | tuple[int, int] | None,
    actor: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
) -> int:
    """Return how many actors to start at most: as asked, or those for which nodes have room.

    Args:
        concurrency: A number, or the least and the most, as in Ray Data.
        actor: Options of an actor.
        nodes: The nodes of the cluster.

    Raises:
        ValueError: If it is not a number above zero.
    """
    needs = {"CPU": actor["num_cpus"], "GPU": actor["num_gpus"], **actor.get("resources", {})}
    fit = sum(
        int(
            min((has.get(name, 0) // amount for name, amount in needs.items() if amount), default=1)
        )
        for has in (node["Resources"] for node in nodes if node["Alive"])
    )
    if not fit:
        listed = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)
        logger.warning("no node of the cluster has %s yet; waiting for one", listed)
    if concurrency is None:
        return max(1, fit)
    most = concurrency if isinstance(concurrency, int) else concurrency[1]
    if most < 1:
        raise ValueError(f"concurrency={concurrency!r} must be a number of actors above 0")
    return most
