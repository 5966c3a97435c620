"""The kernels of thin nets in Triton's interpreter: how far their numbers are from double precision, as JSON.

    TRITON_INTERPRET=1 python tests/thin_numbers.py

A process of its own, since Triton looks at the variable when it is imported. Products are in fp32 there.
"""

import copy
import json

import torch
from torch import nn

from reslib.engine import Objective
from reslib.models import build_model
from reslib.models.conv_norm_relu import conv_norm_relu
from reslib.thin import ThinLoss, plans
from reslib.thin import unit as thin_unit
from reslib.thin.unit import unit

CASES = {  # name: images, pixels, filters before and after, stride, whether something is added
    "first": (3, 8, 3, 16, 1, False),
    "16, added": (3, 8, 16, 16, 1, True),
    "16 to 32, odd size": (5, 9, 16, 32, 2, True),
    "32 to 64": (9, 8, 32, 64, 2, False),
    "64, added": (9, 8, 64, 64, 1, True),
    "many tiles": (13, 9, 16, 16, 1, False),
    "first, 32": (2, 6, 3, 32, 1, False),  # of wider nets, for which no plan was measured
    "64 to 16": (2, 6, 64, 16, 2, False),
}
LAST = {"memory_format": torch.channels_last}


def maps(*size, mean=0.0):
    return (torch.randn(size) + mean).contiguous(**LAST)


def off(value, exact) -> float:
    value, exact = value.double(), exact.double()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))


def of_unit(case, mean=0.0, device="cpu") -> dict:
    """Quantity -> (distance of these kernels, of PyTorch) from double precision, both relative.

    Both in fp32 on a processor, in bf16 on a GPU.
    """
    images, pixels, before, after, stride, added = case
    torch.manual_seed(0)
    conv = nn.Conv2d(before, after, 3, stride, 1, bias=False).to(**LAST)
    norm = nn.BatchNorm2d(after)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    size = -(-pixels // stride)
    x, slope = maps(images, before, pixels, pixels, mean=mean), maps(images, after, size, size)
    other = maps(images, after, size, size) if added else None
    if device == "cuda":  # where both ways round them
        conv.weight.data, x, slope = (t.detach().bfloat16().float() for t in (conv.weight, x, slope))
        other = None if other is None else other.bfloat16().float()

    def results(way, dtype):
        c, n = copy.deepcopy(conv).to(device, dtype), copy.deepcopy(norm).to(device, dtype)
        narrow = device == "cuda" and dtype == torch.float32
        a, b = (None if t is None else t.to(device, torch.bfloat16 if narrow else dtype).clone() for t in (x, other))
        leaves = {"weight": c.weight, "scale": n.weight, "shift": n.bias}
        leaves |= {"x": a} if before > 3 else {}
        leaves |= {"added": b} if added else {}
        for leaf in leaves.values():
            leaf.requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            out = way(c, n, nn.ReLU(), a, b)
        gradients = torch.autograd.grad(out, list(leaves.values()), slope.to(device, out.dtype))
        found = dict(zip(leaves, gradients, strict=True)) | {"out": out.detach(), "batches": n.num_batches_tracked}
        return found | {"mean": n.running_mean, "variance": n.running_var}

    exact = results(conv_norm_relu, torch.float64)
    mine, usual = results(unit, torch.float32), results(conv_norm_relu, torch.float32)
    return {name: (off(mine[name], value), off(usual[name], value)) for name, value in exact.items()}


def of_network(model: str, **options) -> dict:
    """Loss and gradient of a whole network, as above, with the number of units."""
    torch.manual_seed(0)
    net = build_model(model, 10, **options).to(**LAST).train()
    x, y = maps(4, 3, 8, 8), torch.arange(4)

    def results(wrap, dtype):
        loss = wrap(Objective(copy.deepcopy(net).to(dtype)))
        value, _ = loss(x.to(dtype), y, torch.zeros(()))
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in loss.parameters()])
        return {"loss": value.detach(), "gradient": gradient}, getattr(loss, "units", 0)

    exact, (mine, units) = results(lambda loss: loss, torch.float64)[0], results(ThinLoss, torch.float32)
    usual = results(lambda loss: loss, torch.float32)[0]
    return {"units": units} | {name: (off(mine[name], value), off(usual[name], value)) for name, value in exact.items()}


def diverged() -> bool:
    """Whether a value that is not a number makes all of its filter's output so, as in PyTorch."""
    x = maps(2, 3, 5, 5)
    x[0, 0, 0, 0] = float("nan")
    conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False).to(**LAST)
    return bool(unit(conv, nn.BatchNorm2d(16), nn.ReLU(), x).isnan().all())


def main() -> None:
    before = thin_unit.SUMS_AT_ONCE, thin_unit.SHARES_AT_ONCE, thin_unit.JOINED_VALUES, dict(plans.PLANS)
    units = {"as on a GPU": of_unit((3, 8, 16, 16, 1, False))}
    thin_unit.JOINED_VALUES = 4096  # the interpreter takes its time for every program
    thin_unit.SHARES_AT_ONCE = 4  # fewer than there are of a weight's gradient
    units |= {name: of_unit(case) for name, case in CASES.items()}
    units["mean far from zero"] = of_unit((9, 8, 16, 16, 1, False), mean=100.0)
    thin_unit.SUMS_AT_ONCE = 64  # and few programs, which go through their loops more than once
    for key, plan in before[-1].items():
        # activate's own tiles are not those of the moments it reads, as on a GPU
        changed = {"block": 16, "rows": 64} if key[0] == "activate" else {"programs": 2, "rows": 32}
        plans.PLANS[key] = plan._replace(**changed)
    plans.USUALLY_ENOUGH = 4
    units["long loops"] = of_unit((13, 9, 16, 32, 1, False))
    units["long loops, added"] = of_unit((13, 9, 32, 64, 2, True))
    thin_unit.SUMS_AT_ONCE, thin_unit.SHARES_AT_ONCE = before[:2]
    plans.PLANS |= before[-1]
    networks = {
        "resnet8": of_network("resnet8"),
        "preactivated": of_network("resnet8", preactivation=True),
        "narrow": of_network("resnet8", width=8),
    }
    print(json.dumps({"units": units, "networks": networks, "diverged": diverged()}))


if __name__ == "__main__":
    main()
