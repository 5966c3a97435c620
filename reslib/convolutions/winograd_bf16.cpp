// 3x3 convolutions of stride 1 in bf16 by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308,
// 2015), for processors that multiply pairs of bf16 values and add the products in fp32 (AVX512-BF16).
//
// Maps are cut into tiles of 2x2 outputs, each from 4x4 inputs. A tile is transformed to 16 values per channel; there
// the convolution is a product of matrices per position, with 4/9 of the multiply-adds of the direct sum. Transforms and
// sums are in fp32; what is multiplied is rounded to bf16. Larger tiles would save more, but magnify that rounding.
//
// Arrays are dense: maps (N, H, W, C) as channels-last stores them, bf16; kernels (9, C, K), fp32. C and K are
// multiples of PAIRS. Plain C interface, built by native.py, called by winograd.py. EMULATED (for tests) makes the
// loops for any processor.

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(EMULATED)
#define NATIVE
#include <immintrin.h>
#endif

extern "C" int bf16_pairs()  // whether the loops are here
{
#if defined(NATIVE) || defined(EMULATED)
    return 1;
#else
    return 0;
#endif
}

#if defined(NATIVE) || defined(EMULATED)

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int PAIRS = 16;                            // of bf16 values in a register, which is as many fp32 values
constexpr int OUT = 2, IN = 4, POSITIONS = IN * IN;  // outputs and inputs of a tile along a side; values of a tile
constexpr int FORWARD = 16, BACKWARD = 64;           // tiles of a block, about: they stay in the second cache
constexpr int TALL = 8;                              // rows of a kernel's gradient at a time
constexpr int GAP = 32;                              // values between positions, or their rows would share cache sets

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * PAIRS), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * PAIRS), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * PAIRS), aligned(2), may_alias));

INLINE vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
INLINE void store(float *p, const vec &v) { *reinterpret_cast<vec *>(p) = v; }

#ifdef NATIVE

INLINE bits widened(const halves &v) { return (bits)_mm512_cvtepu16_epi32((__m256i)v); }  // GCC 12 takes two steps

INLINE halves rounded(const vec &v) { return (halves)_mm512_cvtneps_pbh((__m512)v); }

INLINE vec multiply_add(const vec &sum, const bits &a, const bits &b)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Keeps a value in a register. Otherwise the compiler reads it from memory again for every product it is in.
INLINE void hold(bits &v) { __asm__("" : "+v"(v)); }

#else

inline bits widened(const halves &v) { return __builtin_convertvector(v, bits); }

// to nearest, ties to even; what is not a number stays so
inline halves rounded(const vec &v)
{
    const bits b = (bits)v, up = b + 0x7fff + ((b >> 16) & 1), quiet = b | 0x400000;
    return __builtin_convertvector((v == v ? up : quiet) >> 16, halves);
}

inline vec multiply_add(const vec &sum, const bits &a, const bits &b)
{
    return sum + (vec)(a << 16) * (vec)(b << 16) + (vec)(a & 0xffff0000u) * (vec)(b & 0xffff0000u);
}

inline void hold(bits &) {}

#endif

// A bf16 number is the upper half of an fp32 number.
INLINE vec load(const bf16 *p) { return (vec)(widened(*reinterpret_cast<const halves *>(p)) << 16); }
INLINE void store(bf16 *p, const vec &v) { *reinterpret_cast<halves *>(p) = rounded(v); }

// Pairs of one value of a and one of b.
INLINE void store_pairs(bf16 *p, const vec &a, const vec &b)
{
    *reinterpret_cast<bits *>(p) = widened(rounded(a)) | widened(rounded(b)) << 16;
}

INLINE bits load_pairs(const bf16 *p) { return *reinterpret_cast<const bits *>(p); }

INLINE bits spread_pair(const bf16 *p)
{
    uint32_t pair;
    std::memcpy(&pair, p, 4);
    return bits{} + pair;
}

// The one-dimensional transforms: inputs, outputs, slopes of the outputs, kernels, and a kernel's gradient back. The
// points of the interpolation are 0, 1, -1 and infinity.

struct Inputs {
    static constexpr int SIZE = IN;
    static INLINE void transform(const vec d[IN], vec r[IN])
    {
        r[0] = d[0] - d[2];
        r[1] = d[1] + d[2];
        r[2] = d[2] - d[1];
        r[3] = d[1] - d[3];
    }
};

INLINE void transform_outputs(const vec m[IN], vec r[OUT])
{
    r[0] = m[0] + (m[1] + m[2]);
    r[1] = (m[1] - m[2]) - m[3];
}

struct Slopes {  // the transpose of transform_outputs
    static constexpr int SIZE = OUT;
    static INLINE void transform(const vec y[OUT], vec r[IN])
    {
        r[0] = y[0];
        r[1] = y[0] + y[1];
        r[2] = y[0] - y[1];
        r[3] = -y[1];
    }
};

INLINE void transform_kernel(const vec &a, const vec &b, const vec &c, vec r[IN])
{
    const vec even = 0.5f * (a + c), odd = 0.5f * b;
    r[0] = a;
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = c;
}

INLINE void kernel_back(const vec u[IN], vec r[3])  // its transpose
{
    const vec even = 0.5f * (u[1] + u[2]);
    r[0] = u[0] + even;
    r[1] = 0.5f * (u[1] - u[2]);
    r[2] = u[3] + even;
}

// u (POSITIONS, k / PAIRS, c / 2, PAIRS, 2): the transformed kernels (9, c, k), channels in pairs.
void transform_kernels(const float *kernels, bf16 *u, int c, int k)
{
    const long size = (long)c * k;
    for (int p = 0; p < c; p += 2)
        for (int q = 0; q < k; q += PAIRS) {
            vec result[2][POSITIONS];
            for (int of = 0; of < 2; of++) {
                const float *from = kernels + (long)(p + of) * k + q;
                vec half[3][IN];
                for (int j = 0; j < 3; j++)
                    transform_kernel(load(from + j * size), load(from + (3 + j) * size), load(from + (6 + j) * size),
                                     half[j]);
                for (int i = 0; i < IN; i++)
                    transform_kernel(half[0][i], half[1][i], half[2][i], result[of] + IN * i);
            }
            for (int i = 0; i < POSITIONS; i++)
                store_pairs(u + i * size + (long)q * c + (long)p * PAIRS, result[0][i], result[1][i]);
        }
}

// kernels (9, size): the gradient, from that of the transformed kernels (POSITIONS, size).
void kernels_back(const float *gradient, float *kernels, long size)
{
    for (long q = 0; q < size; q += PAIRS) {
        vec half[3][IN];
        for (int j = 0; j < IN; j++) {
            vec u[IN], r[3];
            for (int i = 0; i < IN; i++) u[i] = load(gradient + (IN * i + j) * size + q);
            kernel_back(u, r);
            for (int i = 0; i < 3; i++) half[i][j] = r[i];
        }
        for (int i = 0; i < 3; i++) {
            vec r[3];
            kernel_back(half[i], r);
            for (int j = 0; j < 3; j++) store(kernels + (3 * i + j) * size + q, r[j]);
        }
    }
}

struct Maps {  // N images of h x w pixels and c channels
    int h, w, c;
    long image() const { return (long)h * w * c; }
};

// A tile of the next row, to read or to write: rows of a map are too short for the processor to see what comes.
template <typename T>
INLINE void prefetch(T *p, const Maps &maps)
{
    const long row = (long)maps.w * maps.c;
    for (T *at : {p, p + maps.c, p + row, p + row + maps.c}) __builtin_prefetch(at, !std::is_const<T>::value);
}

// Where the transforms of a block's tiles lie: (POSITIONS, c / PAIRS, tiles, PAIRS), rounded up to `tiles`.
struct Tiles {
    int tiles;
    long position;  // values of one, with a gap after them

    Tiles(int tiles, int c) : tiles(tiles), position((long)tiles * c + GAP) {}
    long group() const { return (long)tiles * PAIRS; }  // values of PAIRS channels
    long size() const { return POSITIONS * position; }
};

// half[.][j]: the transform of one column of a row of tiles, PAIRS channels of it. Beyond the map there are zeros.
template <typename Kind>
INLINE void column(const bf16 *const *rows, const Maps &maps, int at, int q, vec half[IN][Kind::SIZE], int j)
{
    vec d[Kind::SIZE], r[IN];
    if (at >= 0 && at < maps.w) {
        UNROLL for (int i = 0; i < Kind::SIZE; i++) d[i] = load(rows[i] + (long)at * maps.c + q);
        Kind::transform(d, r);
    } else {
        UNROLL for (int i = 0; i < IN; i++) r[i] = vec{};
    }
    UNROLL for (int i = 0; i < IN; i++) half[i][j] = r[i];
}

// The transforms of one row of tiles, from the pixel `top`, `left` on. PAIRED: tiles beside each other are stored in
// pairs of values; an odd one is paired with zeros.
template <typename Kind, bool PAIRED>
void to_tiles(const bf16 *x, const Maps &maps, int top, int left, int columns, const bf16 *zeros, bf16 *v,
              const Tiles &tiles)
{
    constexpr int SIZE = Kind::SIZE, SHARED = SIZE - OUT;  // columns that a tile shares with the one before
    const bf16 *rows[SIZE];
    for (int i = 0; i < SIZE; i++)
        rows[i] = top + i >= 0 && top + i < maps.h ? x + (long)(top + i) * maps.w * maps.c : zeros;
    for (int q = 0; q < maps.c; q += PAIRS) {
        bf16 *to = v + q / PAIRS * tiles.group();
        vec half[IN][SIZE], before[PAIRED ? POSITIONS : 1] = {};
        UNROLL for (int j = 0; j < SHARED; j++) column<Kind>(rows, maps, left + j, q, half, OUT + j);
        for (int t = 0; t < columns; t++) {
            UNROLL for (int i = 0; i < IN; i++)
                UNROLL for (int j = 0; j < SHARED; j++) half[i][j] = half[i][OUT + j];
            prefetch(x + ((long)(top + SIZE) * maps.w + left + OUT * t + SHARED) * maps.c + q, maps);
            UNROLL for (int j = SHARED; j < SIZE; j++) column<Kind>(rows, maps, left + OUT * t + j, q, half, j);
            UNROLL for (int i = 0; i < IN; i++) {
                vec r[IN];
                Kind::transform(half[i], r);
                bf16 *row = to + IN * i * tiles.position + t * PAIRS;
                if constexpr (!PAIRED) {
                    UNROLL for (int j = 0; j < IN; j++) store(row + j * tiles.position, r[j]);
                } else if (t & 1) {
                    UNROLL for (int j = 0; j < IN; j++)
                        store_pairs(row - PAIRS + j * tiles.position, before[IN * i + j], r[j]);
                } else {
                    UNROLL for (int j = 0; j < IN; j++) before[IN * i + j] = r[j];
                }
            }
        }
        if constexpr (PAIRED)
            if (columns & 1)
                UNROLL for (int p = 0; p < POSITIONS; p++)
                    store_pairs(to + p * tiles.position + (columns - 1) * PAIRS, before[p], vec{});
    }
}

// The outputs of one row of tiles for WIDE registers of channels from `q` on, from m (tiles, POSITIONS, WIDE, PAIRS).
template <int WIDE>
void from_tiles(const float *m, const Maps &maps, int top, int columns, int q, bf16 *y)
{
    const int rows = std::min(OUT, maps.h - top);
    const long row = (long)maps.w * maps.c;
    for (int t = 0; t < columns; t++, m += POSITIONS * WIDE * PAIRS) {
        prefetch(y + (top + OUT) * row + (long)OUT * t * maps.c + q, maps);
        const bool both = OUT * t + 1 < maps.w;
        UNROLL for (int g = 0; g < WIDE; g++) {
            vec half[OUT][IN];
            UNROLL for (int j = 0; j < IN; j++) {
                vec d[IN], r[OUT];
                UNROLL for (int i = 0; i < IN; i++) d[i] = load(m + ((IN * i + j) * WIDE + g) * PAIRS);
                transform_outputs(d, r);
                UNROLL for (int i = 0; i < OUT; i++) half[i][j] = r[i];
            }
            bf16 *to = y + top * row + (long)OUT * t * maps.c + q + g * PAIRS;
            for (int i = 0; i < rows; i++, to += row) {
                vec r[OUT];
                transform_outputs(half[i], r);
                store(to, r[0]);
                if (both) store(to + maps.c, r[1]);
            }
        }
    }
}

// m = v u for one position: v (c / PAIRS, tiles, PAIRS), u (., c / 2, PAIRS, 2). The first `count` tiles, rounded up to
// a multiple of ROWS, and WIDE registers of columns.
template <int ROWS, int WIDE>
void product(const bf16 *v, const Tiles &tiles, const bf16 *u, float *m, int count, int c)
{
    for (int r = 0; r < count; r += ROWS) {
        vec sum[ROWS][WIDE] = {};
        const bf16 *b = u;
        for (int g = 0; g < c / PAIRS; g++) {
            const bf16 *a = v + g * tiles.group() + (long)r * PAIRS;
            for (int p = 0; p < PAIRS; p += 2, a += 2, b += 2 * PAIRS) {
                bits f[WIDE];
                UNROLL for (int j = 0; j < WIDE; j++) {
                    f[j] = load_pairs(b + (long)j * c * PAIRS);
                    hold(f[j]);
                }
                UNROLL for (int i = 0; i < ROWS; i++) {
                    const bits factor = spread_pair(a + i * PAIRS);
                    UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] = multiply_add(sum[i][j], factor, f[j]);
                }
            }
        }
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < WIDE; j++)
                store(m + ((long)(r + i) * POSITIONS * WIDE + j) * PAIRS, sum[i][j]);
    }
}

// g (TALL, k) += v^T z for one position, over pairs of tiles: v (tiles / 2, PAIRS, 2) from a channel on, z as v in WIDE
// groups of channels.
template <int WIDE>
void outer(const bf16 *v, const bf16 *z, const Tiles &tiles, float *g, int count, int k)
{
    vec sum[TALL][WIDE];
    UNROLL for (int i = 0; i < TALL; i++)
        UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] = load(g + (long)i * k + j * PAIRS);
    for (int r = 0; r < count; r += 2, v += 2 * PAIRS, z += 2 * PAIRS) {
        bits f[WIDE];
        UNROLL for (int j = 0; j < WIDE; j++) {
            f[j] = load_pairs(z + j * tiles.group());
            hold(f[j]);
        }
        UNROLL for (int i = 0; i < TALL; i++) {
            const bits factor = spread_pair(v + 2 * i);
            UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] = multiply_add(sum[i][j], factor, f[j]);
        }
    }
    UNROLL for (int i = 0; i < TALL; i++)
        UNROLL for (int j = 0; j < WIDE; j++) store(g + (long)i * k + j * PAIRS, sum[i][j]);
}

// call(first column, number of registers) for all columns, two registers at a time, then what is left. The number is
// a constant for the compiler.
template <typename Call>
INLINE void by_registers(int k, Call call)
{
    int q = 0;
    for (; q + 2 * PAIRS <= k; q += 2 * PAIRS) call(q, std::integral_constant<int, 2>());
    if (q < k) call(q, std::integral_constant<int, 1>());
}

struct Plan {  // rows of tiles are worked on in blocks, which do not depend on the number of threads
    Maps in, out;
    int pad, rows, columns, each;  // rows of tiles of an image, tiles of a row, rows of a block
    long all;                      // rows of tiles

    Plan(int n, int h, int w, int c, int k, int pad, int block) : in{h, w, c}, pad(pad)
    {
        out = {h + 2 * pad - 2, w + 2 * pad - 2, k};
        rows = (out.h + OUT - 1) / OUT;
        columns = (out.w + OUT - 1) / OUT;
        each = std::max(1, block / std::max(1, columns));
        all = (long)n * rows;
    }
    long image(long row) const { return row / rows; }
    int top(long row) const { return OUT * (row % rows); }
    long zeros() const { return (long)in.w * in.c + (long)out.w * out.c; }  // a row of either map
};

// count values, zero, at the beginning of a cache line; null where memory ran out
template <typename T>
T *zeroed(long count)
{
    const long bytes = std::max(64L, (count * (long)sizeof(T) + 63) / 64 * 64);
    void *memory = std::aligned_alloc(64, bytes);
    return static_cast<T *>(memory ? std::memset(memory, 0, bytes) : nullptr);
}

}  // namespace

extern "C" {

// y = x * kernels. x (n, h, w, c), kernels (9, c, k), y (n, h + 2 pad - 2, w + 2 pad - 2, k). 0, or 1: memory ran out.
int convolve_bf16(const bf16 *x, const float *kernels, bf16 *y, int n, int h, int w, int c, int k, int pad,
                  [[maybe_unused]] int threads)
{
    const Plan plan(n, h, w, c, k, pad, FORWARD);
    const Tiles tiles((plan.each * plan.columns + 15) / 16 * 16, c);  // a multiple of every ROWS
    const long blocks = (plan.all + plan.each - 1) / plan.each, pair = (long)c * k;
    bf16 *u = zeroed<bf16>(POSITIONS * pair);
    if (!u) return 1;
    transform_kernels(kernels, u, c, k);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        bf16 *v = zeroed<bf16>(tiles.size() + plan.zeros()), *zeros = v + tiles.size();
        float *m = zeroed<float>((long)tiles.tiles * POSITIONS * 2 * PAIRS);
        failed |= !v || !m;
#pragma omp for schedule(static)
        for (long block = 0; block < blocks; block++) {
            if (!v || !m) continue;
            const long first = block * plan.each;
            const int rows = std::min<long>(plan.each, plan.all - first), count = rows * plan.columns;
            for (int r = 0; r < rows; r++)
                to_tiles<Inputs, false>(x + plan.image(first + r) * plan.in.image(), plan.in, plan.top(first + r) - pad,
                                        -pad, plan.columns, zeros, v + (long)r * plan.columns * PAIRS, tiles);
            by_registers(k, [&](int q, auto number) {
                constexpr int WIDE = decltype(number)::value;
                for (int p = 0; p < POSITIONS; p++)
                    product<16 / WIDE, WIDE>(v + p * tiles.position, tiles, u + p * pair + (long)q * c,
                                             m + p * WIDE * PAIRS, count, c);
                for (int r = 0; r < rows; r++)
                    from_tiles<WIDE>(m + (long)r * plan.columns * POSITIONS * WIDE * PAIRS, plan.out,
                                     plan.top(first + r), plan.columns, q,
                                     y + plan.image(first + r) * plan.out.image());
            });
        }
        std::free(v);
        std::free(m);
    }
    std::free(u);
    return failed;
}

// kernels (9, c, k): their gradient, dy (as y) being that of the outputs. The sums of the threads are added in their
// order, so that the same number of threads gives the same bits. 0, or 1: memory ran out.
int kernel_gradient_bf16(const bf16 *x, const bf16 *dy, float *kernels, int n, int h, int w, int c, int k, int pad,
                         [[maybe_unused]] int threads)
{
    const Plan plan(n, h, w, c, k, pad, BACKWARD);
    const int paired = (plan.columns + 1) / 2 * 2;  // each row begins with a pair of its own
    const Tiles inputs(plan.each * paired, c), slopes(plan.each * paired, k);
    const long size = (long)POSITIONS * c * k;
    float *sums = zeroed<float>(threads * size);
    if (!sums) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (int part = 0; part < threads; part++) {
        bf16 *v = zeroed<bf16>(inputs.size() + slopes.size() + plan.zeros());
        bf16 *z = v + inputs.size(), *zeros = z + slopes.size();
        float *sum = sums + part * size;
        failed |= !v;
        const long end = plan.all * (part + 1) / threads;
        for (long first = plan.all * part / threads; v && first < end; first += plan.each) {
            const int rows = std::min<long>(plan.each, end - first);
            for (int r = 0; r < rows; r++) {
                const long image = plan.image(first + r), to = (long)r * paired * PAIRS;
                const int top = plan.top(first + r);
                to_tiles<Inputs, true>(x + image * plan.in.image(), plan.in, top - pad, -pad, plan.columns, zeros,
                                       v + to, inputs);
                to_tiles<Slopes, true>(dy + image * plan.out.image(), plan.out, top, 0, plan.columns, zeros, z + to,
                                       slopes);
            }
            for (int p = 0; p < POSITIONS; p++)
                for (int i = 0; i < c; i += TALL) {
                    const bf16 *a = v + p * inputs.position + i / PAIRS * inputs.group() + i % PAIRS * 2;
                    by_registers(k, [&](int q, auto number) {
                        outer<decltype(number)::value>(a, z + p * slopes.position + q / PAIRS * slopes.group(), slopes,
                                                       sum + ((long)p * c + i) * k + q, rows * paired, k);
                    });
                }
        }
        std::free(v);
    }
    for (int part = 1; part < threads; part++)
        for (long i = 0; i < size; i++) sums[i] += sums[part * size + i];
    if (!failed) kernels_back(sums, kernels, (long)c * k);
    std::free(sums);
    return failed;
}

}

#endif
