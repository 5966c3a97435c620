// Products of bf16 matrices on a processor's tiles (Intel AMX): eight registers of 16 rows of 64 bytes.
//
// A product adds to a tile C of 16x16 fp32 numbers A B, where A has 16 rows of 32 bf16 numbers, and row r of B the
// pairs (B[2r][j], B[2r + 1][j]) of 16 columns j. EMULATED (for tests) makes the same of plain loops, for any
// processor.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && \
    defined(__linux__) && !defined(EMULATED)
#define AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

typedef uint16_t bf16;

constexpr int SIDE = 16;              // rows of a tile; columns of fp32 numbers
constexpr int DEEP = 32;              // bf16 numbers of a row
constexpr int TILE = SIDE * DEEP;     // and of a tile
constexpr int ROW = 2 * DEEP;         // bytes of a row

#ifdef AMX

// Whether the processor has tiles and Linux lets this process use them, which it must be asked for.
inline bool tiles_here()
{
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // of arch_prctl
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16) == 0 || (d & TILES) == 0) return false;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

struct Tiles {
    // All registers of full size, as long as this lives; afterwards as before, for other libraries rely on theirs.
    class Use {
        alignas(64) unsigned char before[64];

    public:
        Use()
        {
            alignas(64) unsigned char wanted[64] = {1};
            for (int t = 0; t < 8; t++) wanted[16 + 2 * t] = ROW, wanted[48 + t] = SIDE;
            asm volatile("sttilecfg %0" : "=m"(before));
            asm volatile("ldtilecfg %0" : : "m"(wanted) : "memory");
        }
        ~Use()
        {
            if (before[0])
                asm volatile("ldtilecfg %0" : : "m"(before) : "memory");
            else
                asm volatile("tilerelease");
        }
        Use(const Use &) = delete;
    };

    template <int T>
    static void zero()
    {
        asm volatile("tilezero %%tmm%c0" : : "i"(T));
    }
    template <int T>
    static void load(const void *from, long stride)
    {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void *to, long stride)
    {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
    }
    template <int C, int A, int B>
    static void multiply()
    {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
};

inline __m512i pairs_of(const float *from)  // 32 numbers rounded to bf16
{
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + SIDE), _mm512_loadu_ps(from));
}

// 32 numbers rounded
inline void round_row(const float *from, bf16 *to) { _mm512_storeu_si512(to, pairs_of(from)); }
inline void round_half(const float *from, bf16 *to)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from)));
}

// 16 numbers added to so many sums
inline void add_half(const bf16 *added, float *sums)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)added));
    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))));
}

// a[0] b[0] a[1] b[1] ... of 16 numbers each
inline void interleave(const bf16 *a, const bf16 *b, bf16 *to)
{
    alignas(64) static constexpr bf16 ORDER[DEEP] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a));
    const __m512i both = _mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i *)b), 1);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), both));
}

// 16x16 pairs, rows and columns exchanged: rows `from` are DEEP numbers apart, rows `to` so many as said
inline void transpose(const bf16 *from, bf16 *to, long apart)
{
    __m512i r[16], s[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * DEEP);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {  // r[4 k + i]: columns i, 4 + i, 8 + i, 12 + i of rows 4 k and on
        const __m512i low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        const __m512i lower = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        const __m512i higher = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        _mm512_storeu_si512(to + i * apart, _mm512_shuffle_i32x4(low, lower, 0x88));
        _mm512_storeu_si512(to + (4 + i) * apart, _mm512_shuffle_i32x4(high, higher, 0x88));
        _mm512_storeu_si512(to + (8 + i) * apart, _mm512_shuffle_i32x4(low, lower, 0xdd));
        _mm512_storeu_si512(to + (12 + i) * apart, _mm512_shuffle_i32x4(high, higher, 0xdd));
    }
}

#elif defined(EMULATED)

inline bool tiles_here() { return true; }

inline float widened(bf16 value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline bf16 rounded(float value)  // to nearest, ties to even; what is not a number stays so
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct Tiles {
    struct Use {};

    static unsigned char *tile(int t)
    {
        static thread_local unsigned char tiles[8][SIDE][ROW];
        return tiles[t][0];
    }
    template <int T>
    static void zero()
    {
        std::memset(tile(T), 0, SIDE * ROW);
    }
    template <int T>
    static void load(const void *from, long stride)
    {
        for (int r = 0; r < SIDE; r++) std::memcpy(tile(T) + r * ROW, (const char *)from + r * stride, ROW);
    }
    template <int T>
    static void store(void *to, long stride)
    {
        for (int r = 0; r < SIDE; r++) std::memcpy((char *)to + r * stride, tile(T) + r * ROW, ROW);
    }
    template <int C, int A, int B>
    static void multiply()
    {
        float c[SIDE * SIDE];
        bf16 a[TILE], b[TILE];
        std::memcpy(c, tile(C), sizeof c), std::memcpy(a, tile(A), sizeof a), std::memcpy(b, tile(B), sizeof b);
        for (int i = 0; i < SIDE; i++)
            for (int k = 0; k < DEEP; k++)
                for (int j = 0; j < SIDE; j++)
                    c[i * SIDE + j] += widened(a[i * DEEP + k]) * widened(b[k / 2 * DEEP + 2 * j + k % 2]);
        std::memcpy(tile(C), c, sizeof c);
    }
};

inline void round_row(const float *from, bf16 *to)
{
    for (int i = 0; i < DEEP; i++) to[i] = rounded(from[i]);
}
inline void round_half(const float *from, bf16 *to)
{
    for (int i = 0; i < SIDE; i++) to[i] = rounded(from[i]);
}

inline void add_half(const bf16 *added, float *sums)
{
    for (int i = 0; i < SIDE; i++) sums[i] += widened(added[i]);
}

inline void interleave(const bf16 *a, const bf16 *b, bf16 *to)
{
    for (int i = 0; i < SIDE; i++) to[2 * i] = a[i], to[2 * i + 1] = b[i];
}

inline void transpose(const bf16 *from, bf16 *to, long apart)
{
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) std::memcpy(to + j * apart + 2 * i, from + i * DEEP + 2 * j, 4);
}

#endif

}  // namespace
