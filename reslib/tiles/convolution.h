// A 3x3 convolution of padded maps on tiles, and of its way back the gradient of the inputs.

#pragma once

#include <vector>

#include "shape.h"

namespace {

// A convolution from `inputs` to `outputs` channels of padded maps.
//
// A step multiplies 32 numbers of 16 positions. Where a position has but 16 channels, two beside each other are taken
// as one with 32: what is convolved then has half the width, and a kernel of 3 x 2 such taps, some of whose weights are
// 0.
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
                                round_half(weight + ((long)j * TAPS + y * 3 + tap) * from,
                                           rows + j * DEEP + half * SIDE);
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

}  // namespace
