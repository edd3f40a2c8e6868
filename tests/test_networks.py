"""Networks: shapes, two times, anchor, forward-mode derivatives against finite differences, refusals."""

import pytest
import torch
from exact import one_line, randomise

from iflow_lib.networks import MLP, NETWORKS, UNet, time_features

CASES = [
    ("MLP", dict(dim=1, hidden=8, layers=1)),
    ("MLP", dict(dim=2, hidden=16, layers=3)),
    ("MLP", dict(dim=24, hidden=8, layers=2)),
    *[
        ("UNet", dict(channels=c, size=n, width=8, blocks=1))
        for n in (8, 16, 28, 32)
        for c in (1, 3)
    ],
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
    assert twin.data_shape == net.data_shape
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
        (dict(size=68), "size"),
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
    assert words in one_line(error) and str(next(iter(options.values()))) in str(error.value)


@pytest.mark.parametrize(
    "options", [dict(dim=0), dict(dim=2, hidden=0), dict(dim=2, layers=0), dict(dim=-1)]
)
def test_mlp_refuses_bad_sizes(options):
    with pytest.raises(ValueError) as error:
        MLP(**options)
    assert "positive" in one_line(error)


@pytest.mark.parametrize("name, options", [CASES[1], CASES[3]], ids=["MLP", "UNet"])
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


# ---------------------------------------------------------------- classes


LABELLED = [
    ("MLP", dict(dim=2, hidden=8, layers=2)),
    ("UNet", dict(channels=1, size=8, width=8, blocks=1)),
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
