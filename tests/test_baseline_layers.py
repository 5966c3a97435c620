"""Pools and dropout of the other networks: another kind or place has the same parameters and shapes."""

import torch
import torch.nn.functional as F

from reslib.models import build_model


def inputs_of(net, module, call):
    """What `module` is given while `call()` runs."""
    seen = []
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    try:
        call()
    finally:
        hook.remove()
    return seen


def test_pools_and_dropout_are_where_the_papers_have_them():
    x = torch.randn(2, 3, 32, 32)
    nin, dsn, highway = build_model("nin").eval(), build_model("dsn").eval(), build_model("highway19").eval()
    kinds = [[type(pool).__name__ for pool in net.pools] for net in (nin, dsn)]
    assert kinds == [
        ["MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"],
        ["MaxPool2d", "MaxPool2d", "AdaptiveAvgPool2d"],
    ]
    assert (nin.drop.p, dsn.drop.p, highway.drop.p) == (0.5, 0.5, 0.2)
    assert len(inputs_of(nin, nin.drop, lambda: nin(x))) == 2  # before the second and third block, not on the image
    assert len(inputs_of(highway, highway.drop, lambda: highway(x))) == 4  # the image, twice between, the end
    stages = [inputs_of(highway, stage, lambda: highway(x))[0] for stage in highway.stages]
    with torch.no_grad():
        assert torch.equal(stages[0], x)
        for stage, before, after in zip(highway.stages, stages, stages[1:], strict=False):
            assert torch.allclose(after, F.max_pool2d(stage(before), 2))


def test_the_last_map_of_fitnet_is_pooled_to_its_largest_values():
    net = build_model("fitnet19").eval()
    x = torch.randn(2, 3, 32, 32)
    maps = []
    hook = net.convs[-1].register_forward_hook(lambda module, inputs, output: maps.append(output))
    (dense,) = inputs_of(net, net.dense, lambda: net(x))
    hook.remove()
    assert maps[0].shape[2:] == (8, 8) and torch.equal(dense, maps[0].amax((2, 3)))
