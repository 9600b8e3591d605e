"""The optimisers that A2C descends with (paper, Table A.2: "RMSprop", of which there are two), and what they step."""

from itertools import chain

import torch
from torch import nn


class RMSpropTF(torch.optim.Optimizer):
    """TensorFlow's RMSprop: v ← α v + (1 − α) g², θ ← θ − lr g / √(v + ε), v = 1 to begin with.

    torch's begins with v = 0 and divides by √v + ε: its first step is lr / √(1 − α) along every g's sign. Here a first
    step is lr g, and no step is longer than lr |g| / √ε: a gradient well under √ε in size moves little, however steady.

    >>> p = nn.Parameter(torch.zeros(()))
    >>> p.grad = torch.ones(())
    >>> RMSpropTF([p], lr=0.1).step()
    >>> p.data
    tensor(-0.1000)
    """

    def __init__(self, params, lr: float, alpha: float = 0.99, eps: float = 1e-5):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "square_avg" not in self.state[p]:
                    self.state[p]["square_avg"] = torch.ones_like(p)
                square = self.state[p]["square_avg"].mul_(group["alpha"])
                square.addcmul_(p.grad, p.grad, value=1 - group["alpha"])
                p.addcdiv_(p.grad, square.add(group["eps"]).sqrt_(), value=-group["lr"])


OPTIMISERS = {"rmsprop": torch.optim.RMSprop, "rmsprop_tf": RMSpropTF}


def flat_parameters(*modules: nn.Module) -> nn.Parameter:
    """One parameter that all the modules' parameters, and their gradients, are views of: one step for all of them.

    Its `grad` stays allocated: set it to zero in place, never to None.

    >>> flat = flat_parameters(nn.Linear(3, 4), nn.Linear(4, 1))
    >>> flat.shape, flat.grad.shape
    (torch.Size([21]), torch.Size([21]))
    """
    parameters = list(dict.fromkeys(chain.from_iterable(module.parameters() for module in modules)))
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    at = 0
    for p in parameters:
        p.data = flat.data[at : at + p.numel()].view_as(p)
        p.grad = flat.grad[at : at + p.numel()].view_as(p)
        at += p.numel()
    return flat
