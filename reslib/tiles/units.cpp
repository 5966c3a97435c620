// Units of a thin net in bf16 on a processor's tiles: y = max(0, norm(conv(x)) + added), and its gradient.
//
// The convolution is 3x3, of stride 1, padded by one pixel. Both ways go image by image, so that what lies between the
// steps stays in a core's caches: forward, an image is convolved and its moments are taken; backward, the gradient of
// the convolution's output is made, convolved and correlated with the input, and never written to memory.
//
// Within a group of images, positions (row, column, image) of a padded map lie one after the other with their channels
// last. A tile has 16 positions of a row: of one image, or of so many narrow ones that they fill it. So a kernel's tap is
// a displacement, the same for all positions, and no matrix has to be gathered: tiles are loaded where they lie.
//
// Arrays are dense: maps (N, H, W, C) as channels-last stores them, bf16; kernels (K, 3, 3, C), fp32, channels last too.
// Sums are of parts that do not depend on the number of threads, up to SUMS: the same bits for any such number. Plain C
// interface, built by native.py, called by unit.py.

#include "tiles.h"

#if defined(AMX) || defined(EMULATED)

#include <atomic>
#include <cstdlib>
#include <vector>

#include "../norm_loops.h"

namespace {

constexpr int TAPS = 9;
constexpr int SUMS = 8;    // sums of a kernel's gradient beside each other, at least
constexpr int SLACK = 128;  // zero positions before and behind a map, which tiles may reach into

// Memory of a thread, kept for the next call.
class Space {
    void *memory = nullptr;
    size_t size = 0;

public:
    Space() = default;
    Space(const Space &) = delete;
    ~Space() { std::free(memory); }

    template <typename Number>
    Number *of(long numbers)  // null where there is no memory
    {
        const size_t bytes = (numbers * sizeof(Number) + 63) / 64 * 64;
        if (bytes > size) {
            std::free(memory);
            memory = std::aligned_alloc(64, bytes);
            size = memory ? bytes : 0;
        }
        return static_cast<Number *>(memory);
    }
    template <typename Number>
    Number *zeros(long numbers)
    {
        Number *found = of<Number>(numbers);
        return found ? static_cast<Number *>(std::memset(found, 0, numbers * sizeof(Number))) : found;
    }
};

// Maps of `images` images, and groups of them as they are padded.
struct Shape {
    long images;
    int height, width, group, row;  // row: positions of a padded row
    long groups, positions;         // of a padded group

    Shape(long images, int height, int width)
        : images(images), height(height), width(width), group(width < SIDE ? SIDE / width : 1)
    {
        row = (width + 2) * group;
        groups = (images + group - 1) / group;
        positions = (long)(height + 2) * row;
    }
    // as maps of positions that are `fold` of these beside each other, the padding too
    Shape folded(int fold) const
    {
        Shape result = *this;
        result.width /= fold;
        result.row /= fold;
        result.positions /= fold;
        return result;
    }
    long pixels() const { return images * height * width; }
    long begin(long number) const { return number * group * height * width; }  // first pixel of a group
    long size(long number) const { return std::min(images - number * group, (long)group) * height * width; }
    int tiles() const { return height * (width * group / SIDE); }
    long room() const { return SLACK + positions + SLACK; }

    // the first position of tile t among the pixels themselves, of the map without its padding
    long corner(int t) const
    {
        const int across = width * group / SIDE;
        return (long)(t / across) * row + t % across * SIDE;
    }
    // call(row of the tile, index of the pixel) for those that are there
    template <typename Call>
    void pixels_of(long number, int t, Call call) const
    {
        const int across = width * group / SIDE, y = t / across, x = t % across * SIDE;
        if (group == 1) {
            const long first = (number * height + y) * width + x;
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; i++) call(i, first + i);
        } else
            for (int g = 0; g < size(number) / (height * width); g++)
                for (int i = g, pixel = ((number * group + g) * height + y) * width; i < SIDE; i += group)
                    call(i, (long)pixel++);
    }
    // call(position in the padded map, index) of the first pixel of every row of a group; the next are `group` and 1 on
    template <typename Call>
    void rows(long number, Call call) const
    {
        for (int g = 0; g < group && number * group + g < images; g++)
            for (int y = 0; y < height; y++)
                call((y + 1L) * row + group + g, ((number * group + g) * height + y) * width);
    }
};

// What will be read next: it is fetched into the core's second cache while tiles are multiplied, which leaves the memory
// idle. Maps of a step are many times larger than the caches.
class Ahead {
    static constexpr int LINE = 64, AT_ONCE = 8, MOST = 4;
    const char *from[MOST], *end[MOST];
    int count = 0;

public:
    void add(const bf16 *map, long numbers)
    {
        if (!map || numbers <= 0) return;
        from[count] = (const char *)map;
        end[count++] = (const char *)(map + numbers);
    }
    void fetch()
    {
        if (!count) return;
        const char *&at = from[count - 1];
        for (int i = 0; i < AT_ONCE; i++, at += LINE) __builtin_prefetch(at, 0, 2);
        count -= at >= end[count - 1];
    }
};

// The first N tiles
template <int N>
inline void zero()
{
    Tiles::zero<N - 1>();
    if constexpr (N > 1) zero<N - 1>();
}
template <int N>
inline void load(float *const *from, long stride)
{
    Tiles::load<N - 1>(from[N - 1], stride);
    if constexpr (N > 1) load<N - 1>(from, stride);
}
template <int N>
inline void store(float *const *to, long stride)
{
    Tiles::store<N - 1>(to[N - 1], stride);
    if constexpr (N > 1) store<N - 1>(to, stride);
}

// A convolution from `inputs` to `outputs` channels of padded maps.
//
// A step multiplies 32 numbers of 16 positions. Where a position has but 16 channels, two beside each other are taken as
// one with 32: what is convolved then has half the width, and a kernel of 3 x 2 such taps, some of whose weights are 0.
struct Convolution {
    const Shape shape;  // of what is convolved
    const int fold, inputs, outputs, steps;
    std::vector<long> offsets;  // of a step, in numbers
    bf16 *kernel;               // (steps, outputs / SIDE) tiles

    // of: the maps; channels: in and out; kernel: size() numbers
    Convolution(const Shape &of, int from, int to, bf16 *kernel)
        : shape(of.folded(folding(from, to))), fold(folding(from, to)), inputs(from * fold), outputs(to * fold),
          steps(3 * across() * inputs / DEEP), kernel(kernel)
    {
        each_step([&](int, int y, int x, int channel) {
            offsets.push_back(((long)y * shape.row + x * shape.group) * inputs + channel);
        });
    }

    static int folding(int from, int to) { return from == SIDE && to == SIDE ? 2 : 1; }
    static long size(int from, int to)
    {
        const int fold = folding(from, to);
        return 3L * (fold == 2 ? 2 : 3) * from * fold / DEEP * to * fold / SIDE * TILE;
    }

    // From weights (to, 3, 3, from)
    void pack(const float *weight)
    {
        const int from = inputs / fold, to = outputs / fold;
        each_step([&](int s, int y, int x, int channel) {
            for (int n = 0; n < outputs; n += SIDE) {
                alignas(64) bf16 rows[TILE] = {};
                for (int j = 0; j < SIDE; j++)
                    if (fold == 1)
                        round_row(weight + ((long)(n + j) * TAPS + y * 3 + x) * from + channel, rows + j * DEEP);
                    else
                        for (int half = 0; half < 2; half++)
                            if (const int tap = 2 * x + half - n / to; 0 <= tap && tap < 3)
                                round_half(weight + ((long)j * TAPS + y * 3 + tap) * from, rows + j * DEEP + half * SIDE);
                transpose(rows, tile(s, n), DEEP);
            }
        });
    }

    // The way back of a convolution, whose weights are (from, 3, 3, to): turned
    void pack_turned(const float *weight)
    {
        const int to = outputs / fold;
        each_step([&](int s, int y, int x, int channel) {
            for (int n = 0; n < outputs; n += SIDE)
                for (int r = 0; r < SIDE; r++) {
                    alignas(64) bf16 pair[2][SIDE] = {};
                    for (int i = 0; i < 2; i++) {
                        const int number = 2 * r + i;
                        const int tap = fold == 1 ? x : 2 * x + number / SIDE - n / to;
                        const long from = fold == 1 ? channel + number : number % SIDE;
                        if (0 <= tap && tap < 3)
                            round_half(weight + (from * TAPS + 8 - (y * 3 + tap)) * to + (fold == 1 ? n : 0), pair[i]);
                    }
                    interleave(pair[0], pair[1], tile(s, n) + r * DEEP);
                }
        });
    }

    // A group of padded maps, from its first position on, to maps in memory; `added` (or null) are other such maps.
    void run(const bf16 *padded, long number, const bf16 *added, bf16 *to, Ahead &ahead) const
    {
        int t = 0;
        for (; t + 2 <= shape.tiles(); t += 2) block<2>(padded, number, t, added, to, ahead);
        if (t < shape.tiles()) block<1>(padded, number, t, added, to, ahead);
    }

private:
    int across() const { return fold == 2 ? 2 : 3; }  // taps of a row
    bf16 *tile(int s, int n) const { return kernel + ((long)s * (outputs / SIDE) + n / SIDE) * TILE; }

    template <typename Call>
    void each_step(Call call) const
    {
        int s = 0;
        for (int y = 0; y < 3; y++)
            for (int x = 0; x < across(); x++)
                for (int c = 0; c < inputs; c += DEEP) call(s++, y, x, c);
    }

    template <int M>
    void block(const bf16 *padded, long number, int t, const bf16 *added, bf16 *to, Ahead &ahead) const
    {
        alignas(64) float sums[M][SIDE][DEEP];
        const bf16 *a[M];
        float *c[2 * M];
        for (int m = 0; m < M; m++) {
            a[m] = padded + shape.corner(t + m) * inputs;
            c[2 * m] = sums[m][0], c[2 * m + 1] = &sums[m][0][SIDE];
        }
        for (int n = 0; n < outputs; n += DEEP) {
            const bf16 *b = tile(0, n);
            zero<2 * M>();
            for (int s = 0; s < steps; s++, b += outputs / SIDE * TILE) {
                ahead.fetch();
                Tiles::load<6>(b, ROW), Tiles::load<7>(b + TILE, ROW);
                Tiles::load<4>(a[0] + offsets[s], 2L * inputs);
                Tiles::multiply<0, 4, 6>(), Tiles::multiply<1, 4, 7>();
                if constexpr (M == 2) {
                    Tiles::load<5>(a[1] + offsets[s], 2L * inputs);
                    Tiles::multiply<2, 5, 6>(), Tiles::multiply<3, 5, 7>();
                }
            }
            store<2 * M>(c, 2 * ROW);
            for (int m = 0; m < M; m++)
                shape.pixels_of(number, t + m, [&](int i, long pixel) {
                    const long at = pixel * outputs + n;
                    added ? round_sum(sums[m][i], added + at, to + at) : round_row(sums[m][i], to + at);
                });
        }
    }
};

// The gradient of a kernel, (outputs, 3, 3, inputs): sums over positions of slopes times inputs, a tap displaced.
//
// Slopes are turned, so that their positions lie in rows; inputs lie in pairs of positions. A tap displaces the pairs by
// whole rows of a tile; where it displaces them by an odd number of positions, those of a second copy that begin one
// position later. So all tiles lie on whole cache lines: loading others takes six times as long.
struct Correlation {
    static constexpr int TOGETHER = 10;  // chunks whose products are summed in registers, about
    const Shape &shape;
    const int inputs, outputs, chunks, batch;  // chunks of 32 positions of a group; groups at a time
    const long wide, pairs;                    // numbers of a row of turned slopes; pairs of a copy

    Correlation(const Shape &shape, int inputs, int outputs)
        : shape(shape), inputs(inputs), outputs(outputs), chunks((shape.height * shape.row + DEEP - 1) / DEEP),
          batch(std::max(1, TOGETHER / chunks)), wide((chunks | 1) * DEEP),  // odd: rows do not share their cache's sets
          pairs((shape.group + 2L * shape.row + chunks * DEEP + shape.group + 3) / 2)
    {
    }
    int copies() const { return shape.group % 2 ? 2 : 1; }  // else every displacement is even
    long pairs_size() const { return copies() * pairs * inputs * 2; }  // of one group, as the next
    long turned_size() const { return wide * outputs; }

    // (copies, inputs / SIDE, pairs) rows of a tile. x: from the first position on, as all padded maps
    void pair(const bf16 *x, bf16 *to) const
    {
        for (int copy = 0; copy < copies(); copy++)
            for (int c = 0; c < inputs; c += SIDE) {
                const bf16 *from = x + (long)(first() + copy) * inputs + c;
                for (long k = 0; k < pairs; k++, from += 2 * inputs, to += DEEP) interleave(from, from + inputs, to);
            }
    }

    // Channels as rows, without the padding above and below
    void turn(const bf16 *slopes, bf16 *to) const
    {
        for (int p = 0; p < chunks * DEEP; p += DEEP)
            for (int c = 0; c < outputs; c += SIDE) {
                alignas(64) bf16 rows[TILE];
                const bf16 *from = slopes + (long)(shape.row + p) * outputs + c;
                for (int r = 0; r < SIDE; r++, from += 2 * outputs) interleave(from, from + outputs, rows + r * DEEP);
                transpose(rows, to + c * wide + p, wide);
            }
    }

    // sums += what so many groups give
    void run(const bf16 *paired, const bf16 *turned, int groups, float *sums, Ahead &ahead) const
    {
        const bool narrow = outputs % DEEP || inputs % DEEP;
        const int side = narrow ? SIDE : DEEP;
        for (int k = 0; k < outputs; k += side)
            for (int c = 0; c < inputs; c += side)
                if (narrow)
                    for (int y = 0; y < 3; y++) taps(paired, turned, groups, k, c, y, sums, ahead);
                else
                    for (int tap = 0; tap < TAPS; tap++) square(paired, turned, groups, k, c, tap, sums, ahead);
    }

private:
    int first() const { return -(shape.group + shape.group % 2); }  // position of the first pair

    // Pairs of the inputs that a tap multiplies with the first chunk of slopes
    const bf16 *displaced(const bf16 *paired, int c, int y, int x) const
    {
        const int position = y * shape.row + (x - 1) * shape.group - first();
        const long copy = position % 2;
        return paired + ((copy * (inputs / SIDE) + c / SIDE) * pairs + position / 2) * DEEP;
    }
    float *at(float *sums, int k, int c, int tap) const { return sums + ((long)k * TAPS + tap) * inputs + c; }

    // Three taps of a row, 16 channels each
    void taps(const bf16 *paired, const bf16 *turned, int groups, int k, int c, int y, float *sums, Ahead &ahead) const
    {
        float *to[] = {at(sums, k, c, 3 * y), at(sums, k, c, 3 * y + 1), at(sums, k, c, 3 * y + 2)};
        load<3>(to, 4L * TAPS * inputs);
        for (int g = 0; g < groups; g++) {
            const bf16 *a = turned + g * turned_size() + k * wide, *group = paired + g * pairs_size();
            const bf16 *b[] = {displaced(group, c, y, 0), displaced(group, c, y, 1), displaced(group, c, y, 2)};
            for (int s = 0; s < chunks; s++) {
                ahead.fetch();
                Tiles::load<3>(a + s * DEEP, 2 * wide);
                Tiles::load<4>(b[0] + s * TILE, ROW), Tiles::load<5>(b[1] + s * TILE, ROW);
                Tiles::load<6>(b[2] + s * TILE, ROW);
                Tiles::multiply<0, 3, 4>(), Tiles::multiply<1, 3, 5>(), Tiles::multiply<2, 3, 6>();
            }
        }
        store<3>(to, 4L * TAPS * inputs);
    }

    // One tap, 32 channels each
    void square(const bf16 *paired, const bf16 *turned, int groups, int k, int c, int tap, float *sums,
                Ahead &ahead) const
    {
        float *to[] = {at(sums, k, c, tap), at(sums, k, c + SIDE, tap), at(sums, k + SIDE, c, tap),
                       at(sums, k + SIDE, c + SIDE, tap)};
        load<4>(to, 4L * TAPS * inputs);
        for (int g = 0; g < groups; g++) {
            const bf16 *a = turned + g * turned_size() + k * wide, *below = a + SIDE * wide;
            const bf16 *b = displaced(paired + g * pairs_size(), c, tap / 3, tap % 3), *next = b + pairs * DEEP;
            for (int s = 0; s < chunks; s++) {
                ahead.fetch();
                Tiles::load<4>(a + s * DEEP, 2 * wide), Tiles::load<5>(below + s * DEEP, 2 * wide);
                Tiles::load<6>(b + s * TILE, ROW), Tiles::load<7>(next + s * TILE, ROW);
                Tiles::multiply<0, 4, 6>(), Tiles::multiply<1, 4, 7>();
                Tiles::multiply<2, 5, 6>(), Tiles::multiply<3, 5, 7>();
            }
        }
        store<4>(to, 4L * TAPS * inputs);
    }
};

// Inputs of a unit: maps, or with `norm` what a unit before it left, of which max(0, norm(x)) is the input.
struct Inputs {
    typedef Widest loops;
    const bf16 *x;
    const int channels;
    const bool raw;
    const Channels norm;

    Inputs(const bf16 *x, int channels, float *norm) : x(x), channels(channels), raw(norm), norm(norm, channels) {}

    // A group into its padded map
    void pad(const Shape &shape, long number, bf16 *padded) const
    {
        raw ? activate(shape, number, padded) : copy(shape, number, padded);
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

// raw = conv(x), y = max(0, norm(raw) + added). added: or null. y: null where the next unit makes it from `raw`, then and
// here with the `channels` of this norm; before: those of the norm of the inputs, which then are such a `raw`, or null.
// The rest as norm_forward.
int unit_forward(const bf16 *x, const float *weight, bf16 *raw, const bf16 *added, bf16 *y, float *before, long images,
                 int height, int width, int inputs, int outputs, const float *scale, const float *bias,
                 float *running_mean, float *running_variance, double momentum, double epsilon, float *channels,
                 double *work, int threads)
{
    typedef Widest loops;
    const Shape shape(images, height, width);
    const Parts parts(shape.pixels(), outputs, (long)shape.group * height * width);
    const Channels norm(channels, outputs);
    const Inputs in(x, inputs, before);
    static thread_local Space kernels;
    bf16 *kernel = kernels.of<bf16>(Convolution::size(inputs, outputs));
    if (!kernel) return 1;
    Convolution convolution(shape, inputs, outputs, kernel);
    convolution.pack(weight);
    std::atomic<bool> failed(false);
    const long each = parts.each / (shape.group * height * width);
    parts.all(threads, false, [&](long part) {
        static thread_local Space space;
        bf16 *padded = space.zeros<bf16>(shape.room() * inputs);
        if (!padded) {
            failed = true;
            return;
        }
        padded += SLACK * inputs;
        {
            [[maybe_unused]] const Tiles::Use tiles;
            for (long number = part * each; number < std::min(shape.groups, (part + 1) * each); number++) {
                in.pad(shape, number, padded);
                Ahead ahead;
                if (number + 1 < shape.groups)
                    ahead.add(x + shape.begin(number + 1) * inputs, shape.size(number + 1) * inputs);
                convolution.run(padded, number, nullptr, raw, ahead);
            }
        }
        loops::moments(raw, parts, part, outputs, work + part * 2 * outputs);
    });
    if (failed) return 1;
    loops::settle(parts, outputs, scale, bias, running_mean, running_variance, momentum, epsilon, norm, work);
    if (y) parts.all(threads, true, [&](long part) { loops::activate(raw, added, y, parts, part, outputs, norm); });
    return 0;
}

// Gradients of x (null: not wanted), kernel, scale, bias and what was added, from the slopes of y. y, of_added: null where
// nothing was added. plus: what is added to the gradient of x, or null. sums: those of Slopes::sum_up, or null where they
// are still to be taken; with `before` those of the norm of the inputs are stored in sums_before. The rest as
// norm_backward. Both return 0, or 1 where there is no memory.
int unit_backward(const bf16 *slopes, const bf16 *x, const float *weight, const bf16 *raw, const bf16 *y,
                  const bf16 *plus, bf16 *of_x, float *of_kernel, bf16 *of_added, float *before, double *sums,
                  double *sums_before, long images, int height, int width, int inputs, int outputs, float *channels,
                  float *of_scale, float *of_bias, double *work, int threads)
{
    typedef Widest loops;
    const Shape shape(images, height, width);
    const Parts parts(shape.pixels(), outputs, (long)shape.group * height * width);
    float *slope = after_sums(work, outputs);
    const loops::Slopes<bf16> back{slopes, raw, y, of_added, Channels(channels, outputs), slope, slope + outputs};
    if (!sums) back.sum_up(parts, outputs, sums = work, threads);
    back.settle(shape.pixels(), outputs, of_scale, of_bias, sums);

    static thread_local Space kernels, sums_space, norms_space;
    bf16 *kernel = kernels.of<bf16>(Convolution::size(outputs, inputs));
    if (!kernel) return 1;
    Convolution turned(shape, outputs, inputs, kernel);
    if (of_x) turned.pack_turned(weight);
    const Correlation correlation(shape, inputs, outputs);
    const Inputs in(x, inputs, before);
    const Parts blocks(shape.pixels(), inputs);
    const loops::Slopes<bf16> below{of_x, x, nullptr, nullptr, in.norm, nullptr, nullptr};  // of the norm before
    const long lanes = std::min<long>(shape.groups, (threads + SUMS - 1) / SUMS * SUMS);
    const long size = (long)outputs * TAPS * inputs;
    float *of_lanes = sums_space.of<float>(size * lanes);
    double *norms = norms_space.zeros<double>(before ? 2 * inputs * lanes : 0);
    if (!of_lanes || (before && !norms)) return 1;
    std::atomic<bool> failed(false);
    shared_out(threads, lanes, [&](long lane) {
        static thread_local Space space;
        const long first = shape.room() * inputs, second = shape.room() * outputs;
        const long of_group = correlation.pairs_size() + correlation.turned_size();
        bf16 *x_map = space.zeros<bf16>(first + second + of_group * correlation.batch);
        if (!x_map) {
            failed = true;
            return;
        }
        bf16 *slopes_map = x_map + first, *pairs = slopes_map + second;
        bf16 *rows = pairs + correlation.pairs_size() * correlation.batch;
        x_map += SLACK * inputs, slopes_map += SLACK * outputs;
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
                    const int channels = map == x || map == plus ? inputs : outputs;
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
        const long row = (long)TAPS * inputs;
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
}

}

#else

extern "C" int tile_units() { return 0; }

#endif
