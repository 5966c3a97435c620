// How maps lie in memory while a unit is computed: padded, image by image or some of them side by side (units.cpp).

#pragma once

#include <algorithm>
#include <cstdlib>

#include "tiles.h"

namespace {

constexpr int TAPS = 9;
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
    // call(row of the tile, index of the pixel, its column) for those that are there
    template <typename Call>
    void pixels_of(long number, int t, Call call) const
    {
        const int across = width * group / SIDE, y = t / across, x = t % across * SIDE;
        if (group == 1) {
            const long first = (number * height + y) * width + x;
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; i++) call(i, first + i, x + i);
        } else
            for (int g = 0; g < size(number) / (height * width); g++) {
                long pixel = ((number * group + g) * height + y) * width;
                for (int i = g, column = 0; i < SIDE; i += group) call(i, pixel++, column++);
            }
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

// A 3x3 kernel, (outputs, 3, 3, inputs), padded by one pixel.
//
// With stride 2 the four pixels that begin at an even row and column are taken as one position with all their channels,
// (2, 2, inputs). What is convolved then is such a map, half as high and wide, by a kernel of stride 1 that has 3x3
// taps again, most of whose weights are 0.
struct Kernel {
    const int inputs, outputs, stride;

    int channels() const { return inputs * stride * stride; }  // channels of a position
    int weights() const { return TAPS * inputs; }
    // Where the weight lies from channel `in` of the position that tap (y, x) reaches; -1 where it is 0
    long place(int out, int y, int x, int in) const
    {
        const int pixel = in / inputs;
        const int down = stride * (y - 1) + pixel / stride + 1, right = stride * (x - 1) + pixel % stride + 1;
        if (std::min(down, right) < 0 || std::max(down, right) > 2) return -1;
        return (out * 3L + down) * 3 * inputs + right * inputs + in % inputs;
    }
};

// What will be read next: it is fetched into the core's second cache while tiles are multiplied, which leaves the
// memory idle. Maps of a step are many times larger than the caches.
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

}  // namespace
