// A 3x3 convolution of padded maps on tiles, and of its way back the gradient of the inputs.

#pragma once

#include <vector>

#include "shape.h"

namespace {

// A convolution of padded maps by a kernel, or turned its way back, from the outputs to the inputs.
//
// A step multiplies 32 numbers of 16 positions. Where a position has but 16 channels, two beside each other are taken
// as one with 32: what is convolved then has half the width, and a kernel of 3 x 2 such taps, some of whose weights are
// 0. Steps all of whose weights are 0 are left out.
struct Convolution {
    const Kernel kernel;
    const bool turned, spread;  // spread: a position's outputs are those of four pixels, two in a row
    const int fold;
    const Shape shape;  // of what is convolved
    const int inputs, outputs;

    Convolution(const Shape &of, const Kernel &kernel, bool turned = false)
        : kernel(kernel), turned(turned), spread(turned && kernel.stride == 2),
          fold(kernel.channels() == SIDE && kernel.outputs == SIDE ? 2 : 1),
          shape(of.folded(fold)), inputs((turned ? kernel.outputs : kernel.channels()) * fold),
          outputs((turned ? kernel.channels() : kernel.outputs) * fold)
    {
        for (int n = 0; n < outputs; n += DEEP) {
            begins.push_back(steps.size());
            for (int y = 0; y < 3; y++)
                for (int x = 0; x < (fold == 2 ? 2 : 3); x++)
                    for (int c = 0; c < inputs; c += DEEP)
                        if (counts({n, y, x, c})) {
                            steps.push_back({n, y, x, c});
                            offsets.push_back(((long)y * shape.row + x * shape.group) * inputs + c);
                        }
        }
        begins.push_back(steps.size());
    }

    long size() const { return steps.size() * 2L * TILE; }  // numbers of the packed kernel

    // to: size() numbers, kept for `run`
    void pack(const float *weight, bf16 *to)
    {
        packed = to;
        for (const Step &step : steps)
            for (int n = step.n; n < step.n + DEEP; n += SIDE, to += TILE)
                turned ? pack_turned(weight, step, n, to) : pack_straight(weight, step, n, to);
    }

    // A group of padded maps, from its first position on, to maps in memory. added: other such maps, or null; turned
    // with stride 2, maps of the kernel's outputs, no fewer than its inputs, the first of which are added to every
    // first of four pixels.
    void run(const bf16 *padded, long number, const bf16 *added, bf16 *to, Ahead &ahead) const
    {
        int t = 0;
        for (; t + 2 <= shape.tiles(); t += 2) block<2>(padded, number, t, added, to, ahead);
        if (t < shape.tiles()) block<1>(padded, number, t, added, to, ahead);
    }

private:
    struct Step {  // 32 inputs from c on of the tap (y, x), to 32 outputs from n on
        int n, y, x, c;
    };
    std::vector<Step> steps;
    std::vector<int> begins;    // of the steps to the same outputs
    std::vector<long> offsets;  // of a step, in numbers
    const bf16 *packed = nullptr;

    // Where the weight lies from input c of a tap to output n, the first of 16 that follow each other; -1 where it is 0
    long source(int n, int y, int x, int c) const
    {
        if (fold == 2) {
            x = 2 * x + c / SIDE - n / SIDE, n %= SIDE, c %= SIDE;
            if (x < 0 || x > 2) return -1;
        }
        return turned ? kernel.place(c, 2 - y, 2 - x, n) : kernel.place(n, y, x, c);
    }
    bool counts(const Step &step) const
    {
        for (int n : {step.n, step.n + SIDE})
            for (int c : {step.c, step.c + SIDE})
                if (source(n, step.y, step.x, c) >= 0) return true;
        return false;
    }
    static void round_or_zero(const float *weight, long at, bf16 *to)
    {
        at < 0 ? (void)std::memset(to, 0, 2 * SIDE) : round_half(weight + at, to);
    }

    // A tile: inputs follow each other in memory
    void pack_straight(const float *weight, const Step &step, int n, bf16 *to) const
    {
        alignas(64) bf16 rows[TILE];
        for (int j = 0; j < SIDE; j++)
            for (int i = 0; i < DEEP; i += SIDE)
                round_or_zero(weight, source(n + j, step.y, step.x, step.c + i), rows + j * DEEP + i);
        transpose(rows, to, DEEP);
    }

    // A tile: outputs do
    void pack_turned(const float *weight, const Step &step, int n, bf16 *to) const
    {
        for (int i = 0; i < DEEP; i += 2, to += DEEP) {
            alignas(64) bf16 pair[2][SIDE];
            for (int j = 0; j < 2; j++)
                round_or_zero(weight, source(n, step.y, step.x, step.c + i + j), pair[j]);
            interleave(pair[0], pair[1], to);
        }
    }

    // Where outputs from n on of a pixel lie
    long place(long pixel, int column, int n) const
    {
        if (!spread) return pixel * outputs + n;
        const int both = outputs / 2;
        return (4 * pixel - 2 * column + 2L * shape.width * (n / both)) * kernel.inputs + n % both;
    }

    void add(const bf16 *added, long at, int n, float *sums) const
    {
        const int count = std::min(DEEP, (spread ? kernel.inputs : outputs) - n);
        for (int i = 0; i < count; i += SIDE) add_half(added + at + i, sums + i);
    }

    template <int M>
    void block(const bf16 *padded, long number, int t, const bf16 *added, bf16 *to, Ahead &ahead) const
    {
        alignas(64) float sums[M][SIDE][DEEP];
        const bf16 *a[M], *b = packed;
        float *c[2 * M];
        for (int m = 0; m < M; m++) {
            a[m] = padded + shape.corner(t + m) * inputs;
            c[2 * m] = sums[m][0], c[2 * m + 1] = &sums[m][0][SIDE];
        }
        for (int n = 0; n < outputs; n += DEEP) {
            zero<2 * M>();
            for (int s = begins[n / DEEP]; s < begins[n / DEEP + 1]; s++, b += 2 * TILE) {
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
                shape.pixels_of(number, t + m, [&](int i, long pixel, int column) {
                    const long at = place(pixel, column, n);
                    if (added) add(added, spread ? pixel * kernel.outputs + n : at, n, sums[m][i]);
                    round_row(sums[m][i], to + at);
                });
        }
    }
};

}  // namespace
