"""What differs between the run that made a checkpoint and the run that resumes from it: refused, or applied and told.

A resumed run follows the two files as they are now; from the checkpoint come only weights, moments and the position.
Refused are differences with which the checkpoint's states could not be loaded, or would mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import INDEX_FILE, DataFacts, Made
from dist_trainer.config.deepspeed.rules import block
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.encoding import all_as_utf8, as_utf8, printable
from dist_trainer.errors import UserError, cut
from dist_trainer.redact import redacted_config
from dist_trainer.units import counted
from dist_trainer.versions import versions

if TYPE_CHECKING:
    from dist_trainer.data.tokens import TokenFile

_SHAPE = ("num_layers", "hidden_size", "num_heads", "vocab_size", "context_length")
# Keys that do not change the numbers of the training; and the paths of data, because the data itself is compared.
_NEVER_TOLD = (
    *("name", "deepspeed", "targets", "checkpoints", "evaluation", "memory", "data"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger"),
    *("tensorboard", "csv_monitor", "wandb", "comet", "aio"),
)
_NOT_SET = "not set"


def made_by(resolved: ResolvedRun, *, world_size: int, data: Mapping[str, DataFacts]) -> Made:
    """The description of this run for its checkpoints. `data`: by phase name; empty while it is not opened yet."""
    # Converted, because it will be compared with text from a file, which is UTF-8 whatever bytes the names have.
    run = all_as_utf8(resolved.run.model_dump(mode="json"))
    deepspeed = redacted_config(all_as_utf8(resolved.deepspeed))
    return Made(world_size=world_size, run=run, deepspeed=deepspeed, data=dict(data), versions=versions())


def data_facts(tokens: TokenFile) -> DataFacts:
    """The description of a phase's train tokens for checkpoints. Raises RunError if they can be read no longer."""
    return DataFacts(
        path=as_utf8(str(tokens.path)),
        num_tokens=tokens.num_tokens,
        fingerprint=tokens.fingerprint,
        tokenizer=tokens.info.tokenizer_sha256 if tokens.info else None,
    )


def refuse_another_kind(found: Found, now: Made) -> None:
    """Raises UserError for the first thing that must be the same and is not."""
    refuse_imported(found)
    before = found.index.made_by
    for key, read in _must_agree().items():
        was, is_now = read(before), read(now)
        if was != is_now:
            raise _another_kind(found, "this run", key, is_now, repr(was))
    tokenizers = {facts.tokenizer for facts in before.data.values() if facts.tokenizer is not None}
    for facts in now.data.values():
        if tokenizers and facts.tokenizer is not None and facts.tokenizer not in tokenizers:
            raise _another_kind(found, facts.path, "tokenizer_sha256", facts.tokenizer, " or ".join(sorted(tokenizers)))


def refuse_imported(found: Found) -> None:
    """Raises UserError for weights of another program: there is neither a position nor an optimizer's state."""
    imported_from = found.index.made_by.imported_from
    if imported_from is not None:
        raise UserError(
            "the checkpoint has weights alone, from which a run can begin but not resume",
            where=str(found.folder),
            found=f"imported from {_shown(imported_from)}",
            hint=f"begin a run from it with --init-from {found.folder}",
        )


def differences(found: Found, now: Made) -> list[str]:
    """One line for each thing that the resumed run does differently from here on."""
    before = found.index.made_by
    lines = []
    if before.world_size != now.world_size:
        lines.append(f"the run has {counted(now.world_size, 'rank')}, and had {before.world_size}")
    for old, new in ((before.run, now.run), (before.deepspeed, now.deepspeed)):
        was, is_now = _flat(old), _flat(new)
        for key in dict.fromkeys((*was, *is_now)):
            values = was.get(key, _NOT_SET), is_now.get(key, _NOT_SET)
            if values[0] != values[1] and key.split(".")[0] not in _NEVER_TOLD:
                lines.append(f"{_shown(key)} is {_shown(values[1])}, and was {_shown(values[0])}")
    return [*lines, *_other_data(found, now)]


def _other_data(found: Found, now: Made) -> Iterator[str]:
    known = {order.partition("/")[0] for order in found.index.position.places}
    for phase, facts in now.data.items():
        was = found.index.made_by.data.get(phase)
        if was is None or was.fingerprint == facts.fingerprint:
            continue
        start = "from where it had been read to" if facts.fingerprint in known else "from its beginning"
        yield (
            f"phase {phase} reads other data: {_shown(facts.path)} ({counted(facts.num_tokens, 'token')}) {start}, "
            f"and read {_shown(was.path)} ({counted(was.num_tokens, 'token')})"
        )


def _must_agree() -> dict[str, Callable[[Made], Any]]:
    shape: dict[str, Callable[[Made], Any]] = {
        f"model.{name}": lambda made, name=name: block(made.run, "model").get(name)  # type: ignore[misc]
        for name in _SHAPE
    }
    return {
        **shape,
        "optimizer.type": lambda made: str(block(made.deepspeed, "optimizer").get("type")).lower(),
    }


def _another_kind(found: Found, where: str, key: str, is_now: object, was: str) -> UserError:
    return UserError(
        f"the checkpoint {found.folder} was made by another kind of run",
        where=where,
        key=key,
        found=is_now,
        expected=f"{was}, as {INDEX_FILE} of the checkpoint says",
        hint="start the run as it was (RUN_DIR/resolved/), or anew with --resume never",
    )


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values by dotted keys, with phases under their names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if path == "" and name == "phases":
            value = _by_name(value)
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{path}{name}."))
        elif not (name == "data" and path.startswith("phases.")):
            flat[path + name] = value
    return flat


def _by_name(phases: Any) -> Any:
    """What is no list of phases is left as it is: it comes from a file that somebody else may have made."""
    if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
        return phases
    return {str(phase.get("name")): {key: part for key, part in phase.items() if key != "name"} for phase in phases}


def _shown(value: Any) -> str:
    """For people, even where a stranger's checkpoint says it: short, and without control characters."""
    return printable(cut(value if isinstance(value, str) else repr(value)))
