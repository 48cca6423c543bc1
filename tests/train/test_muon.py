from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("optimizer", "has_inductor"), [("AdamW", False), ("Muon", True)])
def test_only_muon_itself_brings_inductor_in(optimizer: str, has_inductor: bool) -> None:
    code = (
        "import sys, deepspeed\n"
        "from dist_trainer.train.muon import import_uncompiled_unless_used\n"
        f"import_uncompiled_unless_used({{'optimizer': {{'type': {optimizer!r}}}}})\n"
        "from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam\n"
        "print('torch._inductor.compile_fx' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == str(has_inductor)
