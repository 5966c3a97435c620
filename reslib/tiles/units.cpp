// Units of a thin net in bf16 on a processor's tiles: y = max(0, norm(conv(x)) + added), and its gradient.
//
// The convolution is 3x3, of stride 1 or 2, padded by one pixel. Both ways go image by image, so that what lies between
// the steps stays in a core's caches: forward, an image is convolved and its moments are taken; backward, the gradient
// of the convolution's output is made, convolved and correlated with the input, and never written to memory.
//
// Within a group of images, positions (row, column, image) of a padded map lie one after the other with their channels
// last. A tile has 16 positions of a row: of one image, or of so many narrow ones that they fill it. So a kernel's tap
// is a displacement, the same for all positions, and no matrix has to be gathered: tiles are loaded where they lie.
//
// Arrays are dense: maps (N, H, W, C) as channels-last stores them, bf16; kernels (K, 3, 3, C), fp32, channels last
// too. Sums are of parts that do not depend on the number of threads, up to SUMS: the same bits for any such number.
// Plain C interface, built by native.py, called by unit.py.

#include "tiles.h"

#if defined(AMX) || defined(EMULATED)

#include <atomic>
#include <new>

#include "../norm_loops.h"
#include "convolution.h"
#include "correlation.h"

namespace {

constexpr int SUMS = 8;  // sums of a kernel's gradient beside each other, at least

// Inputs of a unit: maps, or with `norm` what a unit before it left, of which max(0, norm(x)) is the input.
struct Inputs {
    typedef Widest loops;
    const bf16 *x;
    const int channels, stride;
    const bool raw;
    const Channels norm;

    Inputs(const bf16 *x, const Kernel &kernel, float *norm)
        : x(x), channels(kernel.inputs), stride(kernel.stride), raw(norm), norm(norm, channels)
    {
    }

    // A group into its padded map, of positions as the kernel takes them
    void pad(const Shape &shape, long number, bf16 *padded) const
    {
        if (raw)
            activate(shape, number, padded);
        else
            stride == 1 ? copy(shape, number, padded) : gather(shape, number, padded);
    }

private:
    void copy(const Shape &shape, long number, bf16 *padded) const
    {
        const long each = shape.group == 1 ? (long)shape.width * channels : channels;  // numbers that stay together
        shape.rows(number, [&](long position, long pixel) {
            bf16 *to = padded + position * channels;
            for (const bf16 *from = x + pixel * channels, *end = from + (long)shape.width * channels; from < end;
                 from += each, to += shape.group * each)
                std::memcpy(to, from, 2 * each);
        });
    }

    // Four pixels to a position: two that follow each other, and below them two more
    void gather(const Shape &shape, long number, bf16 *padded) const
    {
        const int both = 2 * channels;
        shape.rows(number, [&](long position, long pixel) {
            for (int below = 0; below < 2; below++) {
                const bf16 *from = x + (4 * pixel + 2 * below * shape.width) * channels;
                bf16 *to = padded + position * 2 * both + below * both;
                for (int i = 0; i < shape.width; i++, from += both, to += 2L * shape.group * both)
                    std::memcpy(to, from, 2 * both);
            }
        });
    }

    void activate(const Shape &shape, long number, bf16 *padded) const
    {
        for (int q = 0; q < channels; q += loops::W) {
            const auto mean = loops::load(norm.mean + q), scale = loops::load(norm.scale + q);
            const auto bias = loops::load(norm.bias + q);
            shape.rows(number, [&](long position, long pixel) {
                const bf16 *from = x + pixel * channels + q;
                bf16 *to = padded + position * channels + q;
                for (int i = 0; i < shape.width; i++, from += channels, to += (long)shape.group * channels) {
                    const auto v = (loops::load(from) - mean) * scale + bias;
                    loops::store(to, loops::passed(v, v));
                }
            });
        }
    }
};

// call(part) for each of `count`, the last first, to whichever thread is free: neighbours may slow one of them
template <typename Call>
void shared_out([[maybe_unused]] int threads, long count, Call call)
{
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long i = 0; i < count; i++) call(count - 1 - i);
}

}  // namespace

extern "C" {

int tile_units()
{
    static const bool here = tiles_here();
    return here;
}

// raw = conv(x), y = max(0, norm(raw) + added). height, width: of raw; x has `stride` times as many rows and columns.
// added: or null. y: null where the next unit makes it from `raw`, then and here with the `channels` of this norm;
// before: those of the norm of the inputs, which then are such a `raw`, or null. The rest as norm_forward.
int unit_forward(const bf16 *x, const float *weight, bf16 *raw, const bf16 *added, bf16 *y, float *before, long images,
                 int height, int width, int inputs, int outputs, int stride, const float *scale, const float *bias,
                 float *running_mean, float *running_variance, double momentum, double epsilon, float *channels,
                 double *work, int threads)
try {
    typedef Widest loops;
    const Shape shape(images, height, width);
    const Parts parts(shape.pixels(), outputs, (long)shape.group * height * width);
    const Channels norm(channels, outputs);
    const Kernel kernel{inputs, outputs, stride};
    const Inputs in(x, kernel, before);
    static thread_local Space kernels;
    Convolution convolution(shape, kernel);
    bf16 *packed = kernels.of<bf16>(convolution.size());
    if (!packed) return 1;
    convolution.pack(weight, packed);
    std::atomic<bool> failed(false);
    const long each = parts.each / (shape.group * height * width);
    parts.all(threads, false, [&](long part) {
        static thread_local Space space;
        const int wide = kernel.channels();
        bf16 *padded = space.zeros<bf16>(shape.room() * wide);
        if (!padded) {
            failed = true;
            return;
        }
        padded += SLACK * wide;
        {
            [[maybe_unused]] const Tiles::Use tiles;
            for (long number = part * each; number < std::min(shape.groups, (part + 1) * each); number++) {
                in.pad(shape, number, padded);
                Ahead ahead;
                if (number + 1 < shape.groups)
                    ahead.add(x + shape.begin(number + 1) * wide, shape.size(number + 1) * wide);
                convolution.run(padded, number, nullptr, raw, ahead);
            }
        }
        loops::moments(raw, parts, part, outputs, work + part * 2 * outputs);
    });
    if (failed) return 1;
    loops::settle(parts, outputs, scale, bias, running_mean, running_variance, momentum, epsilon, norm, work);
    if (y) parts.all(threads, true, [&](long part) { loops::activate(raw, added, y, parts, part, outputs, norm); });
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

// Gradients of x (null: not wanted), kernel, scale, bias and what was added, from the slopes of y. y, of_added: null
// where nothing was added. plus: what Convolution::run adds to the gradient of x, or null. sums: those of
// Slopes::sum_up, or null where they are still to be taken; with `before` those of the norm of the inputs are stored in
// sums_before; it and a stride of 2 do not go together. The rest as norm_backward. Both return 0, or 1 where there is
// no memory.
int unit_backward(const bf16 *slopes, const bf16 *x, const float *weight, const bf16 *raw, const bf16 *y,
                  const bf16 *plus, bf16 *of_x, float *of_kernel, bf16 *of_added, float *before, double *sums,
                  double *sums_before, long images, int height, int width, int inputs, int outputs, int stride,
                  float *channels, float *of_scale, float *of_bias, double *work, int threads)
try {
    typedef Widest loops;
    const Shape shape(images, height, width);
    const Parts parts(shape.pixels(), outputs, (long)shape.group * height * width);
    float *slope = after_sums(work, outputs);
    const loops::Slopes<bf16> back{slopes, raw, y, of_added, Channels(channels, outputs), slope, slope + outputs};
    if (!sums) back.sum_up(parts, outputs, sums = work, threads);
    back.settle(shape.pixels(), outputs, of_scale, of_bias, sums);

    static thread_local Space kernels, sums_space, norms_space;
    const Kernel kernel{inputs, outputs, stride};
    const int wide = kernel.channels();
    Convolution turned(shape, kernel, true);
    bf16 *packed = kernels.of<bf16>(turned.size());
    if (!packed) return 1;
    if (of_x) turned.pack(weight, packed);
    const Correlation correlation(shape, kernel);
    const Inputs in(x, kernel, before);
    const Parts blocks(shape.pixels(), inputs);
    const loops::Slopes<bf16> below{of_x, x, nullptr, nullptr, in.norm, nullptr, nullptr};  // of the norm before
    const long lanes = std::min<long>(shape.groups, (threads + SUMS - 1) / SUMS * SUMS);
    const long row = kernel.weights(), size = outputs * row;
    float *of_lanes = sums_space.of<float>(size * lanes);
    double *norms = norms_space.zeros<double>(before ? 2 * inputs * lanes : 0);
    if (!of_lanes || (before && !norms)) return 1;
    std::atomic<bool> failed(false);
    shared_out(threads, lanes, [&](long lane) {
        static thread_local Space space;
        const long first = shape.room() * wide, second = shape.room() * outputs;
        const long of_group = correlation.pairs_size() + correlation.turned_size();
        bf16 *x_map = space.zeros<bf16>(first + second + of_group * correlation.batch);
        if (!x_map) {
            failed = true;
            return;
        }
        bf16 *slopes_map = x_map + first, *pairs = slopes_map + second;
        bf16 *rows = pairs + correlation.pairs_size() * correlation.batch;
        x_map += SLACK * wide, slopes_map += SLACK * outputs;
        std::memset(of_lanes + lane * size, 0, 4 * size);
        [[maybe_unused]] const Tiles::Use tiles;
        const long begin = shape.groups * lane / lanes;
        int waiting = 0;
        // Downwards: the last group, where images may be missing, is the first in these maps, and finds zeros.
        for (long number = shape.groups * (lane + 1) / lanes; number-- > begin;) {
            in.pad(shape, number, x_map);
            for (int q = 0; q < outputs; q += loops::W) {
                const auto leaving = back.leaving(q);
                shape.rows(number, [&](long position, long pixel) {
                    bf16 *to = slopes_map + position * outputs + q;
                    const long from = pixel * outputs + q, step = (long)shape.group * outputs;
                    for (int i = 0; i < width; i++) loops::store(to + i * step, leaving(from + (long)i * outputs));
                });
            }
            Ahead ahead;
            if (number > 0)
                for (const bf16 *map : {x, raw, of_added ? of_added : slopes, plus}) {
                    const int channels = map == x || (map == plus && stride == 1) ? wide : outputs;
                    if (map) ahead.add(map + shape.begin(number - 1) * channels, shape.size(number - 1) * channels);
                }
            if (of_x) turned.run(slopes_map, number, plus, of_x, ahead);
            if (before) {
                const long pixel = shape.begin(number);
                below.sum_up(blocks, pixel, pixel + shape.size(number), inputs, norms + lane * 2 * inputs);
            }
            correlation.pair(x_map, pairs + waiting * correlation.pairs_size());
            correlation.turn(slopes_map, rows + waiting * correlation.turned_size());
            if (++waiting == correlation.batch || number == begin) {
                correlation.run(pairs, rows, waiting, of_lanes + lane * size, ahead);
                waiting = 0;
            }
        }
    });
    if (failed) return 1;
    shared_out(threads, outputs, [&](long k) {
        std::memcpy(of_kernel + k * row, of_lanes + k * row, 4 * row);
        for (long lane = 1; lane < lanes; lane++)
            for (long i = k * row; i < (k + 1) * row; i++) of_kernel[i] += of_lanes[lane * size + i];
    });
    if (before) {
        std::memcpy(sums_before, norms, 16L * inputs);
        for (long lane = 1; lane < lanes; lane++)
            for (int q = 0; q < 2 * inputs; q++) sums_before[q] += norms[lane * 2 * inputs + q];
    }
    return 0;
} catch (const std::bad_alloc &) {
    return 1;
}

}

#else

extern "C" int tile_units() { return 0; }

#endif
