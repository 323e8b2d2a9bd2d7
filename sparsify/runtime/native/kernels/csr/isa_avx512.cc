// AVX-512 (F, BW, DQ, VL): panels of 16-float registers, and permutes in registers for few rows.
#include <immintrin.h>
#include <string.h>

#include "compiler.h"
#include "isa.h"
#include "rows_isa.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a variable that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace sparsify {
namespace csr {
namespace {

#include "vector_avx512.h"
// All of these are written in terms of V.
#include "panel_body.h"
#include "panel_ends.h"
// In terms of these.
#include "avx512_single.h"

struct DeepV : V {
  static constexpr bool kDeep = true;
};

void MultiplyTuned(const PanelSegment& segment, const float* tile, float* panel, int groups) {
  if (IsSingle(segment, groups)) {
    return segment.deep ? MultiplySingles<DeepV>(segment, tile, panel, groups)
                        : MultiplySingles<V>(segment, tile, panel, groups);
  }
  return segment.deep ? Multiply<DeepV>(segment, tile, panel, groups)
                      : Multiply<V>(segment, tile, panel, groups);
}

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

// Columns of a 16 x 16 block as rows. Each source line is used up before the next, because rows that lie a
// power of two apart share one set of the cache.
inline void Transpose(const float* p, int64_t stride, __m512 out[16]) {
  SPARSIFY_UNROLL
  for (int i = 0; i < 4; ++i) {
    SPARSIFY_UNROLL
    for (int quarter = 0; quarter < 4; ++quarter) {
      out[4 * quarter + i] = LoadLanes(p + 4 * quarter, stride, i);
    }
  }
  SPARSIFY_UNROLL
  for (int quarter = 0; quarter < 4; ++quarter) TransposeLanes(out + 4 * quarter);
}

// The same for the first `rows` rows and `columns` columns of a block; the rest reads as zero.
inline void TransposeFirst(const float* p, int64_t stride, int64_t rows, int64_t columns, __m512 out[16]) {
  alignas(64) float block[16 * 16];
  for (int64_t i = 0; i < 16; ++i) {
    V::Store(block + 16 * i, i < rows ? V::LoadFirst(p + i * stride, columns) : V::Zero());
  }
  Transpose(block, 16, out);
}

// More rows than the prefetchers follow at once.
constexpr int64_t kPackAhead = 32;

void PackRows(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int g = 0; g < groups; ++g) {
    const int64_t rows = columns - g * kGroup;
    for (int64_t k = 0; k < depth; k += 16) {
      const float* source = x + g * kGroup * stride + k;
      float* target = tile + k * spacing + g * kGroup;
      __m512 r[16];
      if (rows >= kGroup && depth - k >= 16) {
        SPARSIFY_UNROLL
        for (int i = 0; i < 16; ++i) SPARSIFY_PREFETCH(source + i * stride + kPackAhead);
        Transpose(source, stride, r);
        SPARSIFY_UNROLL
        for (int i = 0; i < 16; ++i) V::Store(target + i * spacing, r[i]);
      } else {
        TransposeFirst(source, stride, rows, depth - k, r);
        for (int64_t i = 0; i < 16 && k + i < depth; ++i) V::Store(target + i * spacing, r[i]);
      }
    }
  }
}

// Four columns of a panel become four rows of y, whose lines are asked for a round before.
template <Activation A>
void StoreFour(const float* source, int64_t spacing, int64_t rows, int64_t columns, __m512 bias,
               const float* residual, float* y, int64_t stride, const Epilogue& epilogue) {
  __m512 r[4];
  SPARSIFY_UNROLL
  for (int64_t i = 4; i < 8; ++i) {
    if (i < columns) SPARSIFY_PREFETCH_TO_WRITE(y + i * stride);
  }
  if (rows >= 16) {
    SPARSIFY_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = LoadLanes(source, spacing, i);
    TransposeLanes(r);
  } else {
    __m512 all[16];
    TransposeFirst(source, spacing, rows, 4, all);
    for (int i = 0; i < 4; ++i) r[i] = all[i];
  }
  SPARSIFY_UNROLL
  for (int64_t i = 0; i < 4; ++i) {
    if (i >= columns) return;
    __m512 v = V::Add(r[i], bias);
    if (residual != nullptr) v = V::Add(v, V::LoadFirst(residual + i * stride, rows));
    V::StoreFirst(y + i * stride, rows, Activate<V, A>(v, epilogue));
  }
}

// Panel rows that are written together: they stay in the first-level cache while their columns become long
// runs of y, which is what the prefetchers and the translation buffers want.
constexpr int64_t kStoreRows = 96;

template <Activation A>
void StoreRows(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
               float* y, int64_t stride, int groups) {
  const int64_t spacing = kSpacing[groups];
  for (int64_t begin = first; begin < last; begin += kStoreRows) {
    const int64_t end = begin + kStoreRows < last ? begin + kStoreRows : last;
    for (int64_t column = 0; column < columns; column += 4) {
      for (int64_t row = begin; row < end; row += 16) {
        const int64_t rows = end - row;
        const int64_t target = column * stride + row;
        StoreFour<A>(panel + (row - first) * spacing + column, spacing, rows, columns - column,
                     epilogue.bias != nullptr ? V::LoadFirst(epilogue.bias + row, rows) : V::Zero(),
                     epilogue.residual != nullptr ? epilogue.residual + target : nullptr, y + target, stride,
                     epilogue);
      }
    }
  }
}

void StoreRowsBy(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
                 float* y, int64_t stride, int groups) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, StoreRows, panel, first, last, columns, epilogue, y, stride,
                         groups)
}

// Few rows: the block's 32 inputs of each row of X sit in two registers; one vpermt2ps fetches the input of
// every lane, one FMA uses it. Only non-zeros are read, and once for all rows of X: the weights come from
// beyond the second-level cache, so bytes are the ceiling, and an expanding load turns them into lanes.
template <int Rows>
struct Sums {
  static constexpr int kSets = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
  __m512 sum[kSets][Rows];
};

struct SlotCursor {
  const float* stream;
  const uint16_t* masks;
  const uint32_t* blocks;
};

// The stream comes from the third-level cache, and the prefetchers stop at every page: a kilobyte ahead is
// what they leave uncovered. A record is about that many lines long.
constexpr int64_t kStreamAhead = 256;
constexpr int kStreamLines = 4;

template <int Rows, int Slots>
void MultiplyRecords(SlotCursor* cursor, uint32_t count, const RowMajor& operand, Sums<Rows>* sums) {
  constexpr int S = Sums<Rows>::kSets;
  __m512 sum[S][Rows];
  SPARSIFY_UNROLL
  for (int s = 0; s < S; ++s) {
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) sum[s][b] = sums->sum[s][b];
  }
  const float* stream = cursor->stream;
  const uint16_t* masks = cursor->masks;
  for (uint32_t n = 0; n < count; ++n) {
    const float* x = operand.x + cursor->blocks[n];
    __m512 low[Rows], high[Rows];
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) {
      low[b] = _mm512_loadu_ps(x + b * operand.x_stride);
      high[b] = _mm512_loadu_ps(x + b * operand.x_stride + 16);
    }
    SPARSIFY_UNROLL
    for (int i = 0; i < kStreamLines; ++i) SPARSIFY_PREFETCH(stream + kStreamAhead + i * kGroup);
    __m512i index = _mm512_loadu_si512(stream);
    stream += 16;
    SPARSIFY_UNROLL
    for (int s = 0; s < Slots; ++s) {
      const uint32_t mask = masks[s];
      const __mmask16 lanes = static_cast<__mmask16>(mask);
      const __m512 w = _mm512_maskz_expandloadu_ps(lanes, stream);
      stream += _mm_popcnt_u32(mask);
      SPARSIFY_UNROLL
      for (int b = 0; b < Rows; ++b) {
        // Only the low five bits of an index count. Absent lanes must not see 0 * infinity.
        const __m512 v = _mm512_permutex2var_ps(low[b], index, high[b]);
        sum[s % S][b] = _mm512_mask3_fmadd_ps(w, v, sum[s % S][b], lanes);
      }
      if (s + 1 < Slots) index = _mm512_srli_epi32(index, 5);
    }
    masks += Slots;
  }
  SPARSIFY_UNROLL
  for (int s = 0; s < S; ++s) {
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) sums->sum[s][b] = sum[s][b];
  }
  *cursor = {stream, masks, cursor->blocks + count};
}

// One at a time: a gather takes longer for sixteen lanes than this for the few that are in the rest.
template <int Rows>
void MultiplyRest(const SlotGroup& group, const RowMajor& operand, Sums<Rows>* sums) {
  if (group.rest == 0) return;
  alignas(64) float rest[Rows][kLanes] = {};
  for (size_t i = 0; i < group.rest; ++i) {
    const float w = group.rest_values[i];
    const float* x = operand.x + group.rest_inputs[i];
    const size_t lane = group.rest_lanes[i];
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) rest[b][lane] += w * x[b * operand.x_stride];
  }
  SPARSIFY_UNROLL
  for (int b = 0; b < Rows; ++b) sums->sum[0][b] = V::Add(sums->sum[0][b], V::Load(rest[b]));
}

template <int Rows>
void SlotsOf(const SlotGroup& group, const RowMajor& operand, Sums<Rows>* sums) {
  using Records = void (*)(SlotCursor*, uint32_t, const RowMajor&, Sums<Rows>*);
  static constexpr Records kRecords[kMaxSlots] = {&MultiplyRecords<Rows, 1>, &MultiplyRecords<Rows, 2>,
                                                  &MultiplyRecords<Rows, 3>, &MultiplyRecords<Rows, 4>,
                                                  &MultiplyRecords<Rows, 5>, &MultiplyRecords<Rows, 6>};
  SlotCursor cursor = {group.stream, group.masks, group.blocks};
  for (size_t i = 0; i < group.class_count; ++i) {
    const SlotClass& c = group.classes[i];
    kRecords[c.slots - 1](&cursor, c.blocks, operand, sums);
  }
  MultiplyRest<Rows>(group, operand, sums);
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
    V::StoreFirst(operand.y + target, lanes, Activate<V, A>(v, epilogue));
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
  static constexpr Function kFunctions[] = {&SlotsFor<1>, &SlotsFor<2>, &SlotsFor<3>,
                                            &SlotsFor<4>, &SlotsFor<5>, &SlotsFor<6>};
  kFunctions[operand.rows - 1](group, operand, first, last, epilogue);
}

#include "avx512_blocks.h"

}  // namespace

const Isa isa_avx512 = {"avx512",     &MultiplyTuned,  &PackRows, &PackPixels<V>, &PackFlat<V>, &TakeEvery<V>,
                        &StoreRowsBy, &StorePixels<V>, 6,         &Slots,         nullptr,      &BlockRows,
                        &rows_avx512};

}  // namespace csr
}  // namespace sparsify
