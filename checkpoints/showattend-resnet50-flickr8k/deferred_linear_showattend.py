"""A linear layer for recurrent networks that forms its weight's gradient once, after the last step.

Backpropagation through time adds one small product to the weight's gradient at every step, and each addition reads
and writes the whole matrix. The sum of these products equals one product of the stacked inputs and output gradients,
which passes over the matrix once and uses the hardware better.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether using `module`'s weights directly is the same as calling it: it is exactly a `kind`, without hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    # accelerate replaces `forward` on the instance.
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """The dtype of a product with this weight: autocast's if autocast is on, else the weight's own."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def recurrent_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function x -> x @ weight.T + bias, (rows, in) -> (rows, out), to be called at every step of a recurrence.

    Gradients flow as through `torch.nn.functional.linear`, except that a second derivative raises an error.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad) or torch.compiler.is_compiling():
        return lambda x: F.linear(x, weight, bias)
    dtype = product_dtype(weight)  # cast once: autocast would cast at every step
    step_weight, step_bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    products = _Products()
    # A scalar input of every step, so its backward runs after theirs. `products` must not hold it: a reference cycle
    # through autograd's graph would keep every batch in memory until Python's garbage collector runs.
    start = _Start.apply(products, weight, bias)
    return lambda x: _Step.apply(products, x.to(dtype), start, step_weight, step_bias)


class _Products:
    """The factors of the weight's gradient that one backward pass has collected so far."""

    def __init__(self) -> None:
        self.clear()

    def clear(self, backward_pass: int = -1) -> None:
        self.backward_pass = backward_pass
        self.inputs: list[torch.Tensor] = []
        self.output_grads: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, output_grad: torch.Tensor) -> None:
        # A backward pass for the inputs alone never reaches `_Start`; discard what it left behind.
        if self.backward_pass != torch._C._current_graph_task_id():
            self.clear(torch._C._current_graph_task_id())
        self.inputs.append(x)
        self.output_grads.append(output_grad)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: _Products, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.products, ctx.dtype, ctx.has_bias = products, weight.dtype, bias is not None
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, output_grads = torch.cat(ctx.products.inputs), torch.cat(ctx.products.output_grads)
        ctx.products.clear()
        weight_grad = (output_grads.T @ inputs).to(ctx.dtype)
        return None, weight_grad, output_grads.sum(dim=0, dtype=ctx.dtype) if ctx.has_bias else None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        products: _Products,
        x: torch.Tensor,
        start: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.products = products
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (output_grad,) = grads
        x, weight = ctx.saved_tensors
        ctx.products.add(x, output_grad)
        return None, output_grad @ weight, output_grad.new_zeros(()), None, None
