"""The measurements: speed, parity, retrieval and the costs of single features.

Used by `reports` and `cli`.
"""
