// NEON of 64-bit ARM: panels of 4-float registers, and for one or two rows of X sums over the non-zeros.
#include <arm_neon.h>
#include <string.h>

#include "compiler.h"
#include "isa.h"
#include "rows_isa.h"
#include "values.h"

namespace sparsify {
namespace csr {
namespace {

#include "vector_neon.h"
// All of these are written in terms of V.
#include "panel_body.h"
#include "panel_ends.h"

// A 4 x 4 block, its columns as rows.
inline void Block(const float* p, int64_t stride, float32x4_t out[4]) {
  const float32x4_t a = vld1q_f32(p), b = vld1q_f32(p + stride);
  const float32x4_t c = vld1q_f32(p + 2 * stride), d = vld1q_f32(p + 3 * stride);
  const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
  const float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
  const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
  const float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
  out[0] = vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even));
  out[1] = vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd));
  out[2] = vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even));
  out[3] = vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd));
}

// The same for the first `rows` rows and `columns` columns; the rest reads as zero.
inline void BlockFirst(const float* p, int64_t stride, int64_t rows, int64_t columns, float32x4_t out[4]) {
  if (rows >= 4 && columns >= 4) return Block(p, stride, out);
  float block[4 * 4] = {};
  for (int64_t i = 0; i < rows && i < 4; ++i) {
    for (int64_t j = 0; j < columns && j < 4; ++j) block[4 * i + j] = p[i * stride + j];
  }
  Block(block, 4, out);
}

void PackRows(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t k = 0; k < depth; k += 4) {
    for (int64_t column = 0; column < groups * kGroup; column += 4) {
      float32x4_t r[4];
      BlockFirst(x + column * stride + k, stride, columns - column, depth - k, r);
      for (int i = 0; i < 4 && k + i < depth; ++i) V::Store(tile + (k + i) * spacing + column, r[i]);
    }
  }
}

// y[0, n) = finished sums of the outputs from `row` on; y and the residual are indexed by target.
template <Activation A>
void Finish(float32x4_t sums, int64_t row, int64_t n, int64_t target, const Epilogue& epilogue, float* y) {
  if (epilogue.bias != nullptr) sums = V::Add(sums, V::LoadFirst(epilogue.bias + row, n));
  if (epilogue.residual != nullptr) sums = V::Add(sums, V::LoadFirst(epilogue.residual + target, n));
  V::StoreFirst(y + target, n, Activate<V, A>(sums, epilogue));
}

template <Activation A>
void StoreRows(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
               float* y, int64_t stride, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t row = first; row < last; row += 4) {
    for (int64_t column = 0; column < columns; column += 4) {
      float32x4_t r[4];
      BlockFirst(panel + (row - first) * spacing + column, spacing, last - row, 4, r);
      for (int64_t i = 0; i < 4 && column + i < columns; ++i) {
        Finish<A>(r[i], row, last - row, (column + i) * stride + row, epilogue, y);
      }
    }
  }
}

void StoreRowsBy(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
                 float* y, int64_t stride,
                 int groups){SPARSIFY_BY_ACTIVATION(epilogue.activation, StoreRows, panel, first, last,
                                                    columns, epilogue, y, stride, groups)}

int64_t Column(const PackedRows& matrix, int64_t i) {
  return matrix.narrow != nullptr ? matrix.narrow[i] : matrix.wide[i];
}

// Four stored weights from `at` on.
template <ValueType T>
float32x4_t LoadValues(const Values& values, int64_t at) {
  if constexpr (T == ValueType::kFloat32) {
    return vld1q_f32(static_cast<const float*>(values.data) + at);
  } else {
    const uint16x4_t halves = vld1_u16(static_cast<const uint16_t*>(values.data) + at);
    if constexpr (T == ValueType::kBfloat16) return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  }
}

// Sums of one line of blocks of R outputs as R / 4 registers: a block costs a broadcast of X and a load and
// an FMA for each register. Several sums of each hide the latency of the FMAs.
template <int R, ValueType T>
void SumBlocks(const PackedRows& matrix, const float* x, int64_t line, float32x4_t* out) {
  constexpr int L = R / 4, S = V::kAccumulators / L;
  float32x4_t sum[S][L];
  SPARSIFY_UNROLL
  for (int n = 0; n < S * L; ++n) sum[n / L][n % L] = V::Zero();
  int64_t i = matrix.pointers[line];
  const int64_t end = matrix.pointers[line + 1];
  const auto add = [&](int64_t at, float32x4_t* to) {
    const float32x4_t broadcast = V::Set(x[Column(matrix, at)]);
    SPARSIFY_UNROLL
    for (int l = 0; l < L; ++l) {
      to[l] = V::MulAdd(LoadValues<T>(matrix.values, R * at + 4 * l), broadcast, to[l]);
    }
  };
  for (; i + S <= end; i += S) {
    SPARSIFY_UNROLL
    for (int s = 0; s < S; ++s) add(i + s, sum[s]);
  }
  for (; i < end; ++i) add(i, sum[0]);
  SPARSIFY_UNROLL
  for (int l = 0; l < L; ++l) {
    out[l] = sum[0][l];
    SPARSIFY_UNROLL
    for (int s = 1; s < S; ++s) out[l] = V::Add(out[l], sum[s][l]);
  }
}

// The sums of a line of single outputs (R = 1) or of pairs of them (R = 2): a register holds the values of
// 4 / R blocks, and X is gathered to them.
template <int R, ValueType T>
float32x4_t SumSingles(const PackedRows& matrix, const float* x, int64_t line) {
  constexpr int kBlocks = 4 / R;
  float32x4_t sum[2] = {V::Zero(), V::Zero()};
  int64_t i = matrix.pointers[line];
  const int64_t end = matrix.pointers[line + 1];
  const auto gather = [&](int64_t at, int64_t count) {
    float lanes[4] = {};
    for (int64_t n = 0; n < count; ++n) {
      for (int r = 0; r < R; ++r) lanes[n * R + r] = x[Column(matrix, at + n)];
    }
    return vld1q_f32(lanes);
  };
  for (; i + 2 * kBlocks <= end; i += 2 * kBlocks) {
    SPARSIFY_UNROLL
    for (int s = 0; s < 2; ++s) {
      const int64_t at = i + s * kBlocks;
      sum[s] = V::MulAdd(LoadValues<T>(matrix.values, R * at), gather(at, kBlocks), sum[s]);
    }
  }
  for (; i < end; i += kBlocks) {
    const int64_t left = end - i < kBlocks ? end - i : kBlocks;
    float rest[4] = {};
    for (int64_t n = 0; n < R * left; ++n) rest[n] = ValueAt(matrix.values, R * i + n);
    sum[0] = V::MulAdd(vld1q_f32(rest), gather(i, left), sum[0]);
  }
  return V::Add(sum[0], sum[1]);
}

// The outputs of up to 4 / R lines below `last`.
template <int R, ValueType T>
float32x4_t SumQuad(const PackedRows& matrix, const float* x, int64_t line, int64_t last) {
  float sums[4] = {};
  for (int64_t n = 0; n < 4 / R && line + n < last; ++n) {
    const float32x4_t sum = SumSingles<R, T>(matrix, x, line + n);
    if (R == 1) {
      sums[n] = vaddvq_f32(sum);
    } else {
      vst1_f32(sums + 2 * n, vadd_f32(vget_low_f32(sum), vget_high_f32(sum)));
    }
  }
  return vld1q_f32(sums);
}

void FinishBy(float32x4_t sums, int64_t row, int64_t n, int64_t target, const Epilogue& epilogue, float* y) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, Finish, sums, row, n, target, epilogue, y)
}

template <ValueType T, int R>
void DotOf(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
           const Epilogue& epilogue) {
  constexpr int kLines = R < 4 ? 4 / R : 1, kRegisters = R < 4 ? 1 : R / 4;
  const int64_t end = last * R < matrix.rows ? last * R : matrix.rows;
  for (int64_t line = first; line < last; line += kLines) {
    for (int64_t b = 0; b < operand.rows; ++b) {
      const float* x = operand.x + b * operand.x_stride;
      float32x4_t sums[kRegisters];
      if constexpr (R < 4) {
        sums[0] = SumQuad<R, T>(matrix, x, line, last);
      } else {
        SumBlocks<R, T>(matrix, x, line, sums);
      }
      for (int l = 0; l < kRegisters; ++l) {
        const int64_t row = line * R + 4 * l;
        FinishBy(sums[l], row, end - row, b * operand.y_stride + row, epilogue, operand.y);
      }
    }
  }
}

template <ValueType T>
void DotFor(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
            const Epilogue& epilogue) {
  switch (matrix.block_rows) {
    case 1:
      return DotOf<T, 1>(matrix, operand, first, last, epilogue);
    case 2:
      return DotOf<T, 2>(matrix, operand, first, last, epilogue);
    case 4:
      return DotOf<T, 4>(matrix, operand, first, last, epilogue);
    case 8:
      return DotOf<T, 8>(matrix, operand, first, last, epilogue);
    default:
      return DotOf<T, 16>(matrix, operand, first, last, epilogue);
  }
}

void Dot(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
         const Epilogue& epilogue) {
  switch (matrix.values.type) {
    case ValueType::kBfloat16:
      return DotFor<ValueType::kBfloat16>(matrix, operand, first, last, epilogue);
    case ValueType::kFloat16:
      return DotFor<ValueType::kFloat16>(matrix, operand, first, last, epilogue);
    default:
      return DotFor<ValueType::kFloat32>(matrix, operand, first, last, epilogue);
  }
}

}  // namespace

const Isa isa_neon = {"neon",       &Multiply<V>,    &PackRows, &PackPixels<V>, &PackFlat<V>, &TakeEvery<V>,
                      &StoreRowsBy, &StorePixels<V>, 2,         nullptr,        &Dot,         nullptr,
                      &rows_neon};

}  // namespace csr
}  // namespace sparsify
