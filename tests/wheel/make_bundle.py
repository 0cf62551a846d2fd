"""Export a tiny model to the folder given, for `check_wheel.py` to run."""

import sys
import tempfile
from pathlib import Path

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.encoder.exporter import export_encoder
from bge_export.synthetic.encoder import make_random_encoder, make_tokenizer
from bge_export.targets import select_encoder_targets
from bge_runtime.sources import BertShape

shape = BertShape(layers=2, hidden_size=32, heads=2, intermediate_size=64, vocab_size=9000)
with tempfile.TemporaryDirectory() as folder:
    make_random_encoder(shape, seed=0).save_pretrained(folder)
    make_tokenizer(shape.vocab_size).save_pretrained(folder)
    checkpoint = inspect_checkpoint(Path(folder), source=folder, pooling="cls")
    export_encoder(checkpoint, Path(sys.argv[1]), select_encoder_targets([], []))
