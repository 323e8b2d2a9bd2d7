// The panel product, written once for all vector widths. Included inside the anonymous
// namespace of an instruction set's source; V wraps its registers.
//
// A row of the weight against a tile of X: the sums of one row stay in registers, each non-zero costs one
// offset and one load and FMA per register. Loads are the ceiling (2 a cycle), 4.5 for 4 FMAs at 64 columns
// of AVX-512, so offsets and weights are loaded four at a time (x86 is little-endian) and weights are spread
// by shuffles; where a CPU is tuned for as deep (V::kDeep) a load of its own is less work for each. Rows come
// sorted by their number of non-zeros, and the code is unrolled for each number, so no branch depends on the
// weights.
#ifndef SPARSIFY_KERNELS_CSR_PANEL_BODY_H_
#define SPARSIFY_KERNELS_CSR_PANEL_BODY_H_

struct Cursor {
  const float* values;
  const uint16_t* offsets;
  const uint32_t* rows;
};

// Registers per panel row, and independent sums per register where few registers leave the FMAs waiting.
template <class V, int G>
struct Shape {
  static constexpr int kRegisters = G * kGroup / V::kWidth;
  static constexpr int kSets = kRegisters * 4 <= V::kAccumulators   ? 4
                               : kRegisters * 2 <= V::kAccumulators ? 2
                                                                    : 1;
};

// The largest divisor of n that is at most `most`.
constexpr int LargestDivisor(int n, int most) {
  int divisor = most < n ? most : n;
  while (n % divisor != 0) --divisor;
  return divisor;
}

// Waiting sums come from the second-level cache, in an order that no prefetcher knows: they are asked for
// one row ahead where rows are too long for the processor to see the next one by itself, which deep ones do.
// The plan keeps one row more than there are.
constexpr int kCountAhead = 16;

// In a block of outputs every entry asks for one line of the next block's sums. Fewer registers than these
// leave no load to spare.
constexpr int kSumsAhead = 16;

// Weights come from beyond the second-level cache, and prefetchers stop at every page: deep CPUs, whose sums
// need no asking for, ask for values a kilobyte ahead instead, a line at a time. Offsets are few enough
// bytes.
constexpr int kValuesAhead = 256;

template <class V>
void PrefetchValues(const float* values, int n) {
  if (V::kDeep && n % 16 == 0) SPARSIFY_PREFETCH(values + n + kValuesAhead);
}

// Asks for the lines of a row's sums, one by one over its `Count` entries, of which this is the n-th: all at
// once would keep the loads of X waiting.
template <class V, int Registers, int Count>
void PrefetchSums(const float* sums, int n) {
  constexpr int kLines = (Registers * V::kWidth + kGroup - 1) / kGroup;
  if (V::kDeep || Count < kCountAhead || n % (Count / kLines) != 0) return;
  const int line = n / (Count / kLines);
  if (line < kLines) SPARSIFY_PREFETCH(sums + line * kGroup);
}

template <class V, int G, int Count>
void MultiplyRows(Cursor* cursor, uint32_t rows, bool begins, const char* tile, float* panel) {
  constexpr int R = Shape<V, G>::kRegisters;
  constexpr int S = Shape<V, G>::kSets < Count ? Shape<V, G>::kSets : Count > 0 ? Count : 1;
  constexpr int64_t kStride = kSpacing[G];
  const float* values = cursor->values;
  const uint16_t* offsets = cursor->offsets;
  for (uint32_t i = 0; i < rows; ++i) {
    float* sums = panel + static_cast<int64_t>(cursor->rows[i]) * kStride;
    const float* next = panel + static_cast<int64_t>(cursor->rows[i + 1]) * kStride;
    typename V::Register sum[S][R];
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) sum[0][r] = begins ? V::Zero() : V::Load(sums + r * V::kWidth);
    SPARSIFY_UNROLL
    for (int s = 1; s < S; ++s) {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[s][r] = V::Zero();
    }
    uint64_t quad = 0;
    typename V::Register weights = V::Zero();
    SPARSIFY_UNROLL
    for (int n = 0; n < Count; ++n) {
      PrefetchSums<V, R, Count>(next, n);
      PrefetchValues<V>(values, n);
      const bool in_quad = n / 4 * 4 + 4 <= Count;
      if (in_quad && n % 4 == 0) {
        memcpy(&quad, offsets + n, sizeof(quad));
        SPARSIFY_OPAQUE(quad);
        if (!V::kDeep) weights = V::Quad(values + n);
      }
      const size_t offset = in_quad ? static_cast<uint16_t>(quad >> (R == 1 ? 0 : 16 * (n % 4))) : offsets[n];
      const char* address = tile + offset * (kStride / kGroup);
      if (R == 1) {
        // One register: instructions are the limit. An indexed load is one, and so is an FMA that broadcasts.
        quad >>= 16;
        SPARSIFY_OPAQUE(quad);
        typename V::Register x = V::Load(reinterpret_cast<const float*>(address));
        V::Hold(&x);
        sum[n % S][0] = V::MulAdd(x, V::Set(values[n]), sum[n % S][0]);
        continue;
      }
      SPARSIFY_OPAQUE(address);  // one address register instead of an indexed operand in every load
      const float* x = reinterpret_cast<const float*>(address);
      const typename V::Register w = in_quad && !V::kDeep ? V::Lane(weights, n % 4) : V::Set(values[n]);
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[n % S][r] = V::MulAdd(w, V::Load(x + r * V::kWidth), sum[n % S][r]);
    }
    SPARSIFY_UNROLL
    for (int s = 1; s < S; ++s) {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[0][r] = V::Add(sum[0][r], sum[s][r]);
    }
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) V::Store(sums + r * V::kWidth, sum[0][r]);
    values += Count;
    offsets += Count;
  }
  cursor->values = values;
  cursor->offsets = offsets;
  cursor->rows += rows;
}

template <class V, int G>
void MultiplySegment(const PanelSegment& segment, const float* tile, float* panel) {
  using Rows = void (*)(Cursor*, uint32_t, bool, const char*, float*);
#define SPARSIFY_4(n) \
  &MultiplyRows<V, G, n>, &MultiplyRows<V, G, n + 1>, &MultiplyRows<V, G, n + 2>, &MultiplyRows<V, G, n + 3>
  static constexpr Rows kRows[kMaxCount + 1] = {
      SPARSIFY_4(0),  SPARSIFY_4(4),  SPARSIFY_4(8),
      SPARSIFY_4(12), SPARSIFY_4(16), SPARSIFY_4(20),
      SPARSIFY_4(24), SPARSIFY_4(28), &MultiplyRows<V, G, kMaxCount>};
#undef SPARSIFY_4
  Cursor cursor = {segment.values, segment.offsets, segment.rows};
  for (size_t i = 0; i < segment.class_count; ++i) {
    const RowClass& c = segment.classes[i];
    kRows[c.count](&cursor, c.rows, c.begins, reinterpret_cast<const char*>(tile), panel);
  }
}

// Blocks of R outputs of one input: each load of X and each broadcast serves R, or W / 16, FMAs. Four outputs
// at 64 columns of AVX-512 take 8 loads for 16 FMAs, eight at 32 columns 10: the FMAs are the ceiling.
template <class V, int R, int Chunk, bool Flat, int64_t kStride>
inline void AddEntry(const float* values, const char* tile, size_t offset,
                     typename V::Register (&sum)[R][Chunk]) {
  const float* x = reinterpret_cast<const float*>(tile + offset * (Flat ? sizeof(float) : kStride / kGroup));
  typename V::Register columns[Chunk];
  SPARSIFY_UNROLL
  for (int c = 0; c < Chunk; ++c) {
    columns[c] = Flat ? V::LoadAny(x + c * V::kWidth) : V::Load(x + c * V::kWidth);
  }
  SPARSIFY_UNROLL
  for (int r = 0; r < R; ++r) {
    const typename V::Register w = V::Set(values[r]);
    SPARSIFY_UNROLL
    for (int c = 0; c < Chunk; ++c) sum[r][c] = V::MulAdd(w, columns[c], sum[r][c]);
  }
}

// Where line n of a block's sums lies: R rows of `Columns` floats.
template <int R, int Columns, int64_t kStride>
constexpr int64_t BlockLine(uint32_t n) {
  constexpr uint32_t kRowLines = Columns <= kGroup       ? 1
                                 : Columns <= 2 * kGroup ? 2
                                                         : static_cast<uint32_t>(kStride / kGroup);
  return kRowLines * kGroup == kStride ? n % (R * kRowLines) * kGroup
                                       : n % R * kStride + n / R % kRowLines * kGroup;
}

template <class V, int G, int R, int Chunk, bool Flat>
SPARSIFY_INLINE void MultiplyBlock(const float* values, const uint16_t* offsets, uint32_t count,
                                   int64_t stride, const char* tile, bool begins, float* sums,
                                   [[maybe_unused]] const float* next) {
  constexpr int64_t kStride = kSpacing[G];
  typename V::Register sum[R][Chunk];
  SPARSIFY_UNROLL
  for (int r = 0; r < R; ++r) {
    SPARSIFY_UNROLL
    for (int c = 0; c < Chunk; ++c) {
      sum[r][c] = begins ? V::Zero() : V::Load(sums + r * kStride + c * V::kWidth);
    }
  }
  uint32_t n = 0;
  for (; n + 2 <= count; n += 2) {
    SPARSIFY_UNROLL
    for (int step = 0; step < 2; ++step) {
      AddEntry<V, R, Chunk, Flat, kStride>(values + step * stride, tile, offsets[step], sum);
      if (!V::kDeep && R * Chunk >= kSumsAhead) {
        const uint32_t line = n + static_cast<uint32_t>(step);
        SPARSIFY_PREFETCH((next + BlockLine<R, Chunk * V::kWidth, kStride>(line)));
      }
    }
    if (V::kDeep) SPARSIFY_PREFETCH(values + kValuesAhead);
    values += 2 * stride;
    offsets += 2;
  }
  if (n < count) AddEntry<V, R, Chunk, Flat, kStride>(values, tile, offsets[0], sum);
  SPARSIFY_UNROLL
  for (int r = 0; r < R; ++r) {
    SPARSIFY_UNROLL
    for (int c = 0; c < Chunk; ++c) V::Store(sums + r * kStride + c * V::kWidth, sum[r][c]);
  }
}

// V::kBlock rows at a time, and as many registers of columns as there are sums for.
template <class V, int G, int R, bool Flat>
void MultiplyBlocks(const PanelSegment& segment, const float* tile, float* panel) {
  constexpr int kRegisters = Shape<V, G>::kRegisters;
  constexpr int kMost = Flat && V::kBlock > 4 ? 4 : V::kBlock;  // with panels of 64 columns
  constexpr int kRows = R < kMost ? R : kMost;
  constexpr int kChunk = LargestDivisor(kRegisters, V::kSums / kRows);
  const float* values = segment.values;
  const uint16_t* offsets = segment.offsets;
  const uint32_t* rows = segment.rows;
  for (size_t i = 0; i < segment.class_count; ++i) {
    const uint32_t count = segment.classes[i].count;
    const bool begins = segment.classes[i].begins;
    for (uint32_t n = 0; n < segment.classes[i].rows; ++n) {
      float* sums = panel + static_cast<int64_t>(*rows++) * kSpacing[G];
      const float* next = panel + static_cast<int64_t>(*rows) * kSpacing[G];
      for (int r = 0; r < R; r += kRows) {
        for (int c = 0; c < kRegisters; c += kChunk) {
          const int64_t column = c * V::kWidth;
          const int64_t at = r * kSpacing[G] + column;
          MultiplyBlock<V, G, kRows, kChunk, Flat>(values + r, offsets, count, R,
                                                   reinterpret_cast<const char*>(tile + column), begins,
                                                   sums + at, next + at);
        }
      }
      values += count * R;
      offsets += count;
    }
  }
}

template <class V, int G, int R>
void MultiplyTile(const PanelSegment& segment, const float* tile, float* panel) {
  if (segment.flat) return MultiplyBlocks<V, G, R, true>(segment, tile, panel);
  return MultiplyBlocks<V, G, R, false>(segment, tile, panel);
}

template <class V, int G>
void MultiplyAny(const PanelSegment& segment, const float* tile, float* panel) {
  switch (segment.block_rows) {
    case 1:
      return MultiplySegment<V, G>(segment, tile, panel);
    case 2:
      return MultiplyBlocks<V, G, 2, false>(segment, tile, panel);
    case 4:
      return MultiplyTile<V, G, 4>(segment, tile, panel);
    case 8:
      return MultiplyTile<V, G, 8>(segment, tile, panel);
    default:
      return MultiplyTile<V, G, 16>(segment, tile, panel);
  }
}

template <class V>
void Multiply(const PanelSegment& segment, const float* tile, float* panel, int groups) {
  switch (groups) {
    case 1:
      return MultiplyAny<V, 1>(segment, tile, panel);
    case 2:
      return MultiplyAny<V, 2>(segment, tile, panel);
    case 3:
      return MultiplyAny<V, 3>(segment, tile, panel);
    case 4:
      return MultiplyAny<V, 4>(segment, tile, panel);
    default:
      return MultiplyAny<V, kWideGroups>(segment, tile, panel);
  }
}

#endif  // SPARSIFY_KERNELS_CSR_PANEL_BODY_H_
