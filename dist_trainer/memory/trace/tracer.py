"""Traces the model's real forward and backward under fake tensors on the CPU: no weights, almost no memory.

The device is always "cpu": a fake "cuda" device aborts the process where there is no GPU. Where CUDA's kernels keep
other things than the CPU's, a trace for CUDA puts the CUDA form in: dropout keeps a bool mask, and attention stays
fused when it drops out.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dist_trainer.config.run import ModelConfig
from dist_trainer.memory.trace.record import (
    ACTIVATIONS,
    ALLOC,
    BACKWARD,
    BACKWARD_ENTER,
    BACKWARD_EXIT,
    FORWARD_ENTER,
    FORWARD_EXIT,
    FREE,
    GRADIENT,
    LOSS,
    Event,
    Trace,
    TracedParameter,
    TraceSpec,
)
from dist_trainer.model import size
from dist_trainer.model.checkpointing import Checkpointing
from dist_trainer.model.gpt import GPT

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _StorageLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records an event for each storage that is allocated or freed while the mode is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.part = ACTIVATIONS
        self.is_paused = False
        self._ids: dict[int, int] = {}
        self._refs: dict[int, Any] = {}
        self._next_id = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # By default torch wraps each dispatch to keep its compiler out, which takes a tenth of the time. Nothing is
        # compiled here.
        return False

    def know(self, tensor: Tensor) -> None:
        """Registers a storage that is not counted: no event is recorded for it, even when it is freed."""
        storage = tensor.untyped_storage()
        self._ids[storage._cdata] = -1
        self._refs[storage._cdata] = storage

    def id_of(self, tensor: Tensor) -> int:
        return self._ids[tensor.untyped_storage()._cdata]

    def mark(self, kind: int, first: int = 0, second: int = 0) -> None:
        self.events.append((kind, first, second, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._see(result)
            return result
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ids:
            return
        if self.is_paused:
            self.know(tensor)
            return
        number = self._next_id
        self._next_id += 1
        self._ids[key] = number
        self.events.append((ALLOC, number, storage.nbytes(), self.part))

        def died(_: Any) -> None:
            del self._ids[key], self._refs[key]
            self.events.append((FREE, number, 0, 0))

        self._refs[key] = weakref.ref(storage, died)


def trace(spec: TraceSpec) -> Trace:
    """Runs one micro batch, forward and backward, under fake tensors, and returns what it allocated."""
    torch.manual_seed(0)
    with _no_collector(), FakeTensorMode(), ExitStack() as stack:
        model = _model(spec)
        if spec.cuda:
            stack.enter_context(_cuda_kernels())
        if spec.efficient_linear:
            stack.enter_context(_efficient_linear())
        numbers = {parameter: number for number, parameter in enumerate(model.parameters())}
        tokens = torch.zeros(spec.micro_batch, spec.sequence_length, dtype=torch.long)
        log = _StorageLog()
        for tensor in (*numbers, tokens):
            log.know(tensor)
        modules = _watch(model, numbers, log)
        on_host = stack.enter_context(_saved_on_host(log)) if spec.cuda else []
        with log:
            with torch.autocast("cpu", _DTYPES[spec.autocast]) if spec.autocast else nullcontext():
                loss = model(tokens, tokens)
            log.mark(BACKWARD)
            loss.backward()
            del loss
        group_of = {p: number for number, group in enumerate(model.parameter_groups()) for p in group["params"]}
        return Trace(
            parameters=tuple(
                TracedParameter(name, parameter.numel(), group_of[parameter])
                for name, parameter in model.named_parameters()
            ),
            modules=modules,
            events=tuple(log.events),
            saved_on_host_bytes=sum(on_host),
            num_saved_on_host=len(on_host),
            linears=tuple(_linears(model, numbers, spec)),
        )


def _model(spec: TraceSpec) -> GPT:
    config = ModelConfig(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        num_heads=spec.num_heads,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        dropout=spec.dropout,
        loss=spec.loss,
        pad_vocab=spec.pad_vocab,
    )
    checkpointing = Checkpointing(spec.num_checkpoints, cpu=spec.cpu_checkpointing) if spec.checkpointing else None
    previous = torch.get_default_dtype()
    # Not model.to(dtype): tied weights cannot be swapped under fake tensors.
    torch.set_default_dtype(_DTYPES[spec.dtype])
    try:
        with torch.device("cpu"), _no_initialisation():
            return GPT(config, checkpointing).train()
    finally:
        torch.set_default_dtype(previous)


def _watch(model: GPT, numbers: dict[nn.Parameter, int], log: _StorageLog) -> tuple[tuple[int, ...], ...]:
    """Records where modules begin and end and where gradients are complete, at the points where ZeRO has its hooks.

    Returns the parameters that each module owns.
    """
    owned = []
    for number, module in enumerate(model.modules()):
        mine = [numbers[parameter] for parameter in module.parameters(recurse=False)]
        if module is model:
            # The output embedding is the input's weight: ZeRO-3 makes it an external parameter of the whole model.
            mine.append(numbers[model.get_parameter("token_embedding.weight")])
        owned.append(tuple(sorted(mine)))
        if mine:
            _watch_module(module, number, log)
    for parameter, number in numbers.items():
        parameter.register_post_accumulate_grad_hook(_gradient_hook(number, log))  # type: ignore[no-untyped-call]
    _watch_loss(model, log)
    return tuple(owned)


def _linears(model: GPT, numbers: dict[nn.Parameter, int], spec: TraceSpec) -> Iterator[tuple[int, int]]:
    # The other losses make their matrix products themselves, without F.linear.
    if spec.loss == "full":
        yield 0, numbers[model.get_parameter("token_embedding.weight")]
    for number, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear):
            yield number, numbers[model.get_parameter(f"{name}.weight")]


def _watch_module(module: nn.Module, number: int, log: _StorageLog) -> None:
    grads_remaining = [0]

    class BeforeBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, output: Tensor) -> Tensor:
            return output.detach()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            log.mark(BACKWARD_ENTER, number)
            return grads

    class AfterBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            if value.requires_grad:
                grads_remaining[0] += 1
            return value.detach()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            grads_remaining[0] -= 1
            if grads_remaining[0] == 0:
                log.mark(BACKWARD_EXIT, number)
            return grads

    def enter(_: nn.Module, values: Any) -> Any:
        log.mark(FORWARD_ENTER, number)
        grads_remaining[0] = 0
        return tuple(
            AfterBackward.apply(value)  # type: ignore[no-untyped-call]
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for value in values
        )

    def leave(_: nn.Module, values: Any, output: Tensor) -> Any:
        log.mark(FORWARD_EXIT, number)
        return BeforeBackward.apply(output)  # type: ignore[no-untyped-call]

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _gradient_hook(number: int, log: _StorageLog) -> Callable[[Tensor], None]:
    def complete(parameter: Tensor) -> None:
        assert parameter.grad is not None
        log.mark(GRADIENT, number, log.id_of(parameter.grad))
        parameter.grad = None

    return complete


def _watch_loss(model: GPT, log: _StorageLog) -> None:
    inner = model.loss_function

    def marked(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        log.part = LOSS

        def passed(_: Tensor) -> None:
            log.part = ACTIVATIONS

        hidden.register_hook(passed)  # type: ignore[no-untyped-call]
        return inner(hidden, weight, targets, vocab_size)

    model.loss_function = marked


@contextmanager
def _no_collector() -> Iterator[None]:
    """Turns the garbage collector off: it would free storages at arbitrary moments, and takes time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _no_initialisation() -> Iterator[None]:
    """Fake weights have no values; skipping the random numbers saves most of the time of building the model."""
    kept = {name: getattr(nn.init, name) for name in ("normal_", "zeros_", "kaiming_uniform_", "uniform_", "ones_")}
    for name in kept:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(nn.init, name, function)


@contextmanager
def _cuda_kernels() -> Iterator[None]:
    """CUDA's dropout keeps a bool mask; its fused attention drops out without one; the fused loss takes more rows."""
    dropout, attention, rows = F.dropout, F.scaled_dot_product_attention, size.fused_rows

    def cuda_dropout(value: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(value, p, training)[0] if training and p > 0 else value

    def fused_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        return attention(query, key, value, **{**kwargs, "dropout_p": 0.0})

    F.dropout, F.scaled_dot_product_attention = cuda_dropout, fused_attention  # type: ignore[assignment]
    size.fused_rows = lambda vocab_size, *, cuda: rows(vocab_size, cuda=True)
    try:
        yield
    finally:
        F.dropout, F.scaled_dot_product_attention, size.fused_rows = dropout, attention, rows


class _EfficientLinear(torch.autograd.Function):
    """Allocates what DeepSpeed 0.19.8's replacement of F.linear at stage 3 does (zero/linear.py).

    It keeps the parameter itself, not a view or a cast copy, and its gradients are tensors of their own.
    """

    @staticmethod
    def forward(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if value.dim() == 2 and bias is not None:
            return torch.addmm(bias, value, weight.t())
        output = value.matmul(weight.t())
        if bias is not None:
            output += bias
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_autocast = torch.is_autocast_enabled("cpu")
        ctx.dtype = torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        value, weight, *bias = ctx.saved_tensors
        with torch.autocast("cpu", ctx.dtype, enabled=ctx.is_autocast):
            grad_value = grad.matmul(weight) if ctx.needs_input_grad[0] else None
            flat = grad.reshape(-1, grad.shape[-1])
            grad_weight = flat.t().matmul(value.reshape(-1, value.shape[-1]))
            grad_bias = grad.sum(list(range(grad.dim() - 1))) if bias and bias[0] is not None else None
        return (grad_value, grad_weight, grad_bias)[: len(ctx.needs_input_grad)]


@contextmanager
def _efficient_linear() -> Iterator[None]:
    linear = F.linear

    def efficient(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _EfficientLinear.apply(value, weight, bias)  # type: ignore[no-any-return, no-untyped-call]

    F.linear = efficient  # type: ignore[assignment]
    try:
        yield
    finally:
        F.linear = linear


@contextmanager
def _saved_on_host(log: _StorageLog) -> Iterator[list[int]]:
    """Keeps the copies that `save_on_cpu` makes in host memory out of the log; yields their sizes in bytes."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        log.is_paused = True
        on_host = torch.empty_like(tensor)
        log.is_paused = False
        return on_host

    def unpack(tensor: Tensor) -> Tensor:
        return tensor.clone()

    real = torch.autograd.graph.save_on_cpu
    hooks = torch.autograd.graph.saved_tensors_hooks
    torch.autograd.graph.save_on_cpu = lambda pin_memory: hooks(pack, unpack)  # type: ignore[assignment, misc]
    try:
        yield sizes
    finally:
        torch.autograd.graph.save_on_cpu = real  # type: ignore[misc]
