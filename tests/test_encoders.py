"""flowrl.encoders: the graph encoder against its formula written out node by node, and what it must tell apart."""

from types import SimpleNamespace

import torch

from flowrl.encoders import GraphEncoder, MLPEncoder, PartsEncoder, make_encoder

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
