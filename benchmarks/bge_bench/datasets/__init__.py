"""Texts to measure with: published ones and ones made here, and scores of retrieval.

Used by `experiments` and `cli`.
"""
