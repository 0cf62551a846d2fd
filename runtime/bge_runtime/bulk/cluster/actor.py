"""An actor of a job on a cluster: it opens the model once, and computes shard after shard."""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa

from bge_runtime.bulk.cluster.grants import granted_options, opening_lock
from bge_runtime.bulk.files import InputError, Location
from bge_runtime.bulk.job import Job, at_this_machine
from bge_runtime.bulk.options import JobOptions
from bge_runtime.bulk.output import OutputError, OutputFolder
from bge_runtime.bulk.vectors import ModelDescription
from bge_runtime.errors import BgeError

if TYPE_CHECKING:
    from bge_runtime.bulk.embed import LocalEngine

_T = TypeVar("_T")


def _reduce_fixed_size_list(kind: pa.FixedSizeListType) -> tuple[Callable[..., Any], Any]:
    return pa.list_, (kind.value_field, kind.list_size)


# pyarrow 26 pickles these types without the name of their items, and whether they may be null. Both
# are in the bytes of a shard.
copyreg.pickle(pa.FixedSizeListType, _reduce_fixed_size_list)


class Failure(NamedTuple):
    """An error in an actor, which the driver raises as it is."""

    error: Exception


class Work(NamedTuple):
    """What all shards share.

    Attributes:
        job: The job.
        output: Its folder.
        probe: A file in the folder that the driver has written.
    """

    job: Job
    output: Location
    probe: str


class Described(NamedTuple):
    """A model, as it runs on a node.

    Attributes:
        node: Address of the node.
        model: The model.
    """

    node: str
    model: ModelDescription


def _returning_errors(method: Callable[..., _T]) -> Callable[..., _T | Failure]:
    """Return a method that returns its errors, since Ray would put its own around them."""

    @wraps(method)
    def call(*arguments: Any) -> _T | Failure:
        try:
            return method(*arguments)
        except Exception as error:  # noqa: BLE001  # raised by the driver
            return Failure(_portable(error))

    return call


def _portable(error: Exception) -> Exception:
    """Return an error that the driver can read."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:  # noqa: BLE001  # whatever its constructor does
        return BgeError(f"{type(error).__name__}: {error}")
    return error


class ShardActor:
    """Computes shards on some node. The first call opens the model."""

    def __init__(
        self,
        model: str,
        options: JobOptions,
        *,
        instruction: str | None,
        model_options: Mapping[str, Any],
    ) -> None:
        """Keep how to open the model."""
        self._model, self._options = model, options
        self._instruction, self._model_options = instruction, model_options
        self._engine: LocalEngine | None = None
        self._work: tuple[Job, OutputFolder] | None = None

    @_returning_errors
    def describe(self) -> Described:
        """Return the model, as it runs on this node."""
        return Described(_node(), self._open().describe())

    @_returning_errors
    def run(self, work: Sequence[Any], shard: int) -> dict[str, Any]:
        """Compute a shard, and return its record.

        Args:
            work: A reference to the `Work`, which is fetched once.
            shard: Number of the shard.
        """
        import ray

        if self._work is None:
            job, output, probe = ray.get(work[0])
            folder = OutputFolder(output)
            check_reachable(folder, probe)
            self._work = at_this_machine(job), folder
        job, folder = self._work
        check_inputs(job, shard)
        return self._open().run(job, [shard], folder, lambda _: None)[shard]

    def close(self) -> None:
        """Delete local files that were not committed."""
        if self._work is not None:
            self._work[1].close()

    def _open(self) -> LocalEngine:
        from bge_runtime.bulk.embed import LocalEngine

        if self._engine is None:
            with opening_lock(self._model):
                self._engine = LocalEngine(
                    self._model,
                    self._options,
                    instruction=self._instruction,
                    model_options=granted_options(self._model_options),
                )
        return self._engine


def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def check_reachable(folder: OutputFolder, probe: str) -> None:
    """Check that a folder is the one that the driver writes to.

    Raises:
        OutputError: If it is not.
    """
    if not folder.exists(probe):
        raise OutputError(
            f"the output {folder.uri} on node {_node()} is not the folder of the driver, whose "
            f"{probe} is not there. Name a folder that all nodes share, or a URI such as "
            "s3://BUCKET/FOLDER"
        )


def check_inputs(job: Job, shard: int) -> None:
    """Check that this node has the local files of a shard.

    Raises:
        InputError: If it lacks one, or has another one.
    """
    for segment in job.plan.segments(shard):
        file = job.input.entries[segment.file].file
        if file.local is None:
            continue
        try:
            size = file.local.stat().st_size
        except OSError as error:
            found = f"cannot be read there: {error.strerror}"
        else:
            if size == file.size_bytes:
                continue
            found = f"has {size:,} bytes there, and {file.size_bytes:,} where the job started"
        raise InputError(
            f"the input {file.uri} {found} (node {_node()}). Put it where all nodes read it, or "
            "name a URI such as s3://BUCKET/FILE"
        )
