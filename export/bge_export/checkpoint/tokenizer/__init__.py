"""Load a checkpoint's tokenizer so that its token ids do not depend on the installed transformers.

transformers 4.57, which FlagEmbedding needs, reads ``tokenizer.json`` and lets settings in
``tokenizer_config.json`` change parts of it; which settings, depends on the class (`classes`).
transformers 5 takes the vocabulary from the file and rebuilds the rest by class, so other parts of
the file can be lost. Here the file is read as 4.57 does. The result is compared with the tokenizer
of the installed transformers, and a difference is logged.

Both exporters use it. It imports transformers, so `bge_export.checkpoint` does not hand it on.
"""

from bge_export.checkpoint.tokenizer.checks import (
    check_pairs,
    check_token_types,
    check_vocabulary,
)
from bge_export.checkpoint.tokenizer.load import load_tokenizer
from bge_export.checkpoint.tokenizer.tokenizer import SETTINGS_FILE, CheckpointTokenizer

__all__ = [
    "SETTINGS_FILE",
    "CheckpointTokenizer",
    "check_pairs",
    "check_token_types",
    "check_vocabulary",
    "load_tokenizer",
]
