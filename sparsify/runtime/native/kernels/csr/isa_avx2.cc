// AVX2 with FMA: panels of 8-float registers, for few rows too: gathered loads are slower than the columns
// that a narrow panel wastes.
#include <immintrin.h>
#include <string.h>

#include "compiler.h"
#include "isa.h"
#include "rows_isa.h"

namespace sparsify {
namespace csr {
namespace {

#include "vector_avx2.h"
// All of these are written in terms of V.
#include "panel_body.h"
#include "panel_ends.h"

// Columns [4 * half, 4 * half + 4) of an 8 x 8 block as rows.
inline void Half(const float* p, int64_t stride, __m256 out[4]) {
  __m256 r[4];
  SPARSIFY_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * stride)),
                                _mm_loadu_ps(p + (4 + i) * stride), 1);
  }
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  out[0] = _mm256_shuffle_ps(a, c, 0x44);
  out[1] = _mm256_shuffle_ps(a, c, 0xee);
  out[2] = _mm256_shuffle_ps(b, d, 0x44);
  out[3] = _mm256_shuffle_ps(b, d, 0xee);
}

// The same for the first `rows` rows and `columns` columns; the rest reads as zero.
inline void HalfFirst(const float* p, int64_t stride, int64_t rows, int64_t columns, __m256 out[4]) {
  float block[8 * 4] = {};
  for (int64_t i = 0; i < rows && i < 8; ++i) {
    for (int64_t j = 0; j < columns && j < 4; ++j) block[4 * i + j] = p[i * stride + j];
  }
  Half(block, 4, out);
}

void PackRows(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t k = 0; k < depth; k += 4) {
    for (int64_t column = 0; column < groups * kGroup; column += 8) {
      __m256 r[4];
      if (columns - column >= 8 && depth - k >= 4) {
        Half(x + column * stride + k, stride, r);
      } else {
        HalfFirst(x + column * stride + k, stride, columns - column, depth - k, r);
      }
      for (int i = 0; i < 4 && k + i < depth; ++i) V::Store(tile + (k + i) * spacing + column, r[i]);
    }
  }
}

template <Activation A>
void StoreRows(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
               float* y, int64_t stride, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t row = first; row < last; row += 8) {
    const int64_t rows = last - row;
    const __m256 bias = epilogue.bias != nullptr ? V::LoadFirst(epilogue.bias + row, rows) : V::Zero();
    for (int64_t column = 0; column < columns; column += 4) {
      const float* source = panel + (row - first) * spacing + column;
      __m256 r[4];
      if (rows >= 8) {
        Half(source, spacing, r);
      } else {
        HalfFirst(source, spacing, rows, 4, r);
      }
      for (int64_t i = 0; i < 4 && column + i < columns; ++i) {
        const int64_t target = (column + i) * stride + row;
        __m256 v = V::Add(r[i], bias);
        if (epilogue.residual != nullptr) v = V::Add(v, V::LoadFirst(epilogue.residual + target, rows));
        V::StoreFirst(y + target, rows, Activate<V, A>(v, epilogue));
      }
    }
  }
}

void StoreRowsBy(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
                 float* y, int64_t stride, int groups) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, StoreRows, panel, first, last, columns, epilogue, y, stride,
                         groups)
}

}  // namespace

const Isa isa_avx2 = {"avx2",       &Multiply<V>,    &PackRows, &PackPixels<V>, &PackFlat<V>, &TakeEvery<V>,
                      &StoreRowsBy, &StorePixels<V>, 0,         nullptr,        nullptr,      nullptr,
                      &rows_avx2};

}  // namespace csr
}  // namespace sparsify
