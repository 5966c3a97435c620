// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv:1509.09308, 2015).
//
// Maps are cut into tiles of 4x4 outputs, each from 6x6 inputs. A tile is transformed to 36 values per channel; there
// the convolution is a product of matrices per position, with a quarter of the multiply-adds of the direct sum. Some
// tiles at a time go through all steps, so that what lies between the steps stays in the core's cache.
//
// Arrays are fp32 and dense: maps (N, H, W, C) as channels-last stores them, transformed kernels (36, C, K). C and K
// are multiples of LANES. Plain C interface, built by native.py, called by winograd.py.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifndef LANES  // floats in a register
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define UNROLL _Pragma("GCC unroll 16")

namespace {

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr int OUT = 4, IN = 6, POSITIONS = IN * IN;  // outputs and inputs of a tile along a side; values of a tile
constexpr int ROWS = LANES == 16 ? 12 : 6;           // of a product at a time: with two columns of registers they fit
constexpr int TALL = 4;                              // rows of a kernel's gradient at a time
constexpr long WORKSPACE = 1 << 18;                  // bytes of the tiles in work: they stay in a core's second cache
constexpr int GAP = 16;                              // floats between positions, or their rows would share cache sets

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
inline void store(float *p, const vec &v) { *reinterpret_cast<vec *>(p) = v; }

// Keeps a value in a register. Otherwise the compiler reads it from memory again for every product it is in.
inline void hold([[maybe_unused]] vec &v)
{
#if defined(__AVX512F__) || (LANES == 8 && defined(__AVX__)) || (LANES == 4 && defined(__SSE2__))
    __asm__("" : "+v"(v));
#elif LANES == 4 && defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
}

// The one-dimensional transforms: inputs, outputs and, for the gradient of the kernel, slopes of the outputs. The
// points of the interpolation are 0, +-A, +-B and infinity. On random maps of 32 channels the rounding error is 5.9e-7
// of the output, that of the direct sum 3.1e-7; at 0, +-1, +-2, the points of the paper, it would be 12.5e-7.
// winograd.py has the transform of the kernels.

constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f;  // roots of 1/2 and 2: products of squares are 1

inline void transform_inputs(const vec d[IN], vec r[IN])
{
    const vec even_a = d[4] - 2.f * d[2], odd_a = A * (d[3] - 2.f * d[1]);
    const vec even_b = d[4] - 0.5f * d[2], odd_b = B * (d[3] - 0.5f * d[1]);
    r[0] = d[0] - 2.5f * d[2] + d[4];
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = d[1] - 2.5f * d[3] + d[5];
}

inline void transform_outputs(const vec m[IN], vec r[OUT])
{
    const vec even_a = m[1] + m[2], odd_a = A * (m[1] - m[2]), even_b = m[3] + m[4], odd_b = B * (m[3] - m[4]);
    r[0] = m[0] + even_a + even_b;
    r[1] = odd_a + odd_b;
    r[2] = 0.5f * even_a + 2.f * even_b;
    r[3] = 0.5f * odd_a + 2.f * odd_b + m[5];
}

inline void transform_slopes(const vec y[OUT], vec r[IN])  // the transpose of transform_outputs
{
    const vec even_a = y[0] + 0.5f * y[2], odd_a = A * (y[1] + 0.5f * y[3]);
    const vec even_b = y[0] + 2.f * y[2], odd_b = B * (y[1] + 2.f * y[3]);
    r[0] = y[0];
    r[1] = even_a + odd_a;
    r[2] = even_a - odd_a;
    r[3] = even_b + odd_b;
    r[4] = even_b - odd_b;
    r[5] = y[3];
}

struct Maps {  // N images of h x w pixels and c channels, cut into rows x columns tiles
    int h, w, c, rows, columns;
};

struct Place {  // of a tile: its image, and its first output pixel
    long image;
    int top, left;
};

inline Place place(const Maps &maps, long tile)
{
    const long each = (long)maps.rows * maps.columns;
    const int rest = tile % each;
    return {tile / each, OUT * (rest / maps.columns), OUT * (rest % maps.columns)};
}

// v (36, count, c): the transforms of tiles from `first` on. SIZE pixels along a side, `pad` before the output's first;
// beyond the map there are zeros.
template <int SIZE, void (*TRANSFORM)(const vec *, vec *)>
void to_tiles(const float *x, const Maps &maps, int pad, long first, int count, float *v, long stride)
{
    const vec zero = {0};
    const int c = maps.c;
    for (int t = 0; t < count; t++) {
        const Place at = place(maps, first + t);
        const int top = at.top - pad, left = at.left - pad;
        const int from_row = std::max(0, -top), to_row = std::min(SIZE, maps.h - top);
        const int from_column = std::max(0, -left), to_column = std::min(SIZE, maps.w - left);
        const float *from = x + ((at.image * maps.h + top) * maps.w + left) * c;
        for (int q = 0; q < c; q += LANES) {
            vec half[IN][SIZE];
            for (int j = 0; j < SIZE; j++) {
                vec d[SIZE], r[IN];
                const bool inside = j >= from_column && j < to_column;
                UNROLL for (int i = 0; i < SIZE; i++) d[i] =
                    inside && i >= from_row && i < to_row ? load(from + ((long)i * maps.w + j) * c + q) : zero;
                TRANSFORM(d, r);
                UNROLL for (int i = 0; i < IN; i++) half[i][j] = r[i];
            }
            for (int i = 0; i < IN; i++) {
                vec r[IN];
                TRANSFORM(half[i], r);
                UNROLL for (int j = 0; j < IN; j++) store(v + (IN * i + j) * stride + (long)t * c + q, r[j]);
            }
        }
    }
}

// The outputs of tiles from `first` on, from m (36, count, c).
void from_tiles(const float *m, long stride, const Maps &maps, long first, int count, float *y)
{
    const int c = maps.c;
    for (int t = 0; t < count; t++) {
        const Place at = place(maps, first + t);
        const int rows = std::min(OUT, maps.h - at.top), columns = std::min(OUT, maps.w - at.left);
        float *to = y + ((at.image * maps.h + at.top) * maps.w + at.left) * c;
        for (int q = 0; q < c; q += LANES) {
            vec half[OUT][IN];
            for (int j = 0; j < IN; j++) {
                vec d[IN], r[OUT];
                UNROLL for (int i = 0; i < IN; i++) d[i] = load(m + (IN * i + j) * stride + (long)t * c + q);
                transform_outputs(d, r);
                UNROLL for (int i = 0; i < OUT; i++) half[i][j] = r[i];
            }
            for (int i = 0; i < rows; i++) {
                vec r[OUT];
                transform_outputs(half[i], r);
                UNROLL for (int j = 0; j < OUT; j++)
                    if (j < columns) store(to + ((long)i * maps.w + j) * c + q, r[j]);
            }
        }
    }
}

// m (rows, k) = v (rows, c) u (c, k): WIDE registers of columns. rows: a multiple of ROWS.
template <int WIDE>
void product(const float *v, const float *u, float *m, int rows, int c, int k)
{
    for (int r = 0; r < rows; r += ROWS) {
        vec sum[ROWS][WIDE] = {};
        const float *a = v + (long)r * c, *b = u;
        for (int p = 0; p < c; p++, b += k) {
            vec f[WIDE];
            UNROLL for (int j = 0; j < WIDE; j++) {
                f[j] = load(b + j * LANES);
                hold(f[j]);
            }
            UNROLL for (int i = 0; i < ROWS; i++) {
                const float factor = a[(long)i * c + p];
                UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] += factor * f[j];
            }
        }
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < WIDE; j++) store(m + (long)(r + i) * k + j * LANES, sum[i][j]);
    }
}

// g (TALL, k) += v (rows, c)^T z (rows, k) for TALL channels of v: WIDE registers of columns.
template <int WIDE>
void outer(const float *v, const float *z, float *g, int rows, int c, int k)
{
    vec sum[TALL][WIDE];
    UNROLL for (int i = 0; i < TALL; i++)
        UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] = load(g + (long)i * k + j * LANES);
    for (int r = 0; r < rows; r++, v += c, z += k) {
        vec f[WIDE];
        UNROLL for (int j = 0; j < WIDE; j++) {
            f[j] = load(z + j * LANES);
            hold(f[j]);
        }
        UNROLL for (int i = 0; i < TALL; i++)
            UNROLL for (int j = 0; j < WIDE; j++) sum[i][j] += v[i] * f[j];
    }
    UNROLL for (int i = 0; i < TALL; i++)
        UNROLL for (int j = 0; j < WIDE; j++) store(g + (long)i * k + j * LANES, sum[i][j]);
}

struct Plan {  // tiles are worked on in blocks; block and blocks do not depend on the number of threads
    Maps in, out;
    int block;
    long tiles, blocks, in_stride, out_stride;

    Plan(int n, int h, int w, int c, int k, int pad)
    {
        const int rows = h + 2 * pad - 2, columns = w + 2 * pad - 2;
        in = {h, w, c, (rows + OUT - 1) / OUT, (columns + OUT - 1) / OUT};
        out = {rows, columns, k, in.rows, in.columns};
        tiles = (long)n * in.rows * in.columns;
        block = std::max(1L, WORKSPACE / (4L * POSITIONS * (c + k)) / 12) * 12;  // a multiple of every ROWS
        blocks = (tiles + block - 1) / block;
        in_stride = (long)block * c + GAP;
        out_stride = (long)block * k + GAP;
    }
    int count(long first) const { return std::min((long)block, tiles - first); }
    float *workspace() const
    {
        const long size = 4 * POSITIONS * (in_stride + out_stride);
        void *memory = std::aligned_alloc(64, (size + 63) / 64 * 64);
        return static_cast<float *>(memory ? std::memset(memory, 0, size) : nullptr);
    }
};

}  // namespace

extern "C" {

int lanes() { return LANES; }

// y = x * kernels. x (n, h, w, c), u (36, c, k), y (n, h + 2 pad - 2, w + 2 pad - 2, k). 0, or 1: memory ran out.
int convolve(const float *x, const float *u, float *y, int n, int h, int w, int c, int k, int pad,
             [[maybe_unused]] int threads)
{
    const Plan plan(n, h, w, c, k, pad);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *v = plan.workspace(), *m = v + POSITIONS * plan.in_stride;
        failed |= !v;
#pragma omp for schedule(static)
        for (long i = 0; i < plan.blocks; i++) {
            if (!v) continue;
            const long first = i * plan.block;
            const int count = plan.count(first), rows = (count + ROWS - 1) / ROWS * ROWS;
            to_tiles<IN, transform_inputs>(x, plan.in, pad, first, count, v, plan.in_stride);
            for (int p = 0; p < POSITIONS; p++) {
                const float *a = v + p * plan.in_stride, *b = u + (long)p * c * k;
                float *to = m + p * plan.out_stride;
                int q = 0;
                for (; q + 2 * LANES <= k; q += 2 * LANES) product<2>(a, b + q, to + q, rows, c, k);
                if (q < k) product<1>(a, b + q, to + q, rows, c, k);
            }
            from_tiles(m, plan.out_stride, plan.out, first, count, y);
        }
        std::free(v);
    }
    return failed;
}

// du (36, c, k): the gradient of the transformed kernels, dy (as y) being that of the outputs. The sums of the threads
// are added in their order, so that the same number of threads gives the same bits. 0, or 1: memory ran out.
int kernel_gradient(const float *x, const float *dy, float *du, int n, int h, int w, int c, int k, int pad,
             [[maybe_unused]] int threads)
{
    const Plan plan(n, h, w, c, k, pad);
    const long size = (long)POSITIONS * c * k;
    float *sums = static_cast<float *>(std::calloc(threads * size, 4));
    if (!sums) return 1;
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : failed)
    for (int part = 0; part < threads; part++) {
        float *v = plan.workspace(), *z = v + POSITIONS * plan.in_stride, *sum = sums + part * size;
        failed |= !v;
        for (long i = plan.blocks * part / threads; v && i < plan.blocks * (part + 1) / threads; i++) {
            const long first = i * plan.block;
            const int count = plan.count(first);
            to_tiles<IN, transform_inputs>(x, plan.in, pad, first, count, v, plan.in_stride);
            to_tiles<OUT, transform_slopes>(dy, plan.out, 0, first, count, z, plan.out_stride);
            for (int p = 0; p < POSITIONS; p++) {
                const float *a = v + p * plan.in_stride, *b = z + p * plan.out_stride;
                float *to = sum + (long)p * c * k;
                for (int q = 0; q < c; q += TALL, a += TALL, to += (long)TALL * k) {
                    int r = 0;
                    for (; r + 2 * LANES <= k; r += 2 * LANES) outer<2>(a, b + r, to + r, count, c, k);
                    if (r < k) outer<1>(a, b + r, to + r, count, c, k);
                }
            }
        }
        std::free(v);
    }
    std::memcpy(du, sums, 4 * size);
    for (int part = 1; part < threads; part++)
        for (long i = 0; i < size; i++) du[i] += sums[part * size + i];
    std::free(sums);
    return failed;
}

}
