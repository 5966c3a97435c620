// The gradient of a 3x3 kernel from padded maps on tiles.

#pragma once

#include "shape.h"

namespace {

// The gradient of a kernel, (outputs, 3, 3, inputs): sums over positions of slopes times inputs, a tap displaced.
//
// Slopes are turned, so that their positions lie in rows; inputs lie in pairs of positions. A tap displaces the pairs
// by whole rows of a tile; where it displaces them by an odd number of positions, those of a second copy that begin one
// position later. So all tiles lie on whole cache lines: loading others takes six times as long.
struct Correlation {
    static constexpr int TOGETHER = 10;  // chunks whose products are summed in registers, about
    const Shape &shape;
    const int inputs, outputs, chunks, batch;  // chunks of 32 positions of a group; groups at a time
    const long wide, pairs;                    // numbers of a row of turned slopes; pairs of a copy

    Correlation(const Shape &shape, int inputs, int outputs)
        : shape(shape), inputs(inputs), outputs(outputs), chunks((shape.height * shape.row + DEEP - 1) / DEEP),
          batch(std::max(1, TOGETHER / chunks)), wide((chunks | 1) * DEEP),  // odd: rows do not share sets of a cache
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

}  // namespace
