"""The commands ``bge-embed`` and ``bge-runtime doctor``, and what all commands share.

``bge-embed`` is in embed and its embed_* modules, ``bge-runtime doctor`` in doctor and its
doctor_* modules. streams is for commands that compute rows. Nothing in bge_runtime imports this
folder. bge_export and bge_bench use command_line.
"""
