"""The table of DeepSpeed's keys as a JSON Schema, with which an editor completes and checks a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_trainer.config.deepspeed.check import AUTO, accepts_auto, says_nothing
from dist_trainer.config.deepspeed.keys import FREE_FORM, Key, Rows, children
from dist_trainer.config.deepspeed.params import (
    DEEPSPEED_OPTIMIZERS,
    TORCH_OPTIMIZERS,
    Params,
    optimizer_params,
    scheduler_table,
)

_REMARKS: dict[str, Any] = {"^_": {}}


def deepspeed_schema() -> dict[str, Any]:
    """What the table alone can tell: names, kinds, ranges, where "auto" may stand. Not what follows from two keys."""
    top = _block(Params(children()[""]), "")
    top["properties"] = {"$schema": {"type": "string"}, **top["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "DeepSpeed's configuration, as dist_trainer reads it",
        **top,
    }


def _block(params: Params, path: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": _properties(params.rows, path)}
    if params.required:
        schema["required"] = list(params.required)
    if not params.open_ended:
        schema |= {"patternProperties": _REMARKS, "additionalProperties": False}
    return schema


def _properties(rows: Rows, path: str) -> dict[str, Any]:
    return {name: _key(key, f"{path}.{name}" if path else name) for name, key in rows.items()}


def _key(key: Key, path: str) -> dict[str, Any]:
    if key.refused is not None:
        return {"not": {}, "description": f"{key.refused}; {key.instead}"}
    alternatives = [key.type.schema]
    if path in children() and path not in FREE_FORM:
        inside = _by_type(path) if path in ("optimizer", "scheduler") else _block(Params(children()[path]), path)
        alternatives = [inside if schema == {"type": "object"} else schema for schema in _each(key.type.schema)]
    if accepts_auto(path, key):
        alternatives.append({"const": AUTO})
    if says_nothing(None, path, key):
        alternatives.append({"type": "null"})
    schema = dict(alternatives[0]) if len(alternatives) == 1 else {"anyOf": alternatives}
    described = _description(key)
    return {**schema, "description": described} if described else schema


def _each(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema["anyOf"]) if set(schema) == {"anyOf"} else [schema]


def _description(key: Key) -> str:
    said = []
    if key.alias_of is not None:
        said.append(f"the same as {key.alias_of}")
    if key.auto is not None:
        said.append(f'"auto": {key.auto.says}')
    if key.idle is not None:
        said.append(f"does nothing here: {key.idle}")
    return "; ".join(said)


def _by_type(path: str) -> dict[str, Any]:
    """A block whose `params` follow from its `type`."""
    block = _block(Params(children()[path]), path)
    if path == "optimizer":
        # DeepSpeed takes the names of its own optimizers in any case; an editor offers the usual spellings.
        kinds = {kind: optimizer_params(kind) for kind in TORCH_OPTIMIZERS}
        kinds |= {kind: optimizer_params(kind) for kind in (*DEEPSPEED_OPTIMIZERS, "Lamb", "Lion")}
        block["properties"]["type"] = {"anyOf": [{"enum": list(kinds)}, {"type": "string"}]}
    else:
        kinds = dict(scheduler_table())
        block["properties"]["type"] = {"enum": list(kinds)}
    block["allOf"] = [
        {
            "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
            "then": {"properties": {"params": _block(params, f"{path}.params")}},
        }
        for kind, params in kinds.items()
    ]
    return block
