"""Keeps torch's inductor out of runs that do not compile.

DeepSpeed imports its Muon for every optimizer, to compare types, and decorators compile Muon's functions on import:
that loads inductor in every rank, for more than a second and 46 MB of host memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from unittest import mock

from dist_trainer.config.deepspeed.rules import block

_MODULE = "deepspeed.runtime.zero.muon.original_muon"


def import_uncompiled_unless_used(config: Mapping[str, Any]) -> None:
    """Imports DeepSpeed's Muon without compiling it, unless this DeepSpeed configuration uses it.

    To be called before the engine is built.
    """
    if str(block(config, "optimizer").get("type")).lower() == "muon":
        return

    def leave(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda function: function

    with mock.patch("deepspeed.runtime.compiler.compile", leave, create=True), suppress(ImportError):
        importlib.import_module(_MODULE)
