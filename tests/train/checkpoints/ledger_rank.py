"""A rank that keeps a ledger: `python ledger_rank.py FOLDER train ...`.

FOLDER/rank-N.jsonl gets the windows of each micro batch that the loader has handed to the training loop, known by their
first token: the data's tokens count from 0.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dist_trainer.cli.main import main
from dist_trainer.data.loader import Batch, BatchLoader

if __name__ == "__main__":
    ledger = Path(sys.argv[1], f"rank-{os.environ['RANK']}.jsonl")
    handed_out = BatchLoader.__iter__

    def noted(loader: BatchLoader) -> Iterator[Batch]:
        for batch in handed_out(loader):
            first = batch.inputs[:, 0]
            assert (batch.inputs - first[:, None]).eq(batch.inputs[0] - first[0]).all()
            with ledger.open("a") as opened:
                print(json.dumps((first // batch.inputs.shape[1]).tolist()), file=opened)
            yield batch

    BatchLoader.__iter__ = noted  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
