"""flowrl.encoders: the graph encoder against its formula written out node by node, and what it must tell apart."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from flowrl.encoders import CNNEncoder, GraphEncoder, MLPEncoder, PartsEncoder, make_encoder
from flowrl.envs.gym import GymBatched

PATH = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.float32)  # 0 − 1 − 2 − 3


def graph_encoder(seed: int = 0) -> GraphEncoder:
    torch.manual_seed(seed)
    return GraphEncoder(PATH, n_inputs=2, hidden=8, node_hidden=5)


def test_graph_encoder_node_by_node():
    encoder, x = graph_encoder(), torch.randn(3, 4, 2)
    weight, expected = encoder.node.weight, []
    for state in x:
        nodes = []
        for k in range(4):
            neighbours = [m for m in range(4) if PATH[k, m]]
            message = sum(state[m] for m in neighbours) / len(neighbours)
            nodes.append((weight @ torch.cat((state[k], message)) + encoder.identity[k]).relu())
        expected.append((encoder.out.weight @ torch.cat(nodes) + encoder.out.bias).relu())
    torch.testing.assert_close(encoder(x), torch.stack(expected))


def test_graph_encoder_tells_symmetric_districts_apart():
    """The path mirrored is the same graph: without identities, district 0 and district 3 would look alike."""
    encoder, x = graph_encoder(), torch.zeros(2, 4, 2)
    x[0, 0, 0] = x[1, 3, 0] = 1
    features = encoder(x)
    assert not torch.isclose(features[0], features[1]).all()
    blind = torch.cat((x, encoder.neighbours @ x), -1) @ encoder.node.weight.T
    torch.testing.assert_close(blind[0].sum(0), blind[1].sum(0))  # what a sum over nodes would see


def test_graph_encoder_trains_every_parameter():
    encoder = graph_encoder()
    encoder(torch.rand(64, 4, 2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_encoders_treat_states_apart():
    """No normalisation over the batch: a state's features do not depend on its company."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, 2)
    for encoder in (graph_encoder(), MLPEncoder((4, 2), 8)):
        torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]))
        assert encoder(x).shape == (6, 8)


def test_mlp_encoder_flattens_any_observation():
    torch.manual_seed(0)
    encoder, x = MLPEncoder((2, 3, 4), 8), torch.randn(5, 2, 3, 4)
    first, second = (layer for layer in encoder.net if isinstance(layer, torch.nn.Linear))
    expected = torch.tanh(torch.tanh(x.reshape(5, 24) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(encoder(x), expected)


def test_make_encoder_follows_the_environment():
    graph = SimpleNamespace(adjacency=PATH, observation_shape=(4, 2))
    plain = SimpleNamespace(observation_shape=(4, 2))
    assert isinstance(make_encoder(graph, 8), GraphEncoder)
    assert isinstance(make_encoder(plain, 8), MLPEncoder)
    for env in (graph, plain):
        assert make_encoder(env, 8)(torch.zeros(3, 4, 2)).shape == (3, 8)


def test_parts_are_read_each_by_its_own_encoder():
    """Bytes in a row: features agree with the parts' own encoders, and every part moves them."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encoder = PartsEncoder([(3, 36, 40), (1, 48, 36)], 5, 8)
    pictures = [torch.randint(256, (2, *shape), generator=generator, dtype=torch.uint8) for shape in encoder.pictures]
    numbers = torch.randn(2, 5, generator=generator)
    rows = torch.cat((*(picture.flatten(1) for picture in pictures), numbers.view(torch.uint8)), 1)
    own = [read(part) for read, part in zip(encoder.encoders, (*pictures, numbers), strict=True)]
    expected = encoder.out(torch.cat(own, -1)).relu()
    assert torch.equal(encoder(rows), expected) and expected.abs().min(0).values.max() > 0
    for at in (0, 3 * 36 * 40, rows.shape[1] - 1):
        changed = rows.clone()
        changed[:, at : at + 300] ^= 32
        assert not torch.equal(encoder(changed), expected)


def test_the_background_of_a_picture_is_nothing_to_the_encoder():
    """The same figure on another ground is encoded alike; the ground is what most of the first pictures is."""

    class Seen(gymnasium.Env):
        observation_space = spaces.Dict(
            {"eye": spaces.Box(0, 255, (40, 44, 3), np.uint8), "arm": spaces.Box(0, 1, (2,))}
        )
        action_space = spaces.Discrete(2)
        ground = np.array([0, 90, 255], np.uint8)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            eye = np.tile(self.ground, (40, 44, 1))
            eye[3:20, 5:25] = self.np_random.integers(0, 255, (17, 20, 3))
            return {"eye": eye, "arm": np.zeros(2, np.float32)}, {}

    env = GymBatched(Seen, 3, generator=torch.Generator().manual_seed(0))
    assert [ground.tolist() for ground in env.backgrounds] == [[0, 90, 255]]
    encoder = make_encoder(env, 8)
    assert (255 * encoder.encoders[0].background).flatten().tolist() == pytest.approx([0, 90, 255])

    figure = torch.randint(0, 100, (2, 3, 40, 44), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    torch.manual_seed(0)
    one = CNNEncoder((3, 40, 44), 8, torch.tensor([0.0, 0, 0]))
    other = CNNEncoder((3, 40, 44), 8, torch.tensor([100.0, 50, 155]))
    other.net.load_state_dict(one.net.state_dict())
    moved = figure + torch.tensor([100, 50, 155], dtype=torch.uint8)[:, None, None]
    torch.testing.assert_close(one(figure), other(moved))
    assert not torch.allclose(one(figure), one(moved))
