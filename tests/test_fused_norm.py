"""Batch norm, addition and ReLU in one go: PyTorch's numbers, in training alone, and only where a trial wins."""

import copy
import dataclasses

import pytest
import torch
from convolving import stepper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from training import rows_of, silent, tiny, train_in_pieces, weights_of

from reslib import compilation, fused_norm, native, trials, tune, unit_trials
from reslib.fused_norm import FusedLoss, norm_add_relu
from reslib.job import Execution
from reslib.models.conv_norm_relu import conv_norm_relu, norm_relu, taken_over, two_units
from reslib.passes import Passes, difference, sound
from reslib.train import train

pytestmark = [
    pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler"),
    pytest.mark.usefixtures("own_trials"),
]
CHOSEN = tune.Choice("fp32", 1, compile=False, winograd=False, fourier=False)
AS_BEGUN = {"threads": 1, "layout": "channels-last", "compiled": False}


def drawn(shape, dtype, added):
    """A batch norm with weights and averages of its own, maps, what is added to them, and slopes of the output."""
    generator = torch.Generator().manual_seed(sum(shape))
    norm = nn.BatchNorm2d(shape[1])
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(shape[1], generator=generator) + 0.1)
        norm.bias.sub_(0.6)
    spread = torch.linspace(0.1, 10, shape[1])[:, None, None]
    x, other, slopes = (
        torch.randn(shape, generator=generator).mul(spread).add(3 * spread).to(dtype)
        if i == 0
        else torch.randn(shape, generator=generator).to(dtype)
        for i in range(3)
    )
    form = {"memory_format": torch.channels_last}
    return norm, x.contiguous(**form), other.contiguous(**form) if added else None, slopes.contiguous(**form)


def results(way, norm, x, added, slopes, dtype=None):
    """Output, gradients and moving averages of one call, in another precision if dtype is given."""
    norm = copy.deepcopy(norm)
    if dtype is not None:
        norm, x, slopes = norm.to(dtype), x.to(dtype), slopes.to(dtype)
        added = None if added is None else added.to(dtype)
    x = x.detach().clone().requires_grad_()
    added = None if added is None else added.detach().clone().requires_grad_()
    y = way(norm, nn.ReLU(inplace=True), x, added)
    leaves = [x, norm.weight, norm.bias, *([added] if added is not None else [])]
    gradients = torch.autograd.grad(y, leaves, slopes)
    return [y.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def off(values, truth):
    return float((values.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


@pytest.fixture(params=(8, 16))
def lanes(request, monkeypatch):
    """Floats in a register of AVX and AVX-512; compilers split what the processor lacks."""
    built = native.build(f"-DLANES={request.param}")
    monkeypatch.setattr(native, "loops", lambda: built)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13), st.booleans())
def test_output_gradients_and_averages_are_pytorchs(lanes, images, eights, height, width, added):
    """Against double precision, from single pixels to more than a part, and no further off than PyTorch's own fp32."""
    if images * height * width == 1:
        images = 2
    arguments = drawn((images, 8 * eights, height, width), torch.float32, added)
    exact = results(norm_relu, *arguments, dtype=torch.float64)
    usual, mine = results(norm_relu, *arguments), results(norm_add_relu, *arguments)
    assert len(mine) == len(usual) == 7 + added
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        assert values.shape == theirs.shape and values.dtype == theirs.dtype
        assert off(values, truth) < max(4 * off(theirs, truth), 1e-5)
    assert mine[0].stride() == usual[0].stride()


@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (16, 64, 8, 8)])
@pytest.mark.parametrize("added", [False, True])
def test_maps_in_bf16(lanes, shape, added):
    """Rounded once where PyTorch rounds after each of the three operations."""
    arguments = drawn(shape, torch.bfloat16, added)
    exact = results(norm_relu, *arguments, dtype=torch.float64)
    usual, mine = results(norm_relu, *arguments), results(norm_add_relu, *arguments)
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        assert values.dtype == theirs.dtype and off(values, truth) < max(1.1 * off(theirs, truth), 1e-5)


@pytest.mark.parametrize("added", [False, True])
def test_means_far_from_zero_cost_no_digits(lanes, added):
    """A variance as the mean of squares less the square of the mean would have none left here."""
    norm, x, other, slopes = drawn((64, 16, 16, 16), torch.float32, added)
    x = x + 1e4
    exact = results(norm_relu, norm, x, other, slopes, dtype=torch.float64)
    usual, mine = (results(way, norm, x, other, slopes) for way in (norm_relu, norm_add_relu))
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        assert off(values, truth) < max(2 * off(theirs, truth), 1e-3)
    assert off(mine[-2], exact[-2]) < 1e-4  # the moving average of the variance


@pytest.mark.parametrize(("far", "value"), [(1, 1e4), (40, 1e4), (700, 0), (128, 0)])
def test_first_pixels_far_from_the_others_cost_no_digits(lanes, far, value):
    """Deviations are taken from the mean of what came before, wherever that lies: in a map of 16 blocks to a part."""
    norm, x, _, slopes = drawn((128, 16, 32, 32), torch.float32, False)
    x = 0.7 + 1e-3 * x
    pixels = x.permute(0, 2, 3, 1).reshape(64, -1, 16)  # by parts
    pixels[:, :far] = value
    exact = results(norm_relu, norm, x, None, slopes, dtype=torch.float64)
    usual, mine = (results(way, norm, x, None, slopes) for way in (norm_relu, norm_add_relu))
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        assert off(values, truth) < max(4 * off(theirs, truth), 1e-5)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("channels", "dtype"), [(24, torch.float32), (48, torch.float32), (48, torch.bfloat16)])
def test_any_number_of_threads_gives_the_same_bits(channels, dtype, added):
    arguments = drawn((50, channels, 9, 9), dtype, added)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(norm_add_relu, *arguments))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_stays_so(lanes, added, dtype):
    """A diverged run must be seen to diverge: max(0, nan) in C++ would be 0."""
    for value in (float("nan"), float("inf")):
        norm, x, other, slopes = drawn((2, 16, 5, 5), dtype, added)
        x[1, 3, 2, 2] = value
        usual, mine = (results(way, norm, x, other, slopes) for way in (norm_relu, norm_add_relu))
        for theirs, values in zip(usual, mine, strict=True):
            assert torch.equal(theirs.isfinite(), values.isfinite())
    if dtype is torch.bfloat16:  # rounding must not turn the largest mantissa of a nan into infinity
        norm, x, other, slopes = drawn((2, 16, 5, 5), dtype, added)
        x.view(torch.int16)[0, 0, 0, 0] = 0x7FFF
        assert norm_add_relu(norm, nn.ReLU(), x, other)[:, 0].isnan().all()


def test_what_is_left_to_pytorch():
    relu, x = nn.ReLU(), torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert norm_add_relu(nn.BatchNorm2d(16), relu, x) is not None
    others = {
        "evaluation": (nn.BatchNorm2d(16).eval(), relu, x),
        "double": (nn.BatchNorm2d(16).double(), relu, x.double()),
        "weights in bf16": (nn.BatchNorm2d(16).bfloat16(), relu, x.bfloat16()),
        "channels": (nn.BatchNorm2d(12), relu, x[:, :12].contiguous(memory_format=torch.channels_last)),
        "layout": (nn.BatchNorm2d(16), relu, x.contiguous()),
        "one value": (nn.BatchNorm2d(16), relu, x[:1, :, :1, :1]),
        "no norm": (nn.Identity(), relu, x),
        "no averages": (nn.BatchNorm2d(16, track_running_stats=False), relu, x),
        "mean of all batches": (nn.BatchNorm2d(16, momentum=None), relu, x),
        "no weights": (nn.BatchNorm2d(16, affine=False), relu, x),
        "another activation": (nn.BatchNorm2d(16), nn.ReLU6(), x),
        "other shapes": (nn.BatchNorm2d(16), relu, x, x[:, :, :1]),
        "other precision": (nn.BatchNorm2d(16), relu, x, x.bfloat16()),
    }
    watched = nn.BatchNorm2d(16)
    watched.register_forward_hook(lambda *arguments: None)
    others["somebody looks at the norm"] = (watched, relu, x)
    for why, arguments in others.items():
        assert norm_add_relu(*arguments) is None, why


def test_a_way_counts_within_its_block_and_thread():
    calls, norm, x = [], nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)
    inner, outer = (lambda *a, name=name: calls.append(name) for name in ("inner", "outer"))
    with taken_over(outer):
        with taken_over(inner):
            conv_norm_relu(nn.Identity(), norm, nn.ReLU(), x)
        conv_norm_relu(nn.Identity(), norm, nn.ReLU(), x)
    conv_norm_relu(nn.Identity(), norm, nn.ReLU(), x)
    assert calls == ["inner", "outer"] and norm.num_batches_tracked == 3  # None: PyTorch computes
    calls.clear()
    unit = nn.Identity(), norm, nn.ReLU()
    with taken_over(outer, two=inner):
        two_units(unit, unit, x)
    assert calls == ["inner", "outer", "outer"] and norm.num_batches_tracked == 5
    with taken_over(outer, two=lambda *call: "both"):
        assert two_units(unit, unit, x) == "both"


# --- In training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "norms"),
    [
        ("resnet20", {}, 19),
        ("plain20", {}, 19),
        ("resnet8", {"preactivation": True}, 3),  # those on the clean path are left to PyTorch
        ("resnet8", {"shortcut": "B"}, 7),
        ("resnet8", {"batch_norm": False}, 0),
        ("resnet50", {}, 49),
    ],
)
def test_networks_compute_the_same_loss_and_gradient(model, options, norms):
    step, batch = stepper(model, 4, **options)
    passes, loss = Passes(step, *batch()), FusedLoss(step.loss)
    mine, theirs = passes.run(step.loss), passes.run(loss)
    assert loss.fused == norms
    if norms:
        assert difference(mine, theirs) > 0
    assert sound(passes, mine, theirs)
    net, images = step.model.eval(), batch()[0]
    evaluated = net(images)
    with taken_over(loss._way):
        assert torch.equal(net(images), evaluated)


class Compiled(nn.Module):
    reason = ""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *arguments):
        return self.loss(*arguments)


def chosen(monkeypatch, model="resnet8", fused=0.5, given=CHOSEN, **options):
    """(evidence, step) where a pass with fused norms takes so many seconds, a compiled one 0.4, any other 1."""
    times = {FusedLoss: fused, Compiled: 0.4}
    monkeypatch.setattr(Passes, "seconds", lambda self, loss: times.get(type(loss), 1.0))
    step, batch = stepper(model, 4)
    return compilation.accelerate(step, given, batch, **{"left": 10_000, "say": silent} | options), step


def test_a_trial_decides_and_the_record_says_so(monkeypatch):
    evidence, step = chosen(monkeypatch)
    assert evidence["fused"] and isinstance(step.loss, FusedLoss) and step.way == "eager, fused norms"
    assert ", 1 thread, batch norm and ReLU in one go, not compiled" in compilation.describe("fp32", evidence)
    for not_now in (
        {"fused": 0.99},
        {"left": 100},
        {"limit": 0.001},
        {"before": AS_BEGUN},
        {"given": dataclasses.replace(CHOSEN, fused=False)},
        {"model": "nin"},
    ):
        evidence, step = chosen(monkeypatch, **not_now)
        assert "fused" not in evidence and step.way == "eager", not_now
    for surely in ({"before": AS_BEGUN | {"fused": True}}, {"given": dataclasses.replace(CHOSEN, fused=True)}):
        assert chosen(monkeypatch, fused=2.0, left=3, **surely)[0]["fused"]


def test_a_network_is_tried_once_per_machine(monkeypatch):
    kept = {}
    monkeypatch.setattr(trials, "known", lambda name: kept)
    monkeypatch.setattr(trials, "keep", lambda name, entries: name == "fused.json" and kept.update(entries))
    assert "fused" in chosen(monkeypatch)[0] and "fused" in chosen(monkeypatch, fused=2.0)[0]
    (key,) = kept
    assert key == "resnet8  A | 4x3x32x32 | fp32 channels-last 1 threads"
    kept[key] = "damaged"
    assert "fused" not in chosen(monkeypatch, fused=2.0)[0] and kept[key] is False


def test_loops_that_compute_something_else_are_refused(monkeypatch):
    right = fused_norm.norm_add_relu
    monkeypatch.setattr(fused_norm, "norm_add_relu", lambda *arguments: 1.1 * right(*arguments))
    said = []
    assert "fused" not in chosen(monkeypatch, say=said.append)[0]
    assert said[0].startswith("batch norm and ReLU not fused: loss or gradient would be off by ")
    assert "fused" in chosen(monkeypatch, before=AS_BEGUN | {"fused": True})[0]  # it was judged when the run was begun


def test_a_run_goes_on_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr(native, "unavailable", lambda: "no C++ compiler (g++, clang++) is installed")
    said = []
    evidence, step = chosen(monkeypatch, before=AS_BEGUN | {"fused": True}, say=said.append)
    assert "fused" not in evidence and not isinstance(step.loss, FusedLoss)
    assert said[0] == "batch norm and ReLU not fused: no C++ compiler (g++, clang++) is installed"
    assert said[1].startswith("note: it was begun with fused True; continued otherwise")
    said.clear()
    assert "fused" not in chosen(monkeypatch, say=said.append)[0] and not said


def test_a_network_without_batch_norm_says_so_where_it_was_asked():
    step, batch = stepper("resnet8", 4, batch_norm=False)
    for fused, words in ((True, ["batch norm and ReLU not fused: the network has no batch norm"]), (None, [])):
        said, given = [], dataclasses.replace(CHOSEN, fused=fused)
        assert unit_trials.choose(FusedLoss, step, given, batch, 10_000, say=said.append) is None and said == words


def test_a_compiled_pass_fuses_by_itself(monkeypatch):
    """torch.compile sees the three operations, not the loops; the eager side of its trial has them."""
    seen = []
    monkeypatch.setattr(compilation, "CompiledLoss", lambda loss, say: seen.append(loss) or Compiled(loss))
    given = dataclasses.replace(CHOSEN, compile=None, fused=True)
    evidence, step = chosen(monkeypatch, given=given)
    assert len(seen) == 1 and not isinstance(seen[0], FusedLoss)
    assert evidence["compiled"] and "fused" not in evidence and step.way == "compiled"
    evidence, step = chosen(monkeypatch, given=given, fused=0.2)  # it loses against the fused one
    assert not evidence["compiled"] and evidence["fused"] and len(seen) == 2
    assert "fused" not in chosen(monkeypatch, given=dataclasses.replace(CHOSEN, compile=True))[0]


@pytest.mark.parametrize("model", ["resnet8", "plain8"])
def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch, model):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false,winograd=false,fused=true")
    recipe, execution = tiny(model=model), Execution(device="cpu")
    whole = train(recipe, tmp_path / "whole", execution=execution, say=silent)
    assert whole["sessions"][0]["speed"]["fused"] and whole["sessions"][0]["step"] == "eager, fused norms"
    pieces, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 5, execution)
    assert sessions > 1
    assert weights_of(tmp_path / "pieces", recipe) == weights_of(tmp_path / "whole", recipe)
    assert rows_of(tmp_path / "pieces", recipe) == rows_of(tmp_path / "whole", recipe)
