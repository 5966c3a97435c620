// Batch norm in training, the addition of a shortcut and ReLU in one go: y = max(0, norm(x) + added), and its gradient.
//
// One after the other, as PyTorch does them, the three operations read and write a map about twice as often, and it is
// memory that limits them. Here a map is read twice each way: for the sums over all pixels, and to use them, the second
// time from its end, which the caches still hold.
//
// Arrays are dense: maps (pixels, c) as channels-last stores them, fp32 or bf16; c is a multiple of WIDTH. Sums are
// taken over parts of a map that do not depend on the number of threads and are joined in their order, in double
// precision: the same bits for any number of threads. Plain C interface, built by native.py, called by fused_norm.py.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int WIDTH = 8;      // channels at a time
constexpr long PARTS = 64;    // of a map, at most
constexpr int FLOATS = 1024;  // of a block of pixels, about: those of all maps stay in the core's first cache

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef uint16_t bf16;

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }
inline void store(float *p, const vec &v) { *reinterpret_cast<vec *>(p) = v; }

inline vec load(const bf16 *p)  // the upper half of an fp32 number
{
    return (vec)(__builtin_convertvector(*reinterpret_cast<const halves *>(p), bits) << 16);
}

inline void store(bf16 *p, const vec &v)  // rounded to nearest, ties to even; what is not a number stays so
{
    const bits b = (bits)v, up = b + 0x7fff + ((b >> 16) & 1), quiet = b | 0x400000;
    *reinterpret_cast<halves *>(p) = __builtin_convertvector(((v == v ? up : quiet) >> 16) & 0xffff, halves);
}

// v, but 0 where gate <= 0: ReLU and its gradient. What is not a number stays so, as in PyTorch.
inline vec passed(const vec &gate, const vec &v) { return (vec)((bits)v & ~(bits)(gate <= 0.f)); }

struct Parts {  // of a map: at most PARTS, each of blocks of `rows` pixels, the last of what is left
    long pixels, each, count;
    int rows;

    Parts(long pixels, int c) : pixels(pixels), rows(std::max(16, FLOATS / c))
    {
        const long blocks = (pixels + rows - 1) / rows;
        each = (blocks + PARTS - 1) / PARTS * rows;
        count = (pixels + each - 1) / each;
    }
    long begin(long part) const { return part * each; }
    long end(long part) const { return std::min(pixels, begin(part) + each); }

    // call(part) for each, shared out among the threads; backwards, so that each begins with what it read last
    template <typename Call>
    void all([[maybe_unused]] int threads, bool backwards, Call call) const
    {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int thread = 0; thread < threads; thread++) {
            const long from = count * thread / threads, to = count * (thread + 1) / threads;
            for (long i = 0; i < to - from; i++) call(backwards ? to - 1 - i : from + i);
        }
    }

    // call(first pixel, number of pixels) for every block of a part
    template <typename Call>
    void blocks(long part, Call call) const
    {
        for (long first = begin(part); first < end(part); first += rows)
            call(first, (int)std::min<long>(rows, end(part) - first));
    }

    // call(index, channel) for every WIDTH values of a part, in the order of the memory
    template <typename Call>
    void values(long part, int c, Call call) const
    {
        for (long i = begin(part) * c; i < end(part) * c; i += c)
            for (int q = 0; q < c; q += WIDTH) call(i + q, q);
    }
};

// Means and sums of squared deviations of `count` values joined to those of `before`: Chan, Golub, LeVeque (1979).
// Both arrays have the means of `c` channels, and after them the sums.
inline void join(double *to, const double *means, const double *squares, int number, int c, double before, double count)
{
    const double share = count / (before + count), weight = before * share;
    for (int j = 0; j < number; j++) {
        const double apart = means[j] - to[j];
        to[j] += share * apart;
        to[c + j] += squares[j] + weight * apart * apart;
    }
}

// Of each channel in one part, block by block: as exact as two passes over it, with one through memory.
template <typename T>
void moments(const T *x, const Parts &parts, long part, int c, double *found)
{
    std::fill_n(found, 2 * c, 0.0);
    parts.blocks(part, [=, &parts](long first, int rows) {
        for (int q = 0; q < c; q += WIDTH) {
            const T *from = x + first * c + q;
            vec sum = {0}, rest = {0}, squares = {0};
            for (int r = 0; r < rows; r++) sum += load(from + (long)r * c);
            const vec mean = sum / (float)rows;
            for (int r = 0; r < rows; r++) {
                const vec off = load(from + (long)r * c) - mean;
                rest += off;  // what rounding left of the mean
                squares += off * off;
            }
            double means[WIDTH], sums[WIDTH];
            for (int j = 0; j < WIDTH; j++) {
                const double more = (double)rest[j] / rows;
                means[j] = mean[j] + more;
                sums[j] = squares[j] - more * rest[j];
            }
            join(found + q, means, sums, WIDTH, c, first - parts.begin(part), rows);
        }
    });
}

// Per channel, (4, c): what the way back needs, the norm being scale (x - mean) + bias.
struct Channels {
    float *mean, *deviation, *scale, *bias;

    Channels(float *all, int c) : mean(all), deviation(all + c), scale(all + 2 * c), bias(all + 3 * c) {}

    // The norm of WIDTH channels from q on; off: x - mean.
    vec of(const vec &off, int q) const { return off * load(scale + q) + load(bias + q); }
};

template <typename T>
void forward(const T *x, const T *added, T *y, long pixels, int c, const float *weight, const float *bias,
             float *running_mean, float *running_variance, double momentum, double epsilon, float *channels,
             double *work, int threads)
{
    const Parts parts(pixels, c);
    const Channels norm(channels, c);
    parts.all(threads, false, [=, &parts](long part) { moments(x, parts, part, c, work + part * 2 * c); });
    for (long part = 1; part < parts.count; part++) {
        const double *other = work + part * 2 * c;
        join(work, other, other + c, c, c, parts.begin(part), parts.end(part) - parts.begin(part));
    }
    for (int q = 0; q < c; q++) {
        const double mean = work[q], squares = work[c + q], deviation = std::sqrt(squares / pixels + epsilon);
        norm.mean[q] = mean;
        norm.deviation[q] = deviation;
        norm.scale[q] = weight[q] / deviation;
        norm.bias[q] = bias[q];
        running_mean[q] += momentum * (mean - running_mean[q]);
        running_variance[q] += momentum * (squares / (pixels - 1) - running_variance[q]);
    }
    parts.all(threads, true, [=, &parts](long part) {
        parts.values(part, c, [=](long i, int q) {
            vec v = norm.of(load(x + i) - load(norm.mean + q), q);
            if (added) v += load(added + i);
            store(y + i, passed(v, v));
        });
    });
}

// The gradient that arrives at the sum of norm and shortcut: where y, or without shortcut the norm, is positive.
template <typename T>
inline vec arriving(const T *slopes, const T *y, const vec &norm, long i)
{
    return passed(y ? load(y + i) : norm, load(slopes + i));
}

template <typename T>
void backward(const T *slopes, const T *x, const T *y, T *of_x, T *of_added, long pixels, int c, float *channels,
              float *of_weight, float *of_bias, double *work, int threads)
{
    const Parts parts(pixels, c);
    const Channels norm(channels, c);
    parts.all(threads, false, [=, &parts](long part) {
        double *sums = work + part * 2 * c;  // of the gradient, and of it times x less its mean
        std::fill_n(sums, 2 * c, 0.0);
        parts.blocks(part, [=](long first, int rows) {
            for (int q = 0; q < c; q += WIDTH) {
                const vec mean = load(norm.mean + q);
                vec sum = {0}, product = {0};
                for (long i = first * c + q; i < (first + rows) * c; i += c) {
                    const vec off = load(x + i) - mean, g = arriving(slopes, y, norm.of(off, q), i);
                    sum += g;
                    product += g * off;
                    if (of_added) store(of_added + i, g);
                }
                for (int j = 0; j < WIDTH; j++) {
                    sums[q + j] += sum[j];
                    sums[c + q + j] += product[j];
                }
            }
        });
    });
    for (long part = 1; part < parts.count; part++)
        for (int q = 0; q < 2 * c; q++) work[q] += work[part * 2 * c + q];
    float *slope = reinterpret_cast<float *>(work + PARTS * 2 * c), *constant = slope + c;
    for (int q = 0; q < c; q++) {  // of_x = scale g - slope (x - mean) - constant
        const double deviation = norm.deviation[q];
        of_bias[q] = work[q];
        of_weight[q] = work[c + q] / deviation;
        slope[q] = norm.scale[q] * work[c + q] / pixels / (deviation * deviation);
        constant[q] = norm.scale[q] * work[q] / pixels;
    }
    parts.all(threads, true, [=, &parts](long part) {
        parts.values(part, c, [=](long i, int q) {
            const vec off = load(x + i) - load(norm.mean + q);
            const vec g = of_added ? load(of_added + i) : arriving(slopes, y, norm.of(off, q), i);
            store(of_x + i, load(norm.scale + q) * g - load(slope + q) * off - load(constant + q));
        });
    });
}

}  // namespace

extern "C" {

int norm_width() { return WIDTH; }

long norm_work(int c) { return (2 * PARTS + 1) * c; }

// Both: maps of type 0 (fp32) or 1 (bf16); per channel fp32; `work` has room for norm_work(c) doubles.

// y = max(0, norm(x) + added), added may be null. Moving averages are updated, with the unbiased variance. channels
// (4, c), for the way back: mean, standard deviation (of the biased variance and epsilon), scale and bias.
void norm_forward(int type, const void *x, const void *added, void *y, long pixels, int c, const float *weight,
                  const float *bias, float *running_mean, float *running_variance, double momentum, double epsilon,
                  float *channels, double *work, int threads)
{
    if (type)
        forward((const bf16 *)x, (const bf16 *)added, (bf16 *)y, pixels, c, weight, bias, running_mean,
                running_variance, momentum, epsilon, channels, work, threads);
    else
        forward((const float *)x, (const float *)added, (float *)y, pixels, c, weight, bias, running_mean,
                running_variance, momentum, epsilon, channels, work, threads);
}

// Gradients of x, weight, bias and what was added, from the slopes of y. y and of_added: null where nothing was added.
void norm_backward(int type, const void *slopes, const void *x, const void *y, void *of_x, void *of_added, long pixels,
                   int c, float *channels, float *of_weight, float *of_bias, double *work, int threads)
{
    if (type)
        backward((const bf16 *)slopes, (const bf16 *)x, (const bf16 *)y, (bf16 *)of_x, (bf16 *)of_added, pixels, c,
                 channels, of_weight, of_bias, work, threads);
    else
        backward((const float *)slopes, (const float *)x, (const float *)y, (float *)of_x, (float *)of_added, pixels, c,
                 channels, of_weight, of_bias, work, threads);
}

}
