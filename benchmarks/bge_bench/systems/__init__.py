"""The embedders that are compared, behind one small interface.

Used by `workers` and all above. A worker imports them inside its timed start, so each module
imports only what its system needs.
"""
