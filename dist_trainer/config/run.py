"""The run file (YAML): model, data, phases, checkpoints, memory, targets; all that DeepSpeed's JSON does not say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from dist_trainer.config import strict_yaml
from dist_trainer.errors import UserError
from dist_trainer.units import parse_bytes

# torch and numpy use 64-bit integers.
_MOST = 2**63 - 1


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"a name with characters that cannot be printed: {text[:80]!r}")
    return text


def _of_a_file(text: str) -> str:
    """Accepts any file name: bytes except NUL, those that are not UTF-8 as Python's surrogate escapes."""
    try:
        is_name = "\0" not in text and bool(text.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise ValueError(f"not a name that a file could have: {text[:80]!r}")
    return text


Bytes = Annotated[
    int,
    BeforeValidator(lambda value: parse_bytes(value) if isinstance(value, str) else value),
    Field(gt=0, le=_MOST),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
Positive = Annotated[int, Field(gt=0, le=_MOST)]
NotNegative = Annotated[int, Field(ge=0, le=_MOST)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
FileName = Annotated[str, AfterValidator(_of_a_file)]
Loss = Literal["full", "fused", "chunked"]
MIN_SAMPLE_EVERY_S = 0.01


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The shape of the transformer, and how its loss is computed: `fused` holds the [tokens, vocab] logits once, in the
    weights' precision; `chunked` does not even hold those in fp32, for more time; `full` also holds copies in fp32.
    `pad_vocab`: pad the embedding to a multiple of 128 rows, which some matrix products are faster with; the padding is
    no part of the model.

    The limits are what no transformer has come near, but for layers, of which DeepNet (Wang et al. 2022) has 1,000. A
    larger number is a slip, and a plan for it would take hours or overflow.
    """

    num_layers: Annotated[int, Field(gt=0, le=1_000)]
    hidden_size: Annotated[int, Field(gt=0, le=2**20)]
    num_heads: Positive
    vocab_size: Annotated[int, Field(gt=0, le=2**24)]
    context_length: Annotated[int, Field(gt=0, le=2**27)]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    loss: Loss = "fused"
    pad_vocab: bool = False

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class DataConfig(_Section):
    """`source`: 'stdlib' (the built-in corpus), a prepared folder, a folder with train.bin/val.bin, or a .bin file.

    `num_workers`: data loader workers per rank; null derives the number from the host's cores.
    """

    source: FileName = "stdlib"
    num_workers: NotNegative | None = None
    prefetch_factor: Positive = 2


class PhaseConfig(_Section):
    """A phase of training: `steps` optimizer steps, or as many as it takes to read `tokens` tokens."""

    name: Name
    sequence_length: Positive
    steps: Positive | None = None
    tokens: Positive | None = None
    data: FileName | None = None

    @model_validator(mode="after")
    def _one_length(self) -> PhaseConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("a phase says either `steps` or `tokens`")
        return self


class CheckpointConfig(_Section):
    """A checkpoint every so many steps or minutes (0: not for that reason), or with `every: auto` as often as is best
    by what a save costs and by the failures so far; and with `at_end` after each phase.

    `background`: written while the run goes on. `when_busy`: what happens to a checkpoint that is due while the one
    before it is still being written. `on_failure`: what happens to the run if one cannot be written. `keep_newest`: how
    many are kept (0: all), beside those of every `keep_every_steps`-th step (0: none). `stop_signals`: beside TERM, INT
    and HUP, signals at which the run saves and ends; `stop_within_s`: at the latest so many seconds after the signal it
    ends, saved or not.
    """

    every: Literal["auto"] | None = None
    every_steps: NotNegative = 0
    every_minutes: Annotated[float, Field(ge=0.0)] = 0.0
    at_end: bool = True
    background: bool = True
    when_busy: Literal["wait", "skip"] = "wait"
    on_failure: Literal["continue", "stop"] = "continue"
    keep_newest: NotNegative = 0
    keep_every_steps: NotNegative = 0
    stop_signals: Annotated[tuple[Literal["USR1", "USR2"], ...], Field(strict=False)] = ("USR1",)
    stop_within_s: Annotated[float, Field(gt=0.0)] = 120.0

    @property
    def within_phases(self) -> bool:
        """Whether any is saved before the end of a phase."""
        return self.every == "auto" or self.every_steps > 0 or self.every_minutes > 0

    @property
    def saves_at_all(self) -> bool:
        """Whether any is saved; if not, none is at a signal either."""
        return self.within_phases or self.at_end

    @model_validator(mode="after")
    def _one_cadence(self) -> CheckpointConfig:
        said = [f"{key} {getattr(self, key):g}" for key in ("every_steps", "every_minutes") if getattr(self, key)]
        if self.every == "auto" and said:
            raise ValueError(
                f"`every: auto` contradicts {' and '.join(said)}: leave out one (null for `every`, 0 for others)"
            )
        return self


class MemoryConfig(_Section):
    """Memory hygiene, and how often memory is recorded. 0 means never. `gc_every_steps` applies only if the JSON's
    `disable_python_gc` turns automatic garbage collection off.
    """

    gc_every_steps: NotNegative = 100
    empty_cache_every_steps: NotNegative = 0
    expandable_segments: bool = True
    record_every_steps: Positive = 1
    sample_every_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 0.1

    @model_validator(mode="after")
    def _samples_are_bearable(self) -> MemoryConfig:
        if 0 < self.sample_every_s < MIN_SAMPLE_EVERY_S:
            raise ValueError(f"sample_every_s is 0, for never, or at least {MIN_SAMPLE_EVERY_S}")
        return self


class TargetConfig(_Section):
    """What one GPU took before (baseline) and what it may take now (target); judged on device memory in use."""

    baseline_bytes: Bytes
    target_bytes: Bytes


class EvaluationConfig(_Section):
    """How many validation micro batches each rank evaluates after each phase; 0 turns evaluation off."""

    num_batches: NotNegative = 8


class RunConfig(_Section):
    """A whole run file. `deepspeed` names the JSON that is used if no `--ds` is given. `matmul` is the precision in
    which fp32 matrices are multiplied: `tf32` on GPUs, `bf32` (factors in bf16, sums in fp32) on CPUs, `auto` either.
    `compile_if_faster`: what the JSON's `compile` asks for is tried in the run, and kept if it makes steps faster.
    """

    name: Name
    deepspeed: FileName
    seed: NotNegative = 1337
    matmul: Literal["fp32", "tf32", "bf32", "auto"] = "fp32"
    compile_if_faster: bool = False
    model: ModelConfig
    data: DataConfig = DataConfig()
    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1, strict=False)]
    checkpoints: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    memory: MemoryConfig = MemoryConfig()
    targets: TargetConfig | None = None

    @model_validator(mode="after")
    def _phases_are_sound(self) -> RunConfig:
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are named {name!r}")
        for number, phase in enumerate(self.phases, start=1):
            if phase.sequence_length > self.model.context_length:
                raise ValueError(
                    f"phase {number} ({phase.name}) has sequence_length {phase.sequence_length}, beyond the model's "
                    f"context_length {self.model.context_length}"
                )
        return self


def read(path: Path) -> dict[str, Any]:
    """Parses a run file to a plain mapping. Raises UserError if the file is missing or is not YAML."""
    try:
        raw = strict_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot read the run file", where=str(path), found=str(error)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise UserError(f"the run file is not valid YAML: {problem}", where=place) from error
    if not isinstance(raw, dict):
        raise UserError(
            "a run file is a mapping of keys",
            where=str(path),
            found=type(raw).__name__,
            expected=f"the keys {', '.join(RunConfig.model_fields)}",
        )
    return raw


def check(raw: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validates a mapping against the models. Raises UserError with every mistake, the first one in detail."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        mistakes = [_explain(mistake) for mistake in error.errors()]
    first = mistakes[0]
    others = [f"{key}: {problem}" for key, problem, _, _ in mistakes[1:]]
    problem = first[1] if not others else "; ".join([first[1], *others])
    raise UserError(problem, where=source, key=first[0], found=first[2], hint=first[3])


def _explain(mistake: Any) -> tuple[str, str, object, str | None]:
    key = ".".join(str(part) for part in mistake["loc"])
    kind, value = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        known = _fields_at(mistake["loc"][:-1])
        name = str(mistake["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return key, "unknown key in the run file", name, hint
    if kind == "missing":
        return key, f"the run file lacks `{key}`", None, f"add `{key}`"
    if kind == "less_than_equal":
        return key, "larger than it can be", value, f"give at most {mistake['ctx']['le']:,}"
    message = mistake["msg"].removeprefix("Value error, ")
    found = None if isinstance(value, (dict, list)) or kind == "value_error" else value
    return key, message[:1].lower() + message[1:], found, None


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    section: Any = RunConfig
    sections = {
        "model": ModelConfig,
        "data": DataConfig,
        "phases": PhaseConfig,
        "checkpoints": CheckpointConfig,
        "evaluation": EvaluationConfig,
        "memory": MemoryConfig,
        "targets": TargetConfig,
    }
    for part in location:
        section = sections.get(str(part), section)
    return list(section.model_fields)


def dump(config: RunConfig) -> str:
    """A run file that gives this configuration again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
