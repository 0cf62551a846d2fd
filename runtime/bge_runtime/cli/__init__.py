"""The commands of bge_runtime, and what all commands share.

``bge-embed`` is in embed and its embed_* modules, ``bge-rerank`` in rerank, ``bge-runtime doctor``
in doctor, its doctor_* modules and speed. streams has what the first two share. Nothing in
bge_runtime imports this folder. bge_export and bge_bench use command_line.
"""
