// Area average in integers: rows first, then columns, weights fused into one division.
//
// One output pixel is 240/84 × 256/84 input pixels large. In units where an input row is 7 and an
// output row 20 high, and an input column 21 and an output column 64 wide, every overlap is an
// integer; an output pixel's weights add up to 20 × 64 = 1280.
#include "observation.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace nes {
namespace {

constexpr int kTaps = 4;         // input rows or columns that an output pixel can touch
constexpr int kColumnGroup = 8;  // outputs done at once
constexpr int kPaddedColumns = (kFrameSize + kColumnGroup - 1) / kColumnGroup * kColumnGroup;
constexpr int kUnits = 20 * 64;

// The first input that an output touches, and the overlap with it and the three after it.
struct Overlap {
  int first;
  std::int16_t weight[kTaps];
};

constexpr Overlap overlap(int out, int unit_in, int unit_out, int inputs) {
  Overlap o{out * unit_out / unit_in, {}};
  // Taps past the last input have weight 0; start earlier so that they are in memory.
  o.first = std::min(o.first, inputs - kTaps);
  for (int k = 0; k < kTaps; ++k) {
    const int begin = std::max(out * unit_out, (o.first + k) * unit_in);
    const int end = std::min((out + 1) * unit_out, (o.first + k + 1) * unit_in);
    o.weight[k] = static_cast<std::int16_t>(std::max(end - begin, 0));
  }
  return o;
}

template <int kCount, int kPadded>
constexpr std::array<Overlap, kPadded> overlaps(int unit_in, int unit_out, int inputs) {
  std::array<Overlap, kPadded> all{};
  for (int i = 0; i < kCount; ++i)
    all[static_cast<std::size_t>(i)] = overlap(i, unit_in, unit_out, inputs);
  return all;
}
constexpr auto kRows = overlaps<kFrameSize, kFrameSize>(7, 20, kScreenHeight);
constexpr auto kColumns = overlaps<kFrameSize, kPaddedColumns>(21, 64, kScreenWidth);

// Weighted sums of columns, at most 255 × 20 each.
using RowSums = std::array<std::uint16_t, kScreenWidth>;

void sum_rows(const Byte* grey, const Overlap& rows, RowSums& sums) {
  const Byte* const r0 = grey + rows.first * kScreenWidth;
  const Byte* const r1 = r0 + kScreenWidth;
  const Byte* const r2 = r1 + kScreenWidth;
  const Byte* const r3 = r2 + kScreenWidth;
  const std::uint16_t w0 = static_cast<std::uint16_t>(rows.weight[0]),
                      w1 = static_cast<std::uint16_t>(rows.weight[1]),
                      w2 = static_cast<std::uint16_t>(rows.weight[2]),
                      w3 = static_cast<std::uint16_t>(rows.weight[3]);
  for (std::size_t x = 0; x < kScreenWidth; ++x)
    sums[x] = static_cast<std::uint16_t>(w0 * r0[x] + w1 * r1[x] + w2 * r2[x] + w3 * r3[x]);
}

#if defined(__SSE2__)

// Two sums of products a half: four taps of two outputs.
__m128i two_outputs(const RowSums& sums, const Overlap& a, const Overlap& b) {
  const auto load = [](const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); };
  const __m128i values = _mm_unpacklo_epi64(load(sums.data() + a.first), load(sums.data() + b.first));
  const __m128i weights = _mm_unpacklo_epi64(load(a.weight), load(b.weight));
  return _mm_madd_epi16(values, weights);
}

// (sum + 640) >> 8 of four outputs, as 32-bit numbers.
__m128i four_outputs(const RowSums& sums, const Overlap* columns) {
  const __m128 ab = _mm_castsi128_ps(two_outputs(sums, columns[0], columns[1]));
  const __m128 cd = _mm_castsi128_ps(two_outputs(sums, columns[2], columns[3]));
  const __m128i even = _mm_castps_si128(_mm_shuffle_ps(ab, cd, _MM_SHUFFLE(2, 0, 2, 0)));
  const __m128i odd = _mm_castps_si128(_mm_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 1, 3, 1)));
  const __m128i sum = _mm_add_epi32(_mm_add_epi32(even, odd), _mm_set1_epi32(kUnits / 2));
  return _mm_srli_epi32(sum, 8);
}

void sum_columns(const RowSums& sums, Byte* out) {
  alignas(16) Byte row[kPaddedColumns + 8];
  for (int j = 0; j < kPaddedColumns; j += kColumnGroup) {
    const Overlap* const columns = &kColumns[static_cast<std::size_t>(j)];
    const __m128i x = _mm_packs_epi32(four_outputs(sums, columns), four_outputs(sums, columns + 4));
    // x / 5, exact for x below 2**16: the 1280 is 256 × 5.
    const __m128i fifth =
        _mm_srli_epi16(_mm_mulhi_epu16(x, _mm_set1_epi16(static_cast<std::int16_t>(52429))), 2);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(row + j), _mm_packus_epi16(fifth, fifth));
  }
  std::memcpy(out, row, kFrameSize);
}

#else

void sum_columns(const RowSums& sums, Byte* out) {
  for (std::size_t j = 0; j < kFrameSize; ++j) {
    const Overlap& o = kColumns[j];
    const std::uint16_t* const s = sums.data() + o.first;
    const int sum =
        o.weight[0] * s[0] + o.weight[1] * s[1] + o.weight[2] * s[2] + o.weight[3] * s[3];
    out[j] = static_cast<Byte>((sum + kUnits / 2) / kUnits);
  }
}

#endif

}  // namespace

void area_resize(const Byte* grey, Byte* frame) {
  RowSums sums;
  for (std::size_t i = 0; i < kFrameSize; ++i) {
    sum_rows(grey, kRows[i], sums);
    sum_columns(sums, frame + i * kFrameSize);
  }
}

void max_pool(Byte* screen, const Byte* other) {
  for (int i = 0; i < kScreenPixels; ++i) screen[i] = std::max(screen[i], other[i]);
}

}  // namespace nes
