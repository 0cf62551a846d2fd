"""From rows of a file or pipe to rows of another: what ``bge-embed`` and ``bge-rerank`` share.

input reads rows as they arrive and reports bad lines, compute finds the rows that a model rejects,
output writes a file that appears once it is complete, or a stream. options has the options of both
commands.
"""
