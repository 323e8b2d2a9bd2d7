// AVX-512 (F, BW, DQ, VL): panels of 16-float registers, and permutes in registers for few rows.
#include <immintrin.h>

#include "compiler.h"
#include "isa.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a variable that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace sparsify {
namespace csr {
namespace {

struct V {
  using Register = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kAccumulators = 8;

  static Register Zero() { return _mm512_setzero_ps(); }
  static Register Set(float v) { return _mm512_set1_ps(v); }
  static Register Load(const float* p) { return _mm512_load_ps(p); }
  static Register LoadAny(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Register v) { _mm512_store_ps(p, v); }
  static __mmask16 First(int64_t n) {
    return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
  }
  static Register LoadFirst(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(First(n), p); }
  static void StoreFirst(float* p, int64_t n, Register v) { _mm512_mask_storeu_ps(p, First(n), v); }
  static Register Add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register Div(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register NegMulAdd(Register a, Register b, Register c) { return _mm512_fnmadd_ps(a, b, c); }
  static Register Min(Register a, Register b) { return _mm512_min_ps(a, b); }
  static Register Max(Register a, Register b) { return _mm512_max_ps(a, b); }
  static Register Abs(Register a) { return _mm512_abs_ps(a); }
  static Register Round(Register a) { return _mm512_roundscale_ps(a, 0); }
  static Register Scale(Register a, Register n) { return _mm512_scalef_ps(a, n); }
  static float Sum(Register a) { return _mm512_reduce_add_ps(a); }
};

#include "panel_body.h"

// r[i] holds the same four columns of rows i, 4 + i, 8 + i and 12 + i; afterwards it holds column i of all
// sixteen rows in order.
inline void TransposeLanes(__m512 r[4]) {
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]);
  const __m512 b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]);
  const __m512 d = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  r[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c)));
  r[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
  r[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)));
}

// Four floats of rows i, 4 + i, 8 + i, 12 + i: loads and blends only, no shuffle.
inline __m512 LoadLanes(const float* p, int64_t stride, int i) {
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p + i * stride));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p + (4 + i) * stride));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p + (8 + i) * stride));
  return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p + (12 + i) * stride));
}

// Columns [4 * quarter, 4 * quarter + 4) of a 16 x 16 block as rows.
inline void Quarter(const float* p, int64_t stride, int quarter, __m512 out[4]) {
  SPARSIFY_UNROLL
  for (int i = 0; i < 4; ++i) out[i] = LoadLanes(p + 4 * quarter, stride, i);
  TransposeLanes(out);
}

// The same for the first `rows` rows and `columns` columns of a block; the rest reads as zero.
inline void QuarterFirst(const float* p, int64_t stride, int64_t rows, int64_t columns, int quarter,
                         __m512 out[4]) {
  float block[16 * 4];
  for (int i = 0; i < 16; ++i) {
    const int64_t left = i < rows ? columns - 4 * quarter : 0;
    const __mmask8 mask = static_cast<__mmask8>(left >= 4 ? 0xf : left > 0 ? (1 << left) - 1 : 0);
    const float* row = i < rows ? p + i * stride + 4 * quarter : p;
    _mm_storeu_ps(block + 4 * i, _mm_maskz_loadu_ps(mask, row));
  }
  Quarter(block, 4, 0, out);
}

void PackRows(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t k = 0; k < depth; k += 16) {
    for (int g = 0; g < groups; ++g) {
      const int64_t rows = columns - g * kGroup;
      const float* source = x + g * kGroup * stride + k;
      for (int quarter = 0; quarter < 4 && k + 4 * quarter < depth; ++quarter) {
        __m512 r[4];
        if (rows >= kGroup && depth - k >= 16) {
          Quarter(source, stride, quarter, r);
        } else {
          QuarterFirst(source, stride, rows, depth - k, quarter, r);
        }
        float* target = tile + (k + 4 * quarter) * spacing + g * kGroup;
        for (int i = 0; i < 4 && k + 4 * quarter + i < depth; ++i) V::Store(target + i * spacing, r[i]);
      }
    }
  }
}

template <Activation A>
void StoreRows(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
               float* y, int64_t stride, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t row = first; row < last; row += 16) {
    const int64_t rows = last - row;
    const __m512 bias = epilogue.bias != nullptr ? V::LoadFirst(epilogue.bias + row, rows) : V::Zero();
    for (int64_t column = 0; column < columns; column += 4) {
      const float* source = panel + (row - first) * spacing + column;
      __m512 r[4];
      if (rows >= 16) {
        Quarter(source, spacing, 0, r);
      } else {
        QuarterFirst(source, spacing, rows, 4, 0, r);
      }
      for (int64_t i = 0; i < 4 && column + i < columns; ++i) {
        const int64_t target = (column + i) * stride + row;
        __m512 v = V::Add(r[i], bias);
        if (epilogue.residual != nullptr) v = V::Add(v, V::LoadFirst(epilogue.residual + target, rows));
        V::StoreFirst(y + target, rows, Activate<V, A>(v));
      }
    }
  }
}

void StoreRowsBy(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
                 float* y, int64_t stride, int groups) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, StoreRows, panel, first, last, columns, epilogue, y, stride,
                         groups)
}

template <Activation A>
void StorePixelsOf(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
                   const Epilogue& epilogue, float* y, int64_t plane, int groups) {
  StorePixels<V, A>(panel, first, last, runs, run_count, epilogue, y, plane, groups);
}

void StorePixelsBy(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
                   const Epilogue& epilogue, float* y, int64_t plane, int groups) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, StorePixelsOf, panel, first, last, runs, run_count, epilogue, y,
                         plane, groups)
}

// Few rows: the block's 32 inputs of each row of X sit in two registers; one vpermt2ps fetches the input of
// every lane, one FMA uses it. A record is read once for all rows of X.
template <int Rows>
struct Sums {
  static constexpr int kSets = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  __m512 sum[kSets][Rows];
};

template <int Rows, int Slots>
const float* MultiplyBlocks(const float* stream, const uint32_t* blocks, uint32_t count,
                            const RowMajor& operand, Sums<Rows>* sums) {
  constexpr int S = Sums<Rows>::kSets;
  __m512 sum[S][Rows];
  SPARSIFY_UNROLL
  for (int s = 0; s < S; ++s) {
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) sum[s][b] = sums->sum[s][b];
  }
  for (uint32_t n = 0; n < count; ++n) {
    const float* x = operand.x + blocks[n];
    __m512 low[Rows], high[Rows];
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) {
      low[b] = _mm512_loadu_ps(x + b * operand.x_stride);
      high[b] = _mm512_loadu_ps(x + b * operand.x_stride + 16);
    }
    __m512i index = _mm512_load_si512(stream);
    SPARSIFY_UNROLL
    for (int s = 0; s < Slots; ++s) {
      const __m512 w = _mm512_load_ps(stream + 16 * (1 + s));
      SPARSIFY_UNROLL
      for (int b = 0; b < Rows; ++b) {
        // Only the low five bits of an index count.
        const __m512 v = _mm512_permutex2var_ps(low[b], index, high[b]);
        sum[s % S][b] = _mm512_fmadd_ps(w, v, sum[s % S][b]);
      }
      if (s + 1 < Slots) index = _mm512_srli_epi32(index, 5);
    }
    stream += 16 * (1 + Slots);
  }
  SPARSIFY_UNROLL
  for (int s = 0; s < S; ++s) {
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) sums->sum[s][b] = sum[s][b];
  }
  return stream;
}

template <int Rows>
void SlotsOf(const SlotGroup& group, const RowMajor& operand, Sums<Rows>* sums) {
  using Blocks = const float* (*)(const float*, const uint32_t*, uint32_t, const RowMajor&, Sums<Rows>*);
  static constexpr Blocks kBlocks[kMaxSlots] = {&MultiplyBlocks<Rows, 1>, &MultiplyBlocks<Rows, 2>,
                                                &MultiplyBlocks<Rows, 3>, &MultiplyBlocks<Rows, 4>,
                                                &MultiplyBlocks<Rows, 5>, &MultiplyBlocks<Rows, 6>};
  const float* stream = group.stream;
  const uint32_t* blocks = group.blocks;
  for (size_t i = 0; i < group.class_count; ++i) {
    const SlotClass& c = group.classes[i];
    stream = kBlocks[c.slots - 1](stream, blocks, c.blocks, operand, sums);
    blocks += c.blocks;
  }
  for (size_t i = 0; i < group.rest; ++i) {
    const __m512 w = _mm512_load_ps(group.rest_values + 16 * i);
    const __m512i inputs = _mm512_load_si512(group.rest_inputs + 16 * i);
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) {
      const __m512 v = _mm512_i32gather_ps(inputs, operand.x + b * operand.x_stride, 4);
      sums->sum[0][b] = _mm512_fmadd_ps(w, v, sums->sum[0][b]);
    }
  }
}

template <Activation A>
void StoreLanes(const __m512* sum, const RowMajor& operand, int64_t first, int64_t last,
                const Epilogue& epilogue) {
  const int64_t lanes = last - first;
  const __m512 bias = epilogue.bias != nullptr ? V::LoadFirst(epilogue.bias + first, lanes) : V::Zero();
  for (int64_t b = 0; b < operand.rows; ++b) {
    const int64_t target = b * operand.y_stride + first;
    __m512 v = V::Add(sum[b], bias);
    if (epilogue.residual != nullptr) v = V::Add(v, V::LoadFirst(epilogue.residual + target, lanes));
    V::StoreFirst(operand.y + target, lanes, Activate<V, A>(v));
  }
}

void StoreLanesBy(const __m512* sum, const RowMajor& operand, int64_t first, int64_t last,
                  const Epilogue& epilogue) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, StoreLanes, sum, operand, first, last, epilogue)
}

template <int Rows>
void SlotsFor(const SlotGroup& group, const RowMajor& operand, int64_t first, int64_t last,
              const Epilogue& epilogue) {
  Sums<Rows> sums;
  for (int s = 0; s < Sums<Rows>::kSets; ++s) {
    for (int b = 0; b < Rows; ++b) sums.sum[s][b] = V::Zero();
  }
  SlotsOf<Rows>(group, operand, &sums);
  for (int s = 1; s < Sums<Rows>::kSets; ++s) {
    for (int b = 0; b < Rows; ++b) sums.sum[0][b] = V::Add(sums.sum[0][b], sums.sum[s][b]);
  }
  StoreLanesBy(sums.sum[0], operand, first, last, epilogue);
}

void Slots(const SlotGroup& group, const RowMajor& operand, int64_t first, int64_t last,
           const Epilogue& epilogue) {
  using Function = void (*)(const SlotGroup&, const RowMajor&, int64_t, int64_t, const Epilogue&);
  static constexpr Function kFunctions[] = {&SlotsFor<1>, &SlotsFor<2>, &SlotsFor<3>, &SlotsFor<4>,
                                            &SlotsFor<5>, &SlotsFor<6>, &SlotsFor<7>, &SlotsFor<8>};
  kFunctions[operand.rows - 1](group, operand, first, last, epilogue);
}

}  // namespace

const Isa isa_avx512 = {"avx512", &Multiply<V>, &PackRows, &PackPixels<V>, &StoreRowsBy, &StorePixelsBy,
                        8,        &Slots,       nullptr,   &Finite<V>};

}  // namespace csr
}  // namespace sparsify
