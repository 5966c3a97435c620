"""Triton kernels of a thin unit: 3x3 convolution, batch norm, addition of the shortcut, ReLU, in training.

    forward   convolve   x -> y, with mean and squared deviations of each tile
              activate   y -> relu(batch norm(y) + added)
    backward  reduce     gradient of the output -> its sums by tile, and the gradient of `added`
              correlate  -> gradient of y, and of the weight, a share per program
              transpose  gradient of y -> gradient of x, and the sum of these shares
              join       that sum alone, where no gradient of x is wanted

Maps are NHWC, N images of H x W pixels; the channels of a pixel are a row. M = N H W rows of the convolution's output
are dealt out in tiles of ROWS, a program each. What is summed over all M goes by tile, in `moments` or `sums` (tiles,
2, channels), and whoever needs the total joins the tiles: nothing is added atomically, and the same input gives the
same bits. Operands of products are of type PRODUCT, their sums fp32. SO, SI, SH, SW: strides of a weight (filters,
inputs, 3, 3).
"""

import triton
import triton.language as tl


@triton.jit
def _pixel(rows, H: tl.constexpr, W: tl.constexpr):
    """(image, line, column) of rows of a map."""
    return rows // (H * W), rows // W % H, rows % W


@triton.jit
def convolve(
    x, weight, y, moments, M, SO, SI, SH, SW,
    H: tl.constexpr, W: tl.constexpr, HY: tl.constexpr, WY: tl.constexpr, STRIDE: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """y = conv(x), x (N, H, W, INPUTS), y (N, HY, WY, OUTPUTS); weight by its strides.

    A product is over TAPS of the nine taps at once, whose inputs WIDE, a power of two, has room for.
    """
    tile = tl.program_id(0)
    rows = tile * ROWS + tl.arange(0, ROWS)
    inside = rows < M
    n, h, w = _pixel(rows, HY, WY)
    top, left = h * STRIDE - 1, w * STRIDE - 1
    corner = ((n * H + top) * W + left) * INPUTS
    k, o = tl.arange(0, WIDE), tl.arange(0, OUTPUTS)
    i, used = k % INPUTS, k < TAPS * INPUTS
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in range(0, 9, TAPS):
        tap = first + k // INPUTS
        kh, kw = tap // 3, tap % 3
        line, column = top[:, None] + kh[None, :], left[:, None] + kw[None, :]
        there = (line >= 0) & (line < H) & (column >= 0) & (column < W) & inside[:, None] & used[None, :]
        a = tl.load(x + corner[:, None] + ((kh * W + kw) * INPUTS + i)[None, :], mask=there, other=0.0)
        of_tap = kh * SH + kw * SW + i * SI
        b = tl.load(weight + of_tap[:, None] + o[None, :] * SO, mask=used[:, None], other=0.0)
        total = tl.dot(a.to(PRODUCT), b.to(PRODUCT), total)
    result = total.to(y.dtype.element_ty)
    tl.store(y + rows[:, None] * OUTPUTS + o[None, :], result, mask=inside[:, None])
    value = result.to(tl.float32)  # zero beyond the last row
    mean = tl.sum(value, 0) / tl.minimum(M - tile * ROWS, ROWS)
    away = tl.where(inside[:, None], value - mean[None, :], 0.0)
    tl.store(moments + tile * 2 * OUTPUTS + o, mean)
    tl.store(moments + (tile * 2 + 1) * OUTPUTS + o, tl.sum(away * away, 0))


@triton.jit
def activate(
    y, added, out, moments, weight, bias, running_mean, running_var, batches, kept, M, momentum, epsilon,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr,
    ADDED: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """out = relu(batch norm(y) + added), of BLOCK channels per program.

    The first programs move the averages and keep mean, 1/deviation, scale and shift. The moments are of TILES tiles of
    TILE rows; SOME are read at a time.
    """
    program = tl.program_id(0)
    c, some = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SOME)
    rows = program * ROWS + tl.arange(0, ROWS)
    inside = (rows < M)[:, None]
    at = rows[:, None] * CHANNELS + c[None, :]
    value = tl.load(y + at, mask=inside, other=0.0)  # asked for here, it is on its way while tiles are joined
    more = tl.load(added + at, mask=inside, other=0.0) if ADDED else value
    # about the mean of the first tile, so that squares of a mean far from zero do not swallow the variance
    about = tl.load(moments + c)
    mean, variance = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, TILES, SOME):
        t = first + some
        share = tl.maximum(tl.minimum(M - t * TILE, TILE), 0).to(tl.float32) / M
        of_tiles = moments + t[:, None] * 2 * CHANNELS + c[None, :]
        away = tl.load(of_tiles, mask=(t < TILES)[:, None], other=0.0) - about[None, :]
        squares += tl.sum(tl.load(of_tiles + CHANNELS, mask=(t < TILES)[:, None], other=0.0), 0)
        mean += tl.sum(away * share[:, None], 0)
        variance += tl.sum(away * away * share[:, None], 0)
    variance += squares / M - mean * mean
    mean += about
    inverse = 1.0 / tl.sqrt(variance + epsilon)
    scale = inverse * tl.load(weight + c)
    shift = tl.load(bias + c) - mean * scale
    if program == 0:
        tl.store(kept + c, mean)
        tl.store(kept + CHANNELS + c, inverse)
        tl.store(kept + 2 * CHANNELS + c, scale)
        tl.store(kept + 3 * CHANNELS + c, shift)
        old_mean, old_var = tl.load(running_mean + c), tl.load(running_var + c)
        tl.store(running_mean + c, old_mean + momentum * (mean - old_mean))
        tl.store(running_var + c, old_var + momentum * (variance * (M / (M - 1)) - old_var))
        if tl.program_id(1) == 0:
            tl.store(batches, tl.load(batches) + 1)
    value = value.to(tl.float32) * scale[None, :] + shift[None, :]
    if ADDED:
        value += more.to(tl.float32)
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a diverged run must be seen to diverge
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def reduce(
    slope, y, out, masked, sums, kept, M,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Per tile the sums of g and of g times normalised y, g = `slope` where the output is above zero.

    With ADDED g is the gradient of `added` too, and is written to `masked`.
    """
    tile = tl.program_id(0)
    rows = tile * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    inside = (rows < M)[:, None]
    at = rows[:, None] * CHANNELS + c[None, :]
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(slope + at, mask=inside, other=0.0)
    if ADDED:
        g = tl.where(tl.load(out + at, mask=inside, other=0.0) <= 0, 0.0, g)
        tl.store(masked + at, g, mask=inside)
        g = g.to(tl.float32)
    else:
        scale, shift = tl.load(kept + 2 * CHANNELS + c), tl.load(kept + 3 * CHANNELS + c)
        g = _through_relu(g, value, scale, shift)
    mean, inverse = tl.load(kept + c), tl.load(kept + CHANNELS + c)
    normal = (value - mean[None, :]) * inverse[None, :]
    tl.store(sums + tile * 2 * CHANNELS + c, tl.sum(g, 0))
    tl.store(sums + (tile * 2 + 1) * CHANNELS + c, tl.sum(g * normal, 0))


@triton.jit
def _through_relu(g, value, scale, shift):
    """The gradient before ReLU, of maps to which nothing was added: g unless the batch norm of `value` is negative."""
    return tl.where(value * scale[None, :] + shift[None, :] <= 0, 0.0, g.to(tl.float32))


@triton.jit
def _totals(sums, c, CHANNELS: tl.constexpr, TILES: tl.constexpr, SOME: tl.constexpr):
    """The two sums over all tiles."""
    some = tl.arange(0, SOME)
    first, second = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, TILES, SOME):
        t = begin + some
        at = sums + t[:, None] * 2 * CHANNELS + c[None, :]
        first += tl.sum(tl.load(at, mask=(t < TILES)[:, None], other=0.0), 0)
        second += tl.sum(tl.load(at + CHANNELS, mask=(t < TILES)[:, None], other=0.0), 0)
    return first, second


@triton.jit
def _of_norm(kept, first, second, M, c, CHANNELS: tl.constexpr):
    """(scale, shift, a, b): values v with gradients g of their batch norm have gradients scale g + a v + b."""
    mean, inverse = tl.load(kept + c), tl.load(kept + CHANNELS + c)
    scale, shift = tl.load(kept + 2 * CHANNELS + c), tl.load(kept + 3 * CHANNELS + c)
    per_value = -scale * inverse * second / M
    return scale, shift, per_value, -scale * first / M - per_value * mean


@triton.jit
def _of_convolution(slope, y, at, there, scale, shift, per_value, constant, c, ADDED: tl.constexpr):
    """The gradient of y at the rows that begin at `at`: through ReLU, where nothing was added, and batch norm."""
    mask = there[:, None]
    value = tl.load(y + at[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
    g = tl.load(slope + at[:, None] + c[None, :], mask=mask, other=0.0)
    g = g.to(tl.float32) if ADDED else _through_relu(g, value, scale, shift)
    gradient = scale[None, :] * g + per_value[None, :] * value + constant[None, :]
    return tl.where(mask, gradient, 0.0)


@triton.jit
def correlate(
    slope, y, x, kept, sums, shares, of_y, of_scale, of_shift, M,
    H: tl.constexpr, W: tl.constexpr, HY: tl.constexpr, WY: tl.constexpr, STRIDE: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    TILES: tl.constexpr, ADDED: tl.constexpr, SOME: tl.constexpr, PRODUCT: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """A share of the weight's gradient, from STEPS times ROWS rows, for COLUMNS of its 9 INPUTS inputs.

    shares: (shares, 9 INPUTS up to a multiple of COLUMNS, OUTPUTS). The gradient of y is written where WANTED, those of
    batch norm by one program.
    """
    part, share = tl.program_id(0), tl.program_id(1)
    o = tl.arange(0, OUTPUTS)
    first, second = _totals(sums, o, OUTPUTS, TILES, SOME)
    if part + share == 0:
        tl.store(of_shift + o, first)
        tl.store(of_scale + o, second)
    scale, shift, per_value, constant = _of_norm(kept, first, second, M, o, OUTPUTS)
    k = part * COLUMNS + tl.arange(0, COLUMNS)
    tap, i = k // INPUTS, k % INPUTS
    kh, kw = tap // 3, tap % 3
    of_tap = (kh * W + kw) * INPUTS + i
    total = tl.zeros((COLUMNS, OUTPUTS), tl.float32)
    for step in range(STEPS):
        rows = (share * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = rows < M
        n, h, w = _pixel(rows, HY, WY)
        b = _of_convolution(slope, y, rows * OUTPUTS, inside, scale, shift, per_value, constant, o, ADDED).to(PRODUCT)
        if WANTED:
            if part == 0:
                tl.store(of_y + rows[:, None] * OUTPUTS + o[None, :], b, mask=inside[:, None])
        top, left = h * STRIDE - 1, w * STRIDE - 1
        line, column = top[None, :] + kh[:, None], left[None, :] + kw[:, None]
        there = (line >= 0) & (line < H) & (column >= 0) & (column < W) & inside[None, :] & (tap < 9)[:, None]
        corner = ((n * H + top) * W + left) * INPUTS
        a = tl.load(x + corner[None, :] + of_tap[:, None], mask=there, other=0.0)
        total = tl.dot(a.to(PRODUCT), b, total)
    width = tl.num_programs(0) * COLUMNS
    tl.store(shares + (share * width + k[:, None]) * OUTPUTS + o[None, :], total)


@triton.jit
def _join(
    program, shares, of_weight, width, SO, SI, SH, SW,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, NUMBER: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    k = program * ROWS + tl.arange(0, ROWS)
    o, some = tl.arange(0, OUTPUTS), tl.arange(0, SOME)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for begin in range(0, NUMBER, SOME):
        s = begin + some
        at = (s[:, None, None] * width + k[None, :, None]) * OUTPUTS + o[None, None, :]
        mask = (s < NUMBER)[:, None, None] & (k < width)[None, :, None]
        total += tl.sum(tl.load(shares + at, mask=mask, other=0.0), 0)
    tap, i = k // INPUTS, k % INPUTS
    at = tap // 3 * SH + tap % 3 * SW + i * SI
    tl.store(of_weight + at[:, None] + o[None, :] * SO, total, mask=(tap < 9)[:, None])


@triton.jit
def join(
    shares, of_weight, width, SO, SI, SH, SW,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, NUMBER: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """The weight's gradient, by its strides, from NUMBER shares of `width` rows; ROWS of them per program."""
    _join(tl.program_id(0), shares, of_weight, width, SO, SI, SH, SW, INPUTS, OUTPUTS, ROWS, NUMBER, SOME)


@triton.jit
def transpose(
    of_y, weight, of_x, M, SO, SI, SH, SW, shares, of_weight, width, GO, GI, GH, GW,
    H: tl.constexpr, W: tl.constexpr, HY: tl.constexpr, WY: tl.constexpr, STRIDE: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, PRODUCT: tl.constexpr, JOINS: tl.constexpr,
    JOINED: tl.constexpr, NUMBER: tl.constexpr, SOME: tl.constexpr,
):  # fmt: skip
    """The gradient of x, here of M rows: a convolution of the gradient of y with the mirrored kernel.

    The first JOINS programs join the weight's gradient instead, JOINED rows each: neither work alone fills a GPU.
    GO, GI, GH, GW: its strides.
    """
    program = tl.program_id(0)
    if program < JOINS:
        _join(program, shares, of_weight, width, GO, GI, GH, GW, INPUTS, OUTPUTS, JOINED, NUMBER, SOME)
    else:
        rows = (program - JOINS) * ROWS + tl.arange(0, ROWS)
        inside = rows < M
        n, h, w = _pixel(rows, H, W)
        i, o = tl.arange(0, INPUTS), tl.arange(0, OUTPUTS)
        total = tl.zeros((ROWS, INPUTS), tl.float32)
        for tap in range(9):
            kh, kw = tap // 3, tap % 3
            line, column = h + 1 - kh, w + 1 - kw  # of y, times the stride
            there = inside & (line >= 0) & (line < HY * STRIDE) & (column >= 0) & (column < WY * STRIDE)
            if STRIDE > 1:
                there = there & (line % STRIDE == 0) & (column % STRIDE == 0)
            at = ((n * HY + line // STRIDE) * WY + column // STRIDE) * OUTPUTS
            a = tl.load(of_y + at[:, None] + o[None, :], mask=there[:, None], other=0.0)
            b = tl.load(weight + kh * SH + kw * SW + o[:, None] * SO + i[None, :] * SI)
            total = tl.dot(a.to(PRODUCT), b.to(PRODUCT), total)
        at = rows[:, None] * INPUTS + i[None, :]
        tl.store(of_x + at, total.to(of_x.dtype.element_ty), mask=inside[:, None])
