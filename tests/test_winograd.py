"""3x3 convolutions by minimal filtering: the numbers of the direct sums, on any processor, by any number of threads."""

import functools
import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from convolving import by, errors
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reslib import native
from reslib.compilation import cannot_compile
from reslib.convolutions import Layer, winograd

needs_compiler = pytest.mark.skipif(bool(cannot_compile()), reason="no C++ compiler")
LANES = (4, 8, 16)  # floats in a register of SSE and Neon, AVX, AVX-512; compilers split what the processor lacks
EMULATED = "-DEMULATED"  # products of bf16 pairs, on any processor
WAYS = [*(("fp32", f"-DLANES={lanes}") for lanes in LANES), ("bf16", EMULATED), ("bf16", "")]
ALLOWED = {"fp32": (6, 3e-6), "bf16": (4, 0.012)}  # relative error: times that of the direct sums, or at all


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def loops(*options):
    return native.build(*filter(None, options))


@pytest.fixture(params=WAYS, ids=lambda way: " ".join(way).strip())
def way(request):
    """(precision, option of the compiler) of loops that this machine can run."""
    if request.param == ("bf16", "") and not loops().bf16_pairs():
        pytest.skip("this processor does not multiply pairs of bf16 values")
    return request.param


def right(layer, **options):
    multiple, least = ALLOWED[layer.precision]
    return all(off < max(multiple * usual, least) for off, usual in errors("winograd", layer, **options))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


sides, channels = st.integers(1, 11), st.integers(1, 3)


@needs_compiler
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_output_and_gradients_are_those_of_the_direct_sums(way, data):
    """Maps of any size, parts of tiles at their edges, all paddings, more images than a block of tiles holds."""
    precision, option = way
    lanes = loops(option).lanes() if precision == "fp32" else winograd.PAIRS
    inputs, outputs = (lanes * data.draw(channels) for _ in range(2))
    padding, batch = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 9))
    layer = Layer(inputs, outputs, (3, 3), (padding, padding), (data.draw(sides), data.draw(sides)), precision)
    assume(min(layer.result) > 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "loops", lambda: loops(option))
        assert winograd.promising(layer, batch)
        assert right(layer, batch=batch)


@needs_compiler
@pytest.mark.parametrize(("width", "side"), [(16, 32), (32, 16), (64, 8)])
def test_rounding_on_the_layers_of_resnet20(width, side):
    """At the points of the paper, 0, +-1 and +-2, the error of the output would be 1.1e-6 to 1.8e-6."""
    output, of_input, of_kernel, _ = errors("winograd", Layer(width, width, (3, 3), (1, 1), (side, side)), batch=16)
    assert output[0] < 1e-6 and of_input[0] < 1e-6 and of_kernel[0] < 1e-5


@needs_compiler
@pytest.mark.parametrize(("width", "side"), [(16, 32), (32, 16), (64, 8)])
def test_rounding_of_bf16_on_the_layers_of_resnet20(monkeypatch, width, side):
    """0.0044, or with the rounding of the inputs 0.0047, where direct sums are off by 0.0023 and 0.0029."""
    monkeypatch.setattr(native, "loops", lambda: loops(EMULATED))
    output, of_input, of_kernel, _ = errors("winograd", Layer(width, width, (3, 3), (1, 1), (side, side), "bf16"))
    assert output[0] < 0.005 and of_input[0] < 0.005 and of_kernel[0] < 0.01


def rounding(a, b, channels=32, tiles=512):
    """Relative error in fp32 of tiles at the points 0, +-a, +-b and infinity, by the matrices of the definition."""
    aa, bb = a * a, b * b
    rows = [[aa * bb, 0, -(aa + bb), 0, 1, 0]]
    rows += [[0, p * q, q, p, 1, 0] for p, q in ((-a, -bb), (a, -bb), (-b, -aa), (b, -aa))]
    rows += [[0, aa * bb, 0, -(aa + bb), 0, 1]]
    points = torch.tensor([0, a, -a, b, -b], dtype=torch.float64)
    inputs = torch.tensor(rows, dtype=torch.float64)
    inputs[1:5, 1], inputs[1:5, 3] = -points[1:] * torch.tensor([bb, bb, aa, aa]), points[1:]
    outputs = torch.cat([points ** torch.arange(4)[:, None], torch.tensor([[0.0], [0], [0], [1]])], 1)
    distances = (points[:, None] - points).fill_diagonal_(1).prod(1)
    kernels = torch.cat([points[:, None] ** torch.arange(3) / distances[:, None], torch.tensor([[0.0, 0, 1]])])
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(tiles, channels, 6, 6, generator=drawn)
    weight = torch.randn(channels, channels, 3, 3, generator=drawn)
    v = inputs.float() @ x @ inputs.float().T
    u = (kernels @ weight.double() @ kernels.T).float()
    m = torch.matmul(v.permute(2, 3, 0, 1), u.permute(2, 3, 1, 0)).permute(2, 3, 0, 1)
    y, exact = outputs.float() @ m @ outputs.float().T, F.conv2d(x.double(), weight.double())
    return float((y.double() - exact).norm() / exact.norm())


def test_the_points_halve_the_rounding_error_of_the_papers():
    assert rounding(0.5**0.5, 2**0.5) < 0.6 * rounding(1, 2) < 1e-6


@needs_compiler
def test_the_number_of_threads(threads, monkeypatch, way):
    """The same bits forward; and always the same bits for the same number of threads."""
    precision, option = way
    monkeypatch.setattr(native, "loops", lambda: loops(option))
    layer = Layer(16, 32, (3, 3), (1, 1), (13, 9), precision)
    results = {}
    for count in (1, 3, 3, 1):
        threads(count)
        result = by("winograd", layer, torch.float32, batch=40)
        for mine, before in zip(result, results.setdefault(count, result), strict=True):
            assert torch.equal(mine, before)
    one, three = results[1], results[3]
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])
    assert (one[2] - three[2]).norm() < 1e-5 * one[2].norm()


@needs_compiler
def test_without_openmp_the_numbers_are_the_same(threads, monkeypatch):
    threads(2)
    single = loops("-DLANES=8", EMULATED, "-fno-openmp")
    assert b"GOMP_parallel" not in Path(single._name).read_bytes()
    monkeypatch.setattr(native, "loops", lambda: single)
    for precision in ALLOWED:
        assert right(Layer(16, 16, (3, 3), (1, 1), (8, 8), precision), batch=8)


@needs_compiler
@pytest.mark.parametrize("dtype", winograd.PRECISIONS)
def test_they_are_operators_that_pytorch_can_trace(monkeypatch, dtype):
    monkeypatch.setattr(native, "loops", lambda: loops(EMULATED))
    x = torch.randn(2, 16, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(32, 16, 3, 3).requires_grad_()
    slopes = torch.randn(2, 32, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(winograd._convolve, (x, weight, 1))
    torch.library.opcheck(winograd._kernel_gradient, (x.detach(), slopes, 1))


@needs_compiler
def test_what_is_not_a_number_stays_so(monkeypatch):
    """A training that diverges must be seen to."""
    monkeypatch.setattr(native, "loops", lambda: loops(EMULATED))
    x, weight = torch.randn(1, 16, 8, 8, dtype=torch.bfloat16), torch.randn(16, 16, 3, 3)
    x[0, 3, 4, 4] = torch.nan
    y = winograd._convolve(x, weight, 1)
    assert y[..., 3:6, 3:6].isnan().all() and not y[..., :2, :].isnan().any()


@needs_compiler
def test_in_bf16_a_processor_has_to_multiply_pairs(monkeypatch):
    layer = Layer(16, 16, (3, 3), (1, 1), (8, 8), "bf16")
    monkeypatch.setattr(native, "loops", lambda: loops(EMULATED))
    assert winograd.promising(layer, 2) and not winograd.unavailable("bf16")
    plain = loops("-march=x86-64" if platform.machine() == "x86_64" else "-O3")
    monkeypatch.setattr(native, "loops", lambda: plain)
    assert "multiply pairs of such values (AVX512-BF16)" in winograd.unavailable("bf16")
    assert not winograd.promising(layer, 2) and not winograd.unavailable("fp32")


@needs_compiler
def test_what_is_left_to_the_direct_sums(monkeypatch):
    layer = Layer(16, 16, (3, 3), (1, 1), (8, 8))
    assert winograd.promising(layer, 2)
    shapes = (layer.__dict__ | {"kernel": (5, 5)}, layer.__dict__ | {"padding": (1, 0)}, layer.__dict__ | {"inputs": 3})
    assert not any(winograd.promising(Layer(**shape), 2) for shape in shapes)
    assert not winograd.promising(Layer(16, 16, (3, 3), (0, 0), (2, 2)), 2)  # nothing comes out
    maps, kernel = torch.zeros(2, 16, 8, 8), torch.zeros(16, 16, 3, 3)
    for x, weight in ((maps.double(), kernel), (maps, kernel.double()), (maps.bfloat16(), kernel.bfloat16())):
        with pytest.raises(TypeError, match="is for maps all in fp32 or all in bf16, kernels in fp32; not torch"):
            winograd._convolve(x, weight, 1)
    with pytest.raises(TypeError, match="not torch.float32, torch.bfloat16, torch.float32"):
        winograd._kernel_gradient(maps, maps.bfloat16(), 1)
    monkeypatch.setattr(native, "loops", lambda: loops(EMULATED))
    for dtype in winograd.PRECISIONS:  # nothing comes out
        narrow = torch.zeros(2, 16, 2, 2, dtype=dtype)
        nothing = winograd._convolve(narrow, kernel, 0)
        assert nothing.shape == (2, 16, 0, 0) and not winograd._kernel_gradient(narrow, nothing, 0).any()
    for maps, kernel, padding in ((16, (16, 32, 3, 3), 1), (16, (16, 16, 5, 5), 1), (6, (6, 6, 3, 3), 1)):
        with pytest.raises(ValueError, match="does not fit|no Winograd convolution of 6 to 6 channels"):
            winograd._convolve(torch.zeros(2, maps, 8, 8), torch.zeros(kernel), padding)


def test_multiply_adds_by_hand():
    # Four tiles an image. In 36 products; twelve transforms of the inputs, ten of the outputs; 36 values of 9 weights.
    tiles, kernels = 5 * 4, 36 * 9 * 16 * 32
    by_hand = tiles * (36 * 16 * 32 + 12 * 14 * 16 + 10 * 14 * 32) + kernels
    assert winograd.transformed(Layer(16, 32, (3, 3), (1, 1), (8, 8)), 5) == by_hand
    assert winograd.transformed(Layer(1, 1, (3, 3), (0, 0), (7, 11)), 1) == 2 * 3 * (36 + 22 * 14) + 324  # 5x9 outputs
    # In bf16 sixteen tiles, 16 products, transforms of 4 operations: eight of the inputs, six of the outputs.
    by_hand = 5 * 16 * (16 * 16 * 32 + 8 * 4 * 16 + 6 * 4 * 32) + 16 * 9 * 16 * 32
    assert winograd.transformed(Layer(16, 32, (3, 3), (1, 1), (8, 8), "bf16"), 5) == by_hand
