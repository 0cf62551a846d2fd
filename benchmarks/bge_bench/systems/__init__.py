"""The embedders and rerankers that are compared, behind one interface, `System` in ``base.py``.

Used by `workers` and all above. A worker imports them inside its timed start, so each module
imports only what its system needs. To add one:

1. Write a class that satisfies `System`, in ``pytorch.py``, ``onnx.py`` or a module of its own.
2. Name its module and class in `_SYSTEMS` of ``base.py``, or in `_RERANKERS`, and list it there
   in `BASELINES` or `GPU_BASELINES`, and in `FROM_CHECKPOINT` if it reads the checkpoint and not
   the bundle. One that reads a model of its own is listed in `INT8_BASELINES`, and
   ``int8_models.py`` makes that.
3. Name the packages that it imports in `_PACKAGES` of ``lineup.py``, and add them to the extra
   ``bench`` of ``pyproject.toml``.
"""
