// Batch norm in training, the addition of a shortcut and ReLU in one go: y = max(0, norm(x) + added), and its gradient.
//
// One after the other, as PyTorch does them, the three operations read and write a map about twice as often. Here a map
// is read twice each way: for the sums over all pixels, and to use them, the second time from its end, which the caches
// still hold.
//
// Arrays are dense: maps (pixels, c) as channels-last stores them, fp32 or bf16; c is a multiple of 8. Sums are taken
// over parts of a map that do not depend on the number of threads and are joined in their order, in double precision:
// the same bits for any number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(LANES) ? LANES >= 16 : defined(__AVX512F__)  // floats in a register, as in winograd.cpp
#define SIXTEEN
#endif

namespace {

constexpr long PARTS = 64;   // of a map, at most
constexpr int BLOCK = 2048;  // values of a block of pixels, about: of narrow maps they stay in the core's first cache
constexpr int CHAINS = 4;    // sums beside each other: one addition does not wait for the one before

typedef uint16_t bf16;

// Several values in one register, fp32 whatever the map holds. A macro, for GCC 12 converts no vectors in templates.
#define REGISTER(NAME, NUMBER)                                                                                 \
    struct NAME {                                                                                              \
        static constexpr int W = NUMBER;                                                                       \
        typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));                          \
        typedef uint32_t bits __attribute__((vector_size(4 * W), aligned(4), may_alias));                      \
        typedef uint16_t halves __attribute__((vector_size(2 * W), aligned(2), may_alias));                    \
                                                                                                               \
        static vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }                          \
        static void store(float *p, const vec &v) { *reinterpret_cast<vec *>(p) = v; }                         \
                                                                                                               \
        /* the upper half of an fp32 number */                                                                 \
        static vec load(const bf16 *p)                                                                         \
        {                                                                                                      \
            return (vec)(__builtin_convertvector(*reinterpret_cast<const halves *>(p), bits) << 16);           \
        }                                                                                                      \
                                                                                                               \
        /* rounded to nearest, ties to even; what is not a number stays so */                                  \
        static void store(bf16 *p, const vec &v)                                                               \
        {                                                                                                      \
            const bits b = (bits)v, up = b + 0x7fff + ((b >> 16) & 1), quiet = b | 0x400000;                   \
            const bits rounded = (v == v ? up : quiet) >> 16;                                                  \
            *reinterpret_cast<halves *>(p) = __builtin_convertvector(rounded, halves);                         \
        }                                                                                                      \
    };
REGISTER(Eight, 8)
#ifdef SIXTEEN
REGISTER(PlainSixteen, 16)
struct Sixteen : PlainSixteen {
#ifdef __AVX512BF16__
    using PlainSixteen::load, PlainSixteen::store;

    static vec load(const bf16 *p)  // as above, in half the instructions that GCC 12 finds
    {
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i) * reinterpret_cast<const halves *>(p)), 16);
    }

    // one instruction instead, which takes what is below 2^-126 for 0
    static void store(bf16 *p, const vec &v) { *reinterpret_cast<halves *>(p) = (halves)_mm512_cvtneps_pbh((__m512)v); }
#endif
};
#endif

struct Parts {  // of a map: at most PARTS, all alike but the last, each of blocks of `rows` pixels
    long pixels, each, count;
    int rows;

    // whole: pixels that no part divides, by default those of a block
    Parts(long pixels, int c, long whole = 0) : pixels(pixels), rows(std::max(16, BLOCK / c))
    {
        whole = whole ? whole : rows;
        each = ((pixels + whole - 1) / whole + PARTS - 1) / PARTS * whole;
        count = (pixels + each - 1) / each;
    }
    long begin(long part) const { return part * each; }
    long end(long part) const { return std::min(pixels, begin(part) + each); }
    long size(long part) const { return end(part) - begin(part); }

    // call(part) for each, to whichever thread is free: neighbours may slow one of them. Backwards begins with what was
    // read last.
    template <typename Call>
    void all([[maybe_unused]] int threads, bool backwards, Call call) const
    {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (long part = 0; part < count; part++) call(backwards ? count - 1 - part : part);
    }

    // call(first pixel, number of pixels) for every block of these pixels
    template <typename Call>
    void blocks(long begin, long end, Call call) const
    {
        for (long first = begin; first < end; first += rows) call(first, (int)std::min<long>(rows, end - first));
    }
};

// call(index, chain) for `rows` values `c` apart from `first` on, CHAINS beside each other
template <typename Call>
inline void chained(long first, int rows, int c, Call call)
{
    int r = 0;
    for (; r + CHAINS <= rows; r += CHAINS)
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; chain++) call(first + (long)(r + chain) * c, chain);
    for (; r < rows; r++) call(first + (long)r * c, 0);
}

// Means and sums of squared deviations of `count` values, of `number` channels, joined to those of `before` values:
// Chan, Golub, LeVeque (1979). `to` has the means of `c` channels, and after them the sums.
inline void join(double *to, const double *means, const double *squares, int number, int c, double before, double count)
{
    const double share = count / (before + count), weight = before * share;
    for (int j = 0; j < number; j++) {
        const double apart = means[j] - to[j];
        to[j] += share * apart;
        to[c + j] += squares[j] + weight * apart * apart;
    }
}

// A loop's work: doubles for the sums of all parts, after them two floats per channel.
inline long work_of(int c) { return (2 * PARTS + 1) * c; }
inline float *after_sums(double *work, int c) { return reinterpret_cast<float *>(work + PARTS * 2 * c); }

// Per channel, (4, c): what the way back needs, the norm being scale (x - mean) + bias.
struct Channels {
    float *mean, *deviation, *scale, *bias;

    // all: or null, of no norm
    Channels(float *all, int c)
        : mean(all), deviation(all ? all + c : all), scale(all ? all + 2 * c : all), bias(all ? all + 3 * c : all)
    {
    }
};

template <typename Register>
struct Loops : Register {
    using typename Register::vec;
    using Register::load, Register::store, Register::W;

    // v, but 0 where gate <= 0: ReLU and its gradient. What is not a number stays so, as in PyTorch.
    static vec passed(const vec &gate, const vec &v) { return gate <= 0.f ? vec{} : v; }

    static vec sum(const vec *chains)
    {
        static_assert(CHAINS == 4);  // as is the unrolling of `chained`
        return (chains[0] + chains[1]) + (chains[2] + chains[3]);
    }

    // call(index, channel) for every W values of a part, in the order of the memory
    template <typename Call>
    static void values(const Parts &parts, long part, int c, Call call)
    {
        for (long i = parts.begin(part) * c; i < parts.end(part) * c; i += c)
            for (int q = 0; q < c; q += W) call(i + q, q);
    }

    static void add(double *to, const vec &values)
    {
        for (int j = 0; j < W; j++) to[j] += values[j];
    }

    // Mean and sum of squared deviations of each channel in one part, in one pass through memory: of deviations from
    // the mean of all blocks before, for the first block from its own. What a block's mean lies apart from that mean
    // adds as much to the part's variance, so that rounding can cost it a factor of two, not digits.
    template <typename T>
    static void moments(const T *x, const Parts &parts, long part, int c, double *found)
    {
        const long begin = parts.begin(part);
        std::fill_n(found, 2 * c, 0.0);
        parts.blocks(begin, parts.end(part), [&](long first, int rows) {
            for (int q = 0; q < c; q += W) {
                vec pivot, sums[CHAINS] = {}, squares[CHAINS] = {};
                if (first == begin) {
                    chained(first * c + q, rows, c, [&](long i, int chain) { sums[chain] += load(x + i); });
                    pivot = sum(sums) / (float)rows;
                    for (vec &chain : sums) chain = vec{};
                } else {
                    for (int j = 0; j < W; j++) pivot[j] = found[q + j];
                }
                chained(first * c + q, rows, c, [&](long i, int chain) {
                    const vec off = load(x + i) - pivot;
                    sums[chain] += off;
                    squares[chain] += off * off;
                });
                const vec total = sum(sums), all = sum(squares);
                double means[W], deviations[W];
                for (int j = 0; j < W; j++) {
                    const double apart = (double)total[j] / rows;
                    means[j] = pivot[j] + apart;
                    deviations[j] = all[j] - apart * total[j];
                }
                join(found + q, means, deviations, W, c, first - begin, rows);
            }
        });
    }

    // Moments of the parts joined, in their order, in double precision; moving averages, with the unbiased variance.
    static void settle(const Parts &parts, int c, const float *weight, const float *bias, float *running_mean,
                       float *running_variance, double momentum, double epsilon, const Channels &norm, double *work)
    {
        for (long part = 1; part < parts.count; part++) {
            const double *other = work + part * 2 * c;
            join(work, other, other + c, c, c, parts.begin(part), parts.size(part));
        }
        for (int q = 0; q < c; q++) {
            const double mean = work[q], squares = work[c + q];
            const double deviation = std::sqrt(squares / parts.pixels + epsilon);
            norm.mean[q] = mean;
            norm.deviation[q] = deviation;
            norm.scale[q] = weight[q] / deviation;
            norm.bias[q] = bias[q];
            running_mean[q] += momentum * (mean - running_mean[q]);
            running_variance[q] += momentum * (squares / (parts.pixels - 1) - running_variance[q]);
        }
    }

    // y = max(0, norm(x) + added) of one part
    template <typename T>
    static void activate(const T *x, const T *added, T *y, const Parts &parts, long part, int c, const Channels &norm)
    {
        values(parts, part, c, [=](long i, int q) {
            vec v = (load(x + i) - load(norm.mean + q)) * load(norm.scale + q) + load(norm.bias + q);
            if (added) v += load(added + i);
            store(y + i, passed(v, v));
        });
    }

    template <typename T>
    static void forward(const T *x, const T *added, T *y, long pixels, int c, const float *weight, const float *bias,
                        float *running_mean, float *running_variance, double momentum, double epsilon,
                        float *channels, double *work, int threads)
    {
        const Parts parts(pixels, c);
        const Channels norm(channels, c);
        parts.all(threads, false, [=, &parts](long part) { moments(x, parts, part, c, work + part * 2 * c); });
        settle(parts, c, weight, bias, running_mean, running_variance, momentum, epsilon, norm, work);
        parts.all(threads, true, [=, &parts](long part) { activate(x, added, y, parts, part, c, norm); });
    }

    // The way back of a map: what arrives, and what of it leaves at x.
    template <typename T>
    struct Slopes {
        const T *slopes, *x, *y;
        T *of_added;
        Channels norm;
        float *slope, *constant;  // of_x = scale g - slope (x - mean) - constant

        // The gradient that arrives at the sum of norm and shortcut: where y, or without shortcut the norm, is positive
        vec arriving(const vec &off, const vec &scale, const vec &base, long i) const
        {
            return passed(y ? load(y + i) : off * scale + base, load(slopes + i));
        }

        // Adds to the sums of the gradient, and of it times x less its mean, those of these pixels. Stores what goes to
        // what was added.
        void sum_up(const Parts &parts, long begin, long end, int c, double *sums) const
        {
            parts.blocks(begin, end, [=](long first, int rows) {
                for (int q = 0; q < c; q += W) {
                    const vec mean = load(norm.mean + q), scale = load(norm.scale + q), base = load(norm.bias + q);
                    vec gradients[CHAINS] = {}, products[CHAINS] = {};
                    chained(first * c + q, rows, c, [&](long i, int chain) {
                        const vec off = load(x + i) - mean, g = arriving(off, scale, base, i);
                        gradients[chain] += g;
                        products[chain] += g * off;
                        if (of_added) store(of_added + i, g);
                    });
                    add(sums + q, sum(gradients));
                    add(sums + c + q, sum(products));
                }
            });
        }

        // The sums of all pixels, those of the parts joined in their order
        void sum_up(const Parts &parts, int c, double *sums, int threads) const
        {
            parts.all(threads, false, [=, &parts](long part) {
                std::fill_n(sums + part * 2 * c, 2 * c, 0.0);
                sum_up(parts, parts.begin(part), parts.end(part), c, sums + part * 2 * c);
            });
            for (long part = 1; part < parts.count; part++)
                for (int q = 0; q < 2 * c; q++) sums[q] += sums[part * 2 * c + q];
        }

        // From the sums of all pixels the gradients of weight and bias, and what `leaving` needs
        void settle(long pixels, int c, float *of_weight, float *of_bias, const double *sums) const
        {
            for (int q = 0; q < c; q++) {
                const double deviation = norm.deviation[q];
                of_bias[q] = sums[q];
                of_weight[q] = sums[c + q] / deviation;
                slope[q] = norm.scale[q] * sums[c + q] / pixels / (deviation * deviation);
                constant[q] = norm.scale[q] * sums[q] / pixels;
            }
        }

        // Of channels from q on: call(index) -> the gradient of W values of x
        auto leaving(int q) const
        {
            const vec mean = load(norm.mean + q), scale = load(norm.scale + q), base = load(norm.bias + q);
            const vec less = load(slope + q), fixed = load(constant + q);
            return [=, *this](long i) {
                const vec off = load(x + i) - mean;
                const vec g = of_added ? load(of_added + i) : arriving(off, scale, base, i);
                return scale * g - less * off - fixed;
            };
        }
    };

    template <typename T>
    static void backward(const T *slopes, const T *x, const T *y, T *of_x, T *of_added, long pixels, int c,
                         float *channels, float *of_weight, float *of_bias, double *work, int threads)
    {
        const Parts parts(pixels, c);
        float *slope = after_sums(work, c);
        const Slopes<T> back{slopes, x, y, of_added, Channels(channels, c), slope, slope + c};
        back.sum_up(parts, c, work, threads);
        back.settle(pixels, c, of_weight, of_bias, work);
        parts.all(threads, true, [=, &parts](long part) {
            for (int q = 0; q < c; q += W) {
                const auto leaving = back.leaving(q);
                for (long i = parts.begin(part) * c + q; i < parts.end(part) * c; i += c) store(of_x + i, leaving(i));
            }
        });
    }
};

#ifdef SIXTEEN
typedef Loops<Sixteen> Widest;
#else
typedef Loops<Eight> Widest;
#endif

// The loops for as many values at a time as the processor has registers for and the channels are a multiple of.
template <typename Call>
void by_width([[maybe_unused]] int c, Call call)
{
    if (c % Widest::W == 0) return call(Widest());
    call(Loops<Eight>());
}

}  // namespace

