"""Networks: shapes, two times, anchor, forward-mode derivatives against finite differences, refusals."""

import json

import numpy as np
import pytest
import torch
from exact import one_line, randomise
from torch import nn

from iflow_lib.networks import (
    MLP,
    NETWORKS,
    Transformer,
    UNet,
    UNet1d,
    register_network,
    time_features,
)

CASES = [
    ("MLP", dict(dim=1, hidden=8, layers=1)),
    ("MLP", dict(dim=2, hidden=16, layers=3)),
    ("MLP", dict(dim=24, hidden=8, layers=2)),
    ("MLP", dict(dim=2, hidden=16, layers=2, frequencies=2, gap_frequencies=1)),
    *[
        ("UNet", dict(channels=c, size=n, width=8, blocks=1))
        for n in (8, 16, 28, 32)
        for c in (1, 3)
    ],
    ("UNet", dict(channels=3, size=(24, 16), width=8, blocks=1)),
    ("UNet", dict(channels=1, size=(8, 36), width=8, blocks=2)),
    ("UNet", dict(channels=1, size=8, width=8, blocks=1, frequencies=3, gap_frequencies=1)),
    ("UNet1d", dict(length=24, channels=2, width=8, blocks=1)),
    ("UNet1d", dict(length=4, channels=1, width=8, blocks=1)),
    ("UNet1d", dict(length=37, channels=3, width=8, blocks=1, halvings=3)),
    ("Transformer", dict(length=24, channels=1, width=16, layers=2, heads=2)),
    ("Transformer", dict(length=5, channels=3, width=8, layers=1, heads=4)),
]
cases = pytest.mark.parametrize(
    "name, options",
    CASES,
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)


def build(name, options, anchor=False, dtype=torch.float64, n=3):
    net = randomise(NETWORKS[name](**options, anchor=anchor).to(dtype))
    g = torch.Generator().manual_seed(1)
    x, a = torch.randn((2, n, *net.data_shape), generator=g, dtype=dtype)
    s, t = torch.rand(2, n, generator=g, dtype=dtype).sort(dim=0).values
    return net, x, t, s, a


@cases
@pytest.mark.parametrize("anchor", [False, True])
def test_shape_and_every_input_matters(name, options, anchor):
    net, x, t, s, a = build(name, options, anchor)
    extra = (a,) if anchor else ()
    out = net(x, t, s, *extra)
    assert out.shape == x.shape and out.dtype == x.dtype and bool(torch.isfinite(out).all())
    changed = [net(x + 0.1, t, s, *extra), net(x, t + 0.1, s, *extra), net(x, t, s - 0.1, *extra)]
    if anchor:
        changed.append(net(x, t, s, a + 0.1))
    for other in changed:  # each example of the batch feels each input
        assert bool(((other - out).flatten(1).abs().amax(1) > 1e-6).all())


@cases
def test_examples_do_not_mix(name, options):
    net, x, t, s, _ = build(name, options)
    out = net(x, t, s)
    for i in range(len(x)):
        torch.testing.assert_close(
            net(x[i : i + 1], t[i : i + 1], s[i : i + 1])[0], out[i], rtol=1e-10, atol=1e-10
        )


@cases
@pytest.mark.parametrize("anchor", [False, True])
def test_jvp_is_the_finite_difference(name, options, anchor):
    net, x, t, s, a = build(name, options, anchor)
    direction, h = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype),
        1e-6,
    )
    extra = (a,) if anchor else ()

    def along(x, t):
        return net(x, t, s, *extra)

    out, tangent = torch.func.jvp(along, (x, t), (direction, torch.ones_like(t)))
    torch.testing.assert_close(out, net(x, t, s, *extra))
    tangent = tangent.detach()
    with torch.no_grad():
        difference = (along(x + h * direction, t + h) - along(x - h * direction, t - h)) / (2 * h)
    assert float((tangent - difference).norm() / difference.norm()) < 1e-6


@cases
def test_new_network_is_zero_and_all_weights_train(name, options):
    net = NETWORKS[name](**options)
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn((3, *net.data_shape), generator=g), torch.rand(3, generator=g)
    assert bool((net(x, t, t / 2) == 0).all())
    randomise(net)(x, t, t / 2).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


@cases
@pytest.mark.parametrize("anchor", [False, True])
def test_config_rebuilds_the_network(name, options, anchor):
    net = NETWORKS[name](**options, anchor=anchor)
    twin = NETWORKS[name](**net.config())
    assert twin.data_shape == net.data_shape and twin.config() == net.config()
    assert json.loads(json.dumps(net.config())) == net.config()
    twin.load_state_dict(net.state_dict())


def test_time_features():
    s, t = (
        torch.rand(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        .sort(0)
        .values
    )
    f = time_features(t, s, 3)
    assert f.shape == (5, 14) and f.dtype == torch.float64
    angles = torch.stack([v * torch.pi / 2 * 2**k for v in (t, t - s) for k in range(3)], dim=1)
    torch.testing.assert_close(
        f, torch.cat([t[:, None], (t - s)[:, None], angles.sin(), angles.cos()], dim=1)
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(size=7), "size"),
        (dict(size=9), "size"),
        (dict(size=18), "size"),
        (dict(size=30), "size"),
        (dict(size=68), "multiples of 8, so 64 or 72"),
        (dict(size=30), "multiples of 4, so 28 or 32"),
        (dict(size=(48, 30)), "multiples of 4, so 28 or 32"),
        (dict(size=(30, 48)), "multiples of 4, so 28 or 32"),
        (dict(size=136), "multiples of 16, so 128 or 144"),
        (dict(size=(256, 8.5)), "size must be a whole number"),
        (dict(size=(4, 64)), "from 8 to 256"),
        (dict(size=260), "from 8 to 256"),
        (dict(size=(32,)), "a pair (height, width)"),
        (dict(size=(3, 32, 32)), "a pair (height, width)"),
        (dict(size="28"), "size must be"),
        (dict(size=None), "size must be"),
        (dict(size=4), "size"),
        (dict(channels=0), "channels"),
        (dict(width=12), "width"),
        (dict(width=0), "width"),
        (dict(blocks=0), "blocks"),
    ],
)
def test_unet_refuses_bad_sizes(options, words):
    with pytest.raises(ValueError) as error:
        UNet(**options)
    given = next(iter(options.values()))
    assert words in one_line(error) and str(given[1] if given == (256, 8.5) else given) in str(
        error.value
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(dim=0),
        dict(dim=2, hidden=0),
        dict(dim=2, layers=0),
        dict(dim=-1),
        dict(dim="2"),
        dict(dim=2.5),
        dict(dim=(2,)),
        dict(dim=2, hidden=None),
        dict(dim=True),
    ],
)
def test_mlp_refuses_bad_sizes(options):
    with pytest.raises(ValueError) as error:
        MLP(**options)
    assert "must be a whole number of at least 1" in one_line(error)


def test_octaves_of_the_times_of_an_mlp():
    """The first layer sees the times by as many octaves as were asked for, and nothing else of them."""
    plain = MLP(dim=2, hidden=8, layers=1)
    assert plain.hidden[0].in_features == 2 * 7 + 2 + 4 * 2  # of x, of the times, two octaves each
    assert plain.config()["frequencies"] == plain.config()["gap_frequencies"] == 2
    x, t, s = torch.randn(3, 2), torch.rand(3), torch.zeros(3)
    for octaves, gap in ((0, None), (2, None), (3, 1), (2, 0)):
        net = randomise(MLP(2, 8, 1, features=0, frequencies=octaves, gap_frequencies=gap))
        gap = octaves if gap is None else gap
        assert (net.config()["frequencies"], net.config()["gap_frequencies"]) == (octaves, gap)
        inputs = torch.cat([x, time_features(t, s, octaves, gap)], 1)
        expected = net.out(nn.functional.silu(net.hidden[0](inputs)))
        torch.testing.assert_close(net(x, t, s), expected)


def test_octaves_of_the_times_of_a_u_net():
    as_ever = UNet(size=8, width=8, blocks=1)
    assert (as_ever.config()["frequencies"], as_ever.config()["gap_frequencies"]) == (6, 2)
    x, t, s = torch.randn(3, 1, 8, 8), torch.rand(3), torch.zeros(3)
    for octaves, gap in ((6, 2), (2, 1), (3, 3), (0, 0)):
        net = UNet(size=8, width=8, blocks=1, frequencies=octaves, gap_frequencies=gap)
        assert net.embed[0].in_features == 2 + 2 * (octaves + gap)
        given = []
        net.embed.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
        assert net(x, t, s).shape == x.shape
        assert torch.equal(given[0], time_features(t, s, octaves, gap))
    with pytest.raises(ValueError) as error:
        UNet(size=8, width=8, frequencies=3, gap_frequencies=4)
    assert "gap_frequencies must be from 0 to 3, got 4" in one_line(error)
    with pytest.raises(ValueError) as error:
        UNet(size=8, width=8, frequencies=-1)
    assert "frequencies must be a whole number of at least 0, got -1" in one_line(error)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(frequencies=-1), "frequencies must be a whole number of at least 0, got -1"),
        (dict(frequencies=2.5), "frequencies must be a whole number of at least 0, got 2.5"),
        (dict(frequencies=2, gap_frequencies=3), "gap_frequencies must be from 0 to 2, got 3"),
        (dict(gap_frequencies=-1), "gap_frequencies must be a whole number of at least 0, got -1"),
    ],
)
def test_mlp_refuses_octaves(options, words):
    with pytest.raises(ValueError) as error:
        MLP(dim=2, **options)
    assert words in one_line(error)


@pytest.mark.parametrize("name, options", [CASES[1], CASES[4]], ids=["MLP", "UNet"])
def test_anchor_must_match_the_network(name, options):
    net, x, t, s, a = build(name, options, anchor=True)
    for bad in ((), (a[:1],), (a[:, :1, ...].expand(-1, 5, *a.shape[2:]),)):
        with pytest.raises(ValueError) as error:
            net(x, t, s, *bad)
        assert "anchor of shape" in one_line(error)
    net, x, t, s, a = build(name, options)
    with pytest.raises(ValueError) as error:
        net(x, t, s, a)
    assert "takes no anchor" in one_line(error)


def test_numbers_of_any_kind():
    for number in (np.int64, np.uint8, torch.tensor):
        for net, same in (
            (MLP(dim=number(2), hidden=number(8)), MLP(dim=2, hidden=8)),
            (
                MLP(2, frequencies=number(3), gap_frequencies=number(0)),
                MLP(2, 128, 4, False, 0, 3, 3, 0),
            ),
            (UNet(size=number(8), width=number(8)), UNet(size=8, width=8)),
            (UNet(size=(number(8), 12), width=8), UNet(size=[8, 12], width=8)),
            (Transformer(length=number(6), width=number(8)), Transformer(length=6, width=8)),
            (UNet1d(length=number(6), width=number(8)), UNet1d(length=6, width=8)),
        ):
            assert net.config() == same.config() and net.data_shape == same.data_shape
            json.dumps(net.config())


# ---------------------------------------------------------------- images of any two sides


@pytest.mark.parametrize(
    "size, coarse",
    [
        ((48, 32), (12, 8)),
        ((16, 64), (4, 16)),
        (72, (9, 9)),
        (128, (16, 16)),
        ((64, 128), (8, 16)),
        ((144, 96), (18, 12)),
        (256, (32, 32)),
    ],
    ids=str,
)
def test_unet_of_any_two_sides(size, coarse):
    """Up to 256x256: every pixel and both sides matter, and nothing is transposed."""
    net = randomise(UNet(channels=3, size=size, width=8, blocks=1), scale=0.1)
    height, width = (size, size) if isinstance(size, int) else size
    assert net.data_shape == (3, height, width)
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.4])
    with torch.no_grad():
        out = net(x, t, t / 2)
        assert out.shape == x.shape and net.features_at(x, t, t / 2).shape == (2, 16, *coarse)
        for row, column in ((0, 0), (height - 1, width - 1)):
            moved = x.clone()
            moved[:, :, row, column] += 1
            change = (net(moved, t, t / 2) - out).abs().sum(1)
            assert float(change[:, row, column].min()) > 0


def test_large_images_have_memory_within_reason():
    """What is kept for the gradient at 256x256 is that of a 64x64 image, times 4: 64x64 at the finest resolution."""

    def kept(size):
        net, numbers = UNet(channels=3, size=size, width=8, blocks=1), [0]

        def count(tensor):
            numbers[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            net(torch.zeros(1, 3, size, size), torch.ones(1), torch.zeros(1))
        return numbers[0]

    assert kept(256) < 6 * kept(64)


def test_today_s_images_keep_their_architecture():
    """Models that were saved earlier hold these names and shapes."""
    net = UNet(channels=3, size=32, width=8, blocks=1)
    names = list(net.state_dict())
    assert len(names) == 56 and names[:2] == ["embed.0.weight", "embed.0.bias"]
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert tops == ["embed", "stem", "down", "shrink", "middle", "grow", "up", "norm", "out"]
    assert net.stem.weight.shape == (8, 12, 3, 3) and len(net.middle) == 2
    assert list(MLP(dim=2, layers=1).state_dict())[:2] == ["hidden.0.weight", "hidden.0.bias"]
    layer = [n for n in Transformer(length=4).state_dict() if n.startswith("layers.0")]
    parts = list(dict.fromkeys(name.split(".")[2] for name in layer))
    assert parts == ["qkv", "merge", "wide", "narrow", "times"]


# ---------------------------------------------------------------- networks of one's own


@pytest.fixture
def registry():
    before = dict(NETWORKS)
    yield NETWORKS
    NETWORKS.clear()
    NETWORKS.update(before)


def test_a_network_of_one_s_own(registry):
    @register_network
    class Mine(nn.Module):
        def config(self):
            return {}

    assert registry["Mine"] is Mine and register_network(Mine) is Mine  # a cell that is run again


def test_what_cannot_be_a_network(registry):
    class Silent(nn.Module):
        pass

    class NotANetwork:
        def config(self):
            return {}

    other = type("MLP", (nn.Module,), {"config": lambda self: {}})
    for given, words in (
        (other, "the name MLP is taken by the network iflow_lib.networks.MLP: choose another name"),
        (Silent, "the network Silent has no config(): give it one that returns its constructor's"),
        (type("Odd", (nn.Module,), {"config": {"a": 1}}), "the network Odd has no config()"),
        (NotANetwork, "decorates a class that extends torch.nn.Module, not NotANetwork"),
        (MLP(dim=2), "decorates a class that extends torch.nn.Module, not a MLP"),
        (lambda x, t, s: x, "decorates a class that extends torch.nn.Module, not a function"),
    ):
        with pytest.raises(ValueError) as error:
            register_network(given)
        assert words in one_line(error)
    known = [name for name in registry if name != "WithGiven"]  # there once frames was imported
    assert sorted(known) == ["MLP", "Transformer", "UNet", "UNet1d"] and registry["MLP"] is MLP


# ---------------------------------------------------------------- classes


LABELLED = [
    ("MLP", dict(dim=2, hidden=8, layers=2)),
    ("UNet", dict(channels=1, size=8, width=8, blocks=1)),
    ("UNet1d", dict(length=6, width=8, blocks=1)),
    ("Transformer", dict(length=6, width=8, layers=1, heads=2)),
]


@pytest.mark.parametrize("name, options", LABELLED, ids=[n for n, _ in LABELLED])
def test_labels(name, options):
    net, x, t, s, _ = build(name, {**options, "classes": 3}, n=4)
    label = torch.tensor([0, 1, 2, -1])
    out = net(x, t, s, labels=label)
    for i in range(4):  # each example sees its own label, -1 is "not told"
        torch.testing.assert_close(net(x, t, s, labels=label[i].expand(4))[i], out[i])
    torch.testing.assert_close(net(x, t, s)[3], out[3])
    for a, b in ((0, 1), (1, 2), (2, -1)):
        apart = net(x, t, s, labels=torch.full((4,), a)) - net(x, t, s, labels=torch.full((4,), b))
        assert float(apart.abs().max()) > 1e-6
    assert net.config()["classes"] == 3 and NETWORKS[name](**net.config()).classes == 3
    for bad in (torch.zeros(4), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match="whole numbers of shape"):
            net(x, t, s, labels=bad)
    with pytest.raises(ValueError, match="takes no labels"):
        NETWORKS[name](**options)(x.float(), t.float(), s.float(), labels=label)
    for bad in (-1, 2.5):
        with pytest.raises(ValueError, match="classes must be"):
            NETWORKS[name](**options, classes=bad)


def test_transformer_reads_order():
    net, x, t, s, _ = build("Transformer", dict(length=6, width=8, layers=1, heads=2))
    assert float((net(x.flip(1), t, s).flip(1) - net(x, t, s)).abs().max()) > 1e-6
    with pytest.raises(ValueError, match="multiple of heads"):
        NETWORKS["Transformer"](length=6, width=9, heads=2)


# ---------------------------------------------------------------- series


@pytest.mark.parametrize("length, halvings", [(4, 1), (16, 1), (24, 2), (33, 3), (96, 4), (999, 5)])
def test_unet_of_series_sees_all_steps(length, halvings):
    """Of any length: the first step feels the last one, and the coarsest resolution has about 8 steps."""
    net = randomise(UNet1d(length, channels=2, width=8, blocks=2), scale=0.2).double()
    assert net.config()["halvings"] == halvings and net.data_shape == (length, 2)
    x = torch.randn(2, length, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.9, 0.4], dtype=torch.float64)
    moved = x.clone()
    moved[:, -1, 0] += 1
    with torch.no_grad():
        change = (net(moved, t, t / 2) - net(x, t, t / 2)).abs()
    assert change.shape == x.shape and float(change[:, 0].amin()) > 0


def test_unet_of_series_reads_order_and_drops_in_training_alone():
    net = randomise(UNet1d(length=9, width=8, blocks=1, dropout=0.5))
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 9, 1, generator=g), torch.tensor([0.9, 0.4])
    assert net.config()["dropout"] == 0.5 and not torch.equal(net(x, t, t), net(x, t, t))
    net.eval()
    assert torch.equal(net(x, t, t), net(x, t, t))
    assert float((net(x.flip(1), t, t).flip(1) - net(x, t, t)).abs().max()) > 1e-3
    assert not any("dropout" in name for name in net.state_dict())


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(length=3), "length must be a whole number of at least 4, got 3"),
        (dict(length=24, width=12), "width must be a multiple of 8, got 12"),
        (dict(length=24, channels=0), "channels must be"),
        (dict(length=24, halvings=5), "give at most 4, got 5"),
        (dict(length=24, halvings=0), "halvings must be"),
        (dict(length=24, dropout=1), "dropout must be a share in [0, 1), got 1"),
        (dict(length=24, dropout=True), "dropout must be"),
        (dict(length=24, gap_frequencies=5), "gap_frequencies must be from 0 to 4, got 5"),
    ],
)
def test_unet_of_series_refuses(options, words):
    with pytest.raises(ValueError) as error:
        UNet1d(**options)
    assert words in one_line(error)
