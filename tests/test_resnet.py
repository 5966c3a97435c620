"""Plain and residual networks: sizes of the paper, torchvision's numbers, a slow reference for every kind of block."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from reslib.errors import UserError
from reslib.models import build_model, model_names
from reslib.models.resnet import Block, ResNet, _batch_norm, _no_norm

SIZES = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


def meta(name, classes=10, shortcut=None, **options):
    with torch.device("meta"):
        return build_model(name, classes, shortcut, **options)


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", SIZES)
def test_cifar_sizes_are_the_papers(depth):
    residual, plain = meta(f"resnet{depth}"), meta(f"plain{depth}")
    assert size(residual) == size(plain) == SIZES[depth]
    assert [tuple(p.shape) for p in residual.parameters()] == [tuple(p.shape) for p in plain.parameters()]
    weighted = [m for m in residual.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth
    convolutions = weighted[:-1]
    assert all(m.bias is None and m.kernel_size == (3, 3) for m in convolutions)
    n = (depth - 2) // 6
    assert [m.out_channels for m in convolutions] == [16] * (2 * n + 1) + [32] * 2 * n + [64] * 2 * n
    assert [i for i, m in enumerate(convolutions) if m.stride != (1, 1)] == [2 * n + 1, 4 * n + 1]
    norms = [m for m in residual.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(convolutions) and all(m.eps == 1e-5 and m.momentum == 0.1 for m in norms)


def test_option_b_adds_2752_and_c_projects_every_block():
    for depth in (20, 56):
        assert size(meta(f"resnet{depth}", shortcut="B")) - SIZES[depth] == 2752
        assert size(meta(f"plain{depth}", shortcut="B")) == SIZES[depth]
        model = meta(f"resnet{depth}", shortcut="C")
        blocks = [m for m in model.modules() if isinstance(m, Block)]
        assert len(blocks) == (depth - 2) // 2 and all(b.downsample is not None for b in blocks)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_imagenet_layers(depth):
    for kind in ("resnet", "plain"):
        layers = [m for n, m in meta(f"{kind}{depth}", 1000).named_modules() if "downsample" not in n]
        assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in layers) == depth
    plain, padded = meta(f"plain{depth}", 1000), meta(f"resnet{depth}", 1000, "A")
    assert size(plain) == size(padded) < size(meta(f"resnet{depth}", 1000))  # option B by default
    # The paper's stride on the 1x1 convolution costs no parameter.
    theirs = getattr(torchvision.models, f"resnet{depth}")
    with torch.device("meta"):
        assert size(theirs()) == size(meta(f"resnet{depth}", 1000))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvisions_logits(depth):
    torch.manual_seed(depth)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    ours = build_model(f"resnet{depth}", 10, "B", stride_on="3x3")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(1, 2)
            module.weight.data.uniform_(0.3, 0.7)
    ours.load_state_dict(theirs.state_dict())  # strict: the names agree
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for train in (False, True):
            expected, found = theirs.train(train)(x), ours.train(train)(x)
            assert found.std() > 1e-3
            assert (expected - found).abs().max() <= 1e-5 * max(1, expected.abs().max())
            assert depth >= 50 or torch.equal(expected, found)
        paper = build_model(f"resnet{depth}", 10, "B").train()
        paper.load_state_dict(theirs.state_dict())
        if depth >= 50:  # "v1" strides elsewhere: the same weights give other numbers
            assert not torch.allclose(paper(x), found, atol=1e-3)
        else:  # basic blocks have one place for it
            assert torch.equal(paper(x), found)


def slow_norm(x, norm, train):
    """Batch norm by its formula; biased variance of the batch in training."""
    if not isinstance(norm, nn.BatchNorm2d):
        return x
    mean = x.mean((0, 2, 3)) if train else norm.running_mean
    var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3)) if train else norm.running_var
    shape = (1, -1, 1, 1)
    scaled = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def slow_conv(x, conv, stride):
    """Convolution as a sum over kernel positions."""
    k = conv.weight.shape[2]
    padded = F.pad(x, (k // 2,) * 4)
    height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    out = 0
    for i in range(k):
        for j in range(k):
            window = padded[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            out = out + torch.einsum("nchw,oc->nohw", window, conv.weight[:, :, i, j])
    return out if conv.bias is None else out + conv.bias.view(1, -1, 1, 1)


def slow_block(b, x, stride, stride_on, residual, shortcut, preactivation, train):
    """A block written from Figures 2 and 5 of the paper and Figure 1 of its successor."""
    layers = [(b.conv1, b.bn1), (b.conv2, b.bn2)] + ([(b.conv3, b.bn3)] if b.conv3 is not None else [])
    strides = [1] * len(layers)
    strides[1 if len(layers) == 3 and stride_on == "3x3" else 0] = stride
    out, ready = x, slow_norm(x, b.bn1, train).clamp(min=0) if preactivation else x
    for i, ((conv, norm), s) in enumerate(zip(layers, strides, strict=True)):
        if preactivation:
            out = slow_conv(slow_norm(out, norm, train).clamp(min=0), conv, s)
        else:
            out = slow_norm(slow_conv(out, conv, s), norm, train)
            out = out.clamp(min=0) if i < len(layers) - 1 else out
    if residual:
        grows = stride != 1 or out.shape[1] != x.shape[1]
        if shortcut == "C" or (shortcut == "B" and grows):
            assert b.downsample[0].kernel_size == (1, 1)
            identity = slow_conv(ready, b.downsample[0], stride)
            identity = identity if preactivation else slow_norm(identity, b.downsample[1], train)
        else:
            assert b.downsample is None
            identity = torch.zeros_like(out)
            for n in range(x.shape[0]):
                for c in range(x.shape[1]):
                    for i in range(out.shape[2]):
                        for j in range(out.shape[3]):
                            identity[n, c, i, j] = x[n, c, i * stride, j * stride]
        out = out + identity
    return out if preactivation else out.clamp(min=0)


@pytest.mark.parametrize("norm", [_batch_norm, _no_norm], ids=["bn", "no-bn"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["original", "preactivation"])
@pytest.mark.parametrize("expansion", [1, 4], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("kind", ["plain", "A", "B", "C"])
def test_blocks_against_a_slow_reference(kind, expansion, preactivation, norm):
    torch.manual_seed(1)
    residual, shortcut = kind != "plain", "A" if kind == "plain" else kind
    for channels, width, stride in ((4, 4, 1), (4 * expansion, 4, 1), (4, 8, 2), (4, 8, 1)):
        for stride_on in ("1x1", "3x3"):
            options = (stride, residual, shortcut, stride_on, preactivation)
            block = Block(channels, width, width * expansion, *options, norm).double()
            for module in block.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias)
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            x = torch.randn(2, channels, 6, 5, dtype=torch.double)
            for train in (False, True):
                with torch.no_grad():
                    expected = slow_block(block, x, stride, stride_on, residual, shortcut, preactivation, train)
                    found = block.train(train)(x.clone())
                assert torch.allclose(found, expected, atol=1e-10), (channels, width, stride, stride_on, train)


def test_whole_cifar_net_is_its_blocks():
    torch.manual_seed(0)
    model = build_model("resnet8").double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    with torch.no_grad():
        out = slow_norm(slow_conv(x, model.conv1, 1), model.bn1, False).clamp(min=0)
        for stage, stride in ((model.layer1, 1), (model.layer2, 2), (model.layer3, 2)):
            out = slow_block(stage[0], out, stride, "1x1", True, "A", False, False)
        assert out.shape == (2, 64, 8, 8)
        expected = out.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
        assert torch.allclose(model(x), expected, atol=1e-10)


def test_he_initialisation():
    torch.manual_seed(0)
    model = build_model("resnet20")
    for name, p in model.named_parameters():
        if p.dim() == 4:  # normal, variance 2 / (k*k*filters)
            expected = (2 / (9 * p.shape[0])) ** 0.5
            assert abs(p.std().item() / expected - 1) < 5 * (2 * p.numel()) ** -0.5 and abs(p.mean()) < expected / 3, (
                name
            )
    assert model.fc.bias.abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"preactivation": True}, {"shortcut": "C"}], ids=str)
def test_activation_checkpointing_changes_no_number(options):
    torch.manual_seed(0)
    model = build_model("resnet8", **options)
    twin = copy.deepcopy(model)
    twin.activation_checkpointing = True
    for _ in range(3):
        x = torch.randn(4, 3, 16, 16)
        outputs = []
        for net in (model, twin):
            net.zero_grad()
            out = net(x)
            out.square().sum().backward()
            outputs.append(out)
        assert torch.equal(*outputs)
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name  # running statistics were updated once per step
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.momentum == 0.1 and m.num_batches_tracked == 3 for m in norms)


@pytest.mark.long
def test_resnet1202_takes_a_step():
    torch.manual_seed(0)
    model = build_model("resnet1202").train()
    model.activation_checkpointing = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    before = model.layer1[0].conv1.weight.detach().clone()
    loss = F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and all(torch.isfinite(p).all() for p in model.parameters())
    assert not torch.equal(before, model.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("resnet21", {}, ("'resnet21'", "6n+2", "did you mean resnet20?")),
        ("plain2", {}, ("'plain2'", "did you mean plain8?")),
        ("resnet6000000002", {}, ("'resnet6000000002'", "at most 10000", "did you mean resnet1202?")),
        ("resnt20", {}, ("model 'resnt20' is unknown", "resnet20, resnet32", "did you mean 'resnet20'?")),
        ("resnet020", {}, ("model 'resnet020' is unknown",)),
        ("", {}, ("model '' is unknown",)),
        ("resnet20", {"shortcut": "D"}, ("shortcut 'D'", "allowed are A, B, C")),
        ("resnet50", {"stride_on": "5x5"}, ("stride_on '5x5'", "allowed are 1x1, 3x3")),
        ("resnet20", {"init": "orthogonal"}, ("init 'orthogonal'", "he, xavier, gaussian")),
        ("resnet20", {"preactivatoin": True}, ("'preactivatoin'", "did you mean 'preactivation'?")),
        ("resnet20", {"residual": False}, ("option of resnet20 'residual' is unknown",)),
        ("resnet20", {"blocks": 3}, ("option of resnet20 'blocks' is unknown",)),
        ("resnet20", {"preactivation": 7}, ("preactivation 7", "true or false")),
        ("resnet20", {"width": -1}, ("width -1", "1 to 4096")),
        ("resnet20", {"width": "wide"}, ("width 'wide'", "1 to 4096")),
        ("nin", {"width": 8}, ("option of nin 'width' is unknown",)),
    ],
)
def test_wrong_names_and_options(name, options, parts):
    with pytest.raises(UserError) as caught:
        build_model(name, **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_every_listed_name_builds_and_width_scales():
    for name in model_names():
        if name.startswith(("plain", "resnet")) and not name.endswith(("1202", "152")):
            assert meta(name, 7).fc.out_features == 7
    model = ResNet((1, 1, 1), (4, 8, 16))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert meta("resnet20", width=32).fc.in_features == 128
