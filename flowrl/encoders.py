"""State encoders E_φ: observations (B, …) → features (B, hidden) (paper, section 3.1, Table A.2)."""

import math

import torch
from torch import Tensor, nn


class MLPEncoder(nn.Module):
    """Two hidden layers over the flattened observation."""

    def __init__(self, observation_shape: tuple[int, ...], hidden: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(observation_shape), hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
        )

    def forward(self, observation: Tensor) -> Tensor:
        """Observation (B, …) float32 → (B, hidden)."""
        return self.net(observation)


class GraphEncoder(nn.Module):
    """One round of messages over the city's graph, with a learnt identity for every node, then a layer over all nodes.

    h_k = relu(W [x_k, Σ_m Â_km x_m] + e_k), features = relu(U [h_1 … h_K] + u), with Â the adjacency, rows summing
    to one. The identity e_k, and U, tell symmetric districts apart.
    """

    neighbours: Tensor  # Â, (K, K)

    def __init__(self, adjacency: Tensor, n_inputs: int, hidden: int, node_hidden: int = 16):
        super().__init__()
        self.register_buffer("neighbours", (adjacency / adjacency.sum(-1, keepdim=True)).float(), persistent=False)
        n_nodes = len(adjacency)
        self.node = nn.Linear(2 * n_inputs, node_hidden, bias=False)
        self.identity = nn.Parameter(torch.randn(n_nodes, node_hidden) / math.sqrt(node_hidden))
        self.out = nn.Linear(n_nodes * node_hidden, hidden)

    def forward(self, observation: Tensor) -> Tensor:
        """Observation (B, K, n_inputs) float32 → (B, hidden)."""
        messages = self.neighbours @ observation
        nodes = (self.node(torch.cat((observation, messages), -1)) + self.identity).relu()
        return self.out(nodes.flatten(1)).relu()


class CNNEncoder(nn.Module):
    """Three strided convolutions over an image of `observation_shape` (planes, height, width), then a layer.

    What most of an image is, its background, should not drown the rest: it is subtracted, so that it is 0.
    background: (planes,), from 0 to 255; default white. Further planes that an observation has are left out. ValueError
    for an image under 36 × 36.
    """

    background: Tensor

    KERNELS = ((16, 8, 4), (32, 4, 2), (32, 3, 2))  # channels, size, stride

    def __init__(self, observation_shape: tuple[int, int, int], hidden: int, background: Tensor | None = None):
        super().__init__()
        self.planes, *sides = observation_shape
        background = torch.full((self.planes,), 255.0) if background is None else background.float()
        self.register_buffer("background", (background / 255)[:, None, None])
        if min(sides) < 36:
            raise ValueError(f"images are {sides[0]} × {sides[1]}; allowed: at least 36 × 36")
        layers, channels = [], self.planes
        for out, size, stride in self.KERNELS:
            layers += [nn.Conv2d(channels, out, size, stride), nn.ReLU()]
            channels, sides = out, [(side - size) // stride + 1 for side in sides]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(sides), hidden), nn.ReLU())

    def forward(self, observation: Tensor) -> Tensor:
        """Observation (B, ≥ planes, height, width) uint8 → (B, hidden)."""
        pixels = observation[:, : self.planes].float()
        return self.net(pixels.mul_(-1 / 255).add_(self.background))


class PartsEncoder(nn.Module):
    """Pictures, a CNN each, and the rest, an MLP, then a layer over all: of observations that are bytes in a row.

    pictures: shapes (planes, height, width); n_numbers: float32 numbers behind them; backgrounds: of the pictures.
    """

    def __init__(
        self,
        pictures: list[tuple[int, int, int]],
        n_numbers: int,
        hidden: int,
        backgrounds: list[Tensor] | None = None,
    ):
        super().__init__()
        behind = backgrounds or [None] * len(pictures)
        self.pictures, self.n_numbers = pictures, n_numbers
        self.sizes = [*map(math.prod, pictures), 4 * n_numbers]
        self.encoders = nn.ModuleList(
            CNNEncoder(shape, hidden, ground) for shape, ground in zip(pictures, behind, strict=True)
        )
        if n_numbers:
            self.encoders.append(MLPEncoder((n_numbers,), hidden))
        self.out = nn.Linear(len(self.encoders) * hidden, hidden)

    def forward(self, observation: Tensor) -> Tensor:
        """Observation (B, bytes) uint8 → (B, hidden)."""
        *pictures, numbers = observation.split(self.sizes, dim=-1)
        parts = [picture.unflatten(-1, shape) for picture, shape in zip(pictures, self.pictures, strict=True)]
        if self.n_numbers:
            parts.append(numbers.clone(memory_format=torch.contiguous_format).view(torch.float32))
        encoded = [encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)]
        return self.out(torch.cat(encoded, -1)).relu()


def make_encoder(env, hidden: int) -> nn.Module:
    """The encoder that fits an environment's observations: over its graph, its images (uint8), its parts, else an MLP.

    An environment's `encoder_planes` says how many planes of its images the policy may see; default all. Its
    `observation_parts`, if not None, are what `PartsEncoder` takes, its `backgrounds` what lies behind its images.

    >>> from .envs import make_batched
    >>> env = make_batched("ERA-v1", 4)
    >>> make_encoder(env, hidden=32)(env.reset()).shape
    torch.Size([4, 32])
    """
    parts, backgrounds = getattr(env, "observation_parts", None), getattr(env, "backgrounds", [None])
    if parts is not None:
        pictures, n_numbers = parts
        return PartsEncoder(pictures, n_numbers, hidden, backgrounds)
    adjacency = getattr(env, "adjacency", None)
    if adjacency is not None:
        return GraphEncoder(adjacency, env.observation_shape[-1], hidden)
    if getattr(env, "observation_dtype", None) == torch.uint8 and len(env.observation_shape) == 3:
        planes, *sides = env.observation_shape
        return CNNEncoder((getattr(env, "encoder_planes", planes), *sides), hidden, backgrounds[0])
    return MLPEncoder(env.observation_shape, hidden)
