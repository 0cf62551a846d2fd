"""A job on a cluster of Ray.

`RayEngine` in ``engine.py`` is the driver's part; `ActorPool` in ``pool.py`` gives shards to
actors; `ShardActor` in ``actor.py`` computes them on a node, with what ``grants.py`` reads of its
resources. `TableEmbedder` in ``tables.py`` is for those who have datasets of their own there.

These are plain actors and not a dataset of Ray Data. A shard is given to an actor when it has
finished the one before; Ray Data queues several items at each actor, and holds back those of an
actor that is restarted. And errors arrive as they were raised.
"""

from bge_runtime.bulk.cluster.engine import RayEngine
from bge_runtime.bulk.cluster.grants import granted_options, opening_lock
from bge_runtime.bulk.cluster.tables import TableEmbedder

__all__ = ["RayEngine", "TableEmbedder", "granted_options", "opening_lock"]
