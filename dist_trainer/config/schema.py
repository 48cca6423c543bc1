"""JSON Schemas of the run file and of DeepSpeed's file, for editors. This command writes the folder `schemas/`:

python -m dist_trainer.config.schema schemas
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_trainer.config.deepspeed.schema import deepspeed_schema
from dist_trainer.config.run import RunConfig


def run_schema() -> dict[str, Any]:
    """Generated from the pydantic models that validate a run file. Checks across several keys are not in it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def dump(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, indent=1) + "\n"


SCHEMAS = {"run.json": run_schema, "deepspeed.json": deepspeed_schema}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SCHEMAS.items():
        (folder / name).write_text(dump(make()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "schemas"))
