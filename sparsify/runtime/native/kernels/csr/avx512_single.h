// Blocks of four outputs on panels whose last group holds one column: maps of 7 x 7. Included inside the
// anonymous namespace of isa_avx512.cc, behind panel_body.h.
//
// That column's four outputs are the lanes of one 128-bit register. So an entry takes 4 FMAs for each whole
// group and one more, in place of four for a group that is empty but for one lane: 13 and not 16 for 49
// columns.
#ifndef SPARSIFY_KERNELS_CSR_AVX512_SINGLE_H_
#define SPARSIFY_KERNELS_CSR_AVX512_SINGLE_H_

constexpr int kSingleRows = 4;

// The sums of one column: outputs lie a row of the panel apart.
inline __m128 LoadColumn(const float* sums, int64_t stride) {
  return _mm_setr_ps(sums[0], sums[stride], sums[2 * stride], sums[3 * stride]);
}

inline void StoreColumn(float* sums, int64_t stride, __m128 v) {
  alignas(16) float lanes[kSingleRows];
  _mm_store_ps(lanes, v);
  for (int r = 0; r < kSingleRows; ++r) sums[r * stride] = lanes[r];
}

template <class W, int G>
inline void AddSingle(const float* values, const char* tile, size_t offset, __m512 (&sum)[kSingleRows][G - 1],
                      __m128* last) {
  AddEntry<W, kSingleRows, G - 1, false, kSpacing[G]>(values, tile, offset, sum);
  const float* x = reinterpret_cast<const float*>(tile + offset * (kSpacing[G] / kGroup));
  *last = _mm_fmadd_ps(_mm_loadu_ps(values), _mm_set1_ps(x[(G - 1) * kGroup]), *last);
}

template <class W, int G>
SPARSIFY_INLINE void MultiplySingleBlock(const float* values, const uint16_t* offsets, uint32_t count,
                                         const char* tile, bool begins, float* sums) {
  constexpr int64_t kStride = kSpacing[G];
  constexpr int kWhole = G - 1, kLast = kWhole * kGroup;  // groups, and the column behind them
  __m512 sum[kSingleRows][kWhole];
  SPARSIFY_UNROLL
  for (int r = 0; r < kSingleRows; ++r) {
    SPARSIFY_UNROLL
    for (int c = 0; c < kWhole; ++c)
      sum[r][c] = begins ? W::Zero() : W::Load(sums + r * kStride + c * kGroup);
  }
  __m128 last = begins ? _mm_setzero_ps() : LoadColumn(sums + kLast, kStride);
  uint32_t n = 0;
  for (; n + 2 <= count; n += 2) {
    SPARSIFY_UNROLL
    for (int step = 0; step < 2; ++step) {
      AddSingle<W, G>(values + step * kSingleRows, tile, offsets[step], sum, &last);
    }
    if (W::kDeep) SPARSIFY_PREFETCH(values + kValuesAhead);
    values += 2 * kSingleRows;
    offsets += 2;
  }
  if (n < count) AddSingle<W, G>(values, tile, offsets[0], sum, &last);
  SPARSIFY_UNROLL
  for (int r = 0; r < kSingleRows; ++r) {
    SPARSIFY_UNROLL
    for (int c = 0; c < kWhole; ++c) W::Store(sums + r * kStride + c * kGroup, sum[r][c]);
  }
  StoreColumn(sums + kLast, kStride, last);
}

template <class W, int G>
void MultiplySingle(const PanelSegment& segment, const float* tile, float* panel) {
  const float* values = segment.values;
  const uint16_t* offsets = segment.offsets;
  const uint32_t* rows = segment.rows;
  for (size_t i = 0; i < segment.class_count; ++i) {
    const RowClass& c = segment.classes[i];
    for (uint32_t n = 0; n < c.rows; ++n) {
      MultiplySingleBlock<W, G>(values, offsets, c.count, reinterpret_cast<const char*>(tile), c.begins,
                                panel + static_cast<int64_t>(*rows++) * kSpacing[G]);
      values += c.count * kSingleRows;
      offsets += c.count;
    }
  }
}

// Whether the columns of this panel are multiplied so.
inline bool IsSingle(const PanelSegment& segment, int groups) {
  return segment.single && segment.block_rows == kSingleRows && groups > 1;
}

template <class W>
void MultiplySingles(const PanelSegment& segment, const float* tile, float* panel, int groups) {
  switch (groups) {
    case 2:
      return MultiplySingle<W, 2>(segment, tile, panel);
    case 3:
      return MultiplySingle<W, 3>(segment, tile, panel);
    case 4:
      return MultiplySingle<W, 4>(segment, tile, panel);
    default:
      return MultiplySingle<W, kWideGroups>(segment, tile, panel);
  }
}

#endif  // SPARSIFY_KERNELS_CSR_AVX512_SINGLE_H_
