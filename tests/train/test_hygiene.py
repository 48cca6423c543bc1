"""The garbage collector around a run: off while the modules come in, which it then never looks at again."""

from __future__ import annotations

import subprocess
import sys

IMPORTS = """\
import gc
gc.disable()
import torch
from dist_trainer.train import hygiene
hygiene.end_imports()
num_looked_at, num_frozen = len(gc.get_objects()), gc.get_freeze_count()
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
print(gc.isenabled(), num_looked_at, num_frozen)
"""


def test_what_the_imports_brought_is_never_looked_at_again_and_the_collector_is_on() -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    is_on, num_looked_at, num_frozen = ended.stdout.split()
    assert is_on == "True"
    assert int(num_looked_at) < 1000 < 100_000 < int(num_frozen)
