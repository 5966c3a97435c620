// The gradient of a 3x3 kernel from padded maps on tiles.

#pragma once

#include <vector>

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
    const long length, pairs;                  // numbers of a row of turned slopes; pairs of a copy
    const int each;                            // sums of an output

    Correlation(const Shape &shape, const Kernel &kernel)
        : shape(shape), inputs(kernel.channels()), outputs(kernel.outputs),
          chunks((shape.height * shape.row + DEEP - 1) / DEEP),
          batch(std::max(1, TOGETHER / chunks)), length((chunks | 1) * DEEP),  // odd: rows do not share sets of a cache
          pairs((shape.group + 2L * shape.row + chunks * DEEP + shape.group + 3) / 2), each(kernel.weights())
    {
        const int side = std::min(inputs, DEEP);
        for (int c = 0; c < inputs; c += side)
            for (int y = 0; y < 3; y++)
                for (int x = 0; x < 3; x++)
                    for (int i = c; i < c + side; i += SIDE)
                        if (const long weight = kernel.place(0, y, x, i); weight >= 0)
                            products.push_back({displacement(i, y, x), weight});
    }
    int copies() const { return shape.group % 2 ? 2 : 1; }  // else every displacement is even
    long pairs_size() const { return copies() * pairs * inputs * 2; }  // of one group, as the next
    long turned_size() const { return length * outputs; }

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
                transpose(rows, to + c * length + p, length);
            }
    }

    // sums += what so many groups give
    void run(const bf16 *paired, const bf16 *turned, int groups, float *sums, Ahead &ahead) const
    {
        const bool narrow = outputs % DEEP || inputs % DEEP;
        const size_t last = products.size() - 1;  // taken twice where it is the first of two: it is stored twice
        for (int k = 0; k < outputs; k += narrow ? SIDE : DEEP)
            for (size_t i = 0; i <= last; i += narrow ? 3 : 2)
                if (narrow)
                    three(paired, turned, groups, k, &products[i], sums, ahead);
                else
                    two(paired, turned, groups, k, products[i], products[std::min(i + 1, last)], sums, ahead);
    }

private:
    struct Product {  // of 16 channels of the inputs
        long from, weight;  // where their pairs begin, and in the sums what they add to
    };
    std::vector<Product> products;

    int first() const { return -(shape.group + shape.group % 2); }  // position of the first pair

    // Where the pairs of the inputs begin that a tap multiplies with the first chunk of slopes
    long displacement(int c, int y, int x) const
    {
        const int position = y * shape.row + (x - 1) * shape.group - first();
        const long copy = position % 2;
        return ((copy * (inputs / SIDE) + c / SIDE) * pairs + position / 2) * DEEP;
    }

    // Three products, with 16 channels of the slopes
    void three(const bf16 *paired, const bf16 *turned, int groups, int k, const Product *of, float *sums,
               Ahead &ahead) const
    {
        sums += (long)k * each;
        float *to[] = {sums + of[0].weight, sums + of[1].weight, sums + of[2].weight};
        load<3>(to, 4L * each);
        for (int g = 0; g < groups; g++) {
            const bf16 *a = turned + g * turned_size() + k * length, *b = paired + g * pairs_size();
            for (int s = 0; s < chunks; s++, b += TILE) {
                ahead.fetch();
                Tiles::load<3>(a + s * DEEP, 2 * length);
                Tiles::load<4>(b + of[0].from, ROW), Tiles::load<5>(b + of[1].from, ROW);
                Tiles::load<6>(b + of[2].from, ROW);
                Tiles::multiply<0, 3, 4>(), Tiles::multiply<1, 3, 5>(), Tiles::multiply<2, 3, 6>();
            }
        }
        store<3>(to, 4L * each);
    }

    // Two, with 32 channels
    void two(const bf16 *paired, const bf16 *turned, int groups, int k, const Product &first, const Product &second,
             float *sums, Ahead &ahead) const
    {
        sums += (long)k * each;
        float *below = sums + (long)SIDE * each;
        float *to[] = {sums + first.weight, sums + second.weight, below + first.weight, below + second.weight};
        load<4>(to, 4L * each);
        for (int g = 0; g < groups; g++) {
            const bf16 *a = turned + g * turned_size() + k * length, *next = a + SIDE * length;
            const bf16 *b = paired + g * pairs_size();
            for (int s = 0; s < chunks; s++, b += TILE) {
                ahead.fetch();
                Tiles::load<4>(a + s * DEEP, 2 * length), Tiles::load<5>(next + s * DEEP, 2 * length);
                Tiles::load<6>(b + first.from, ROW), Tiles::load<7>(b + second.from, ROW);
                Tiles::multiply<0, 4, 6>(), Tiles::multiply<1, 4, 7>();
                Tiles::multiply<2, 5, 6>(), Tiles::multiply<3, 5, 7>();
            }
        }
        store<4>(to, 4L * each);
    }
};

}  // namespace
