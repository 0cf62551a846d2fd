"""Make two tiny bundles for the tests on a cluster, whose environment has no PyTorch.

    python tests/cluster/make_bundles.py FOLDER

FOLDER gets `bundles.json`: the path of each bundle by the name of its model.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from tests.helpers.bundles import MADE_ONCE, export, make_once, write_tiny_bert, write_tiny_m3


def main(folder: Path) -> None:
    os.environ.setdefault(MADE_ONCE, str(folder))
    # The names are those of other tests, so that `make test` exports each once.
    checkpoint = make_once("tiny", write_tiny_bert)
    dense = make_once("serving-bundle", partial(export, checkpoint, targets=("cpu",)))
    m3_checkpoint = make_once("tiny-m3", write_tiny_m3)
    make_m3 = partial(export, m3_checkpoint, targets=("cpu",), model_class="encoder-only-m3")
    m3 = make_once("serving-m3-bundle", make_m3)
    (folder / "bundles.json").write_text(json.dumps({"dense": str(dense), "m3": str(m3)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
