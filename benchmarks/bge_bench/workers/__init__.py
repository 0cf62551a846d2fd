"""Processes that each run one system, and the journal of a run.

Used by `experiments` and `cli`.
"""
