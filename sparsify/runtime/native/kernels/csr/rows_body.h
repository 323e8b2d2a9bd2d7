// The product of a weight and rows of pixels, written once for all vector widths. Included inside the
// anonymous namespace of an instruction set's source, behind panel_body.h; V wraps its registers.
//
// As in panel_body.h, code is unrolled for each number of non-zeros that an output has in a pass. What
// differs: X is read where it lies, at addresses that need not be aligned, and an output that is complete
// goes from registers to its place in the map.
#ifndef SPARSIFY_KERNELS_CSR_ROWS_BODY_H_
#define SPARSIFY_KERNELS_CSR_ROWS_BODY_H_

constexpr int64_t kRowSums = 64;  // floats of an output's waiting sums

// Registers of a group of 16 pixels.
template <class V>
constexpr int kOfGroup = kGroup / V::kWidth;

// The address that register r of a panel reads at `offset`.
template <class V, bool Near, class T>
inline T* RowAddress(T* const* x, int64_t offset, int r) {
  if (Near) return x[0] + offset + r * V::kWidth;
  return x[r / kOfGroup<V>] + offset + r % kOfGroup<V> * V::kWidth;
}

// Outputs come in the order of their numbers of non-zeros, which no prefetcher follows: what will be written
// and added to is asked for so many outputs ahead. Stores that wait for their lines hold up every load that
// agrees with one of them in its last twelve bits.
constexpr int kOutputsAhead = 3;

template <int G>
inline void AskAhead(const RowOutput& out, int64_t row) {
  SPARSIFY_UNROLL
  for (int g = 0; g < G; ++g) {
    SPARSIFY_PREFETCH_TO_WRITE(out.y[g] + row * out.y_stride);
    if (out.has_residual) SPARSIFY_PREFETCH(out.residual[g] + row * out.residual_stride);
  }
}

// Finishes `Registers` of an output's pixels from register `first` of a panel on.
template <class V, bool Near, int Registers>
inline void EndRow(typename V::Register (&sum)[Registers], int first, int64_t row, const RowOutput& out) {
  const typename V::Register bias = out.bias != nullptr ? V::Set(out.bias[row]) : V::Zero();
  SPARSIFY_UNROLL
  for (int r = 0; r < Registers; ++r) sum[r] = V::Add(sum[r], bias);
  if (out.has_residual) {
    const int64_t at = row * out.residual_stride;
    SPARSIFY_UNROLL
    for (int r = 0; r < Registers; ++r) {
      sum[r] = V::Add(sum[r], V::LoadAny(RowAddress<V, Near>(out.residual, at, first + r)));
    }
  }
  const typename V::Register low = V::Set(out.low), high = V::Set(out.high);
  const int64_t at = row * out.y_stride;
  SPARSIFY_UNROLL
  for (int r = 0; r < Registers; ++r) sum[r] = V::Min(high, V::Max(low, sum[r]));
  if (out.planes) {
    SPARSIFY_UNROLL
    for (int r = 0; r < Registers; ++r) {
      const int group = (first + r) / kOfGroup<V>, lane = (first + r) % kOfGroup<V> * V::kWidth;
      V::StoreMasked(RowAddress<V, Near>(out.y, at, first + r), V::Bits(out.pixels[group] >> lane), sum[r]);
    }
    return;
  }
  SPARSIFY_UNROLL
  for (int r = 0; r < Registers; ++r) {
    const int group = (first + r) / kOfGroup<V>, lane = (first + r) % kOfGroup<V> * V::kWidth;
    V::Store(RowAddress<V, Near>(out.y, at, first + r), V::Keep(V::Bits(out.pixels[group] >> lane), sum[r]));
  }
}

struct RowState {
  Cursor cursor;
  const float* x[kMaxGroups];
  float* sums;
  bool first;
  const RowOutput* last;
};

template <class V, int G, bool Near, int Count>
void RowsOfCount(RowState* state, uint32_t rows) {
  constexpr int R = Shape<V, G>::kRegisters;
  constexpr int S = Shape<V, G>::kSets < Count ? Shape<V, G>::kSets : Count > 0 ? Count : 1;
  const float* const x[kMaxGroups] = {state->x[0], state->x[1], state->x[2], state->x[3]};
  const float* values = state->cursor.values;
  const uint16_t* offsets = state->cursor.offsets;
  const bool from_zero = state->first;
  const RowOutput* const last = state->last;
  for (uint32_t i = 0; i < rows; ++i) {
    const int64_t row = state->cursor.rows[i];
    float* sums = state->sums + row * kRowSums;
    if (last != nullptr) AskAhead<G>(*last, state->cursor.rows[i + kOutputsAhead]);
    typename V::Register sum[S][R];
    SPARSIFY_UNROLL
    for (int s = 0; s < S; ++s) {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[s][r] = V::Zero();
    }
    if (!from_zero) {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[0][r] = V::Load(sums + r * V::kWidth);
    }
    uint64_t quad = 0;
    SPARSIFY_UNROLL
    for (int n = 0; n < Count; ++n) {
      const bool in_quad = n / 4 * 4 + 4 <= Count;
      if (in_quad && n % 4 == 0) {
        memcpy(&quad, offsets + n, sizeof(quad));
        SPARSIFY_OPAQUE(quad);
      }
      const int64_t offset = in_quad ? static_cast<uint16_t>(quad >> (16 * (n % 4))) : offsets[n];
      if (n % 16 == 0) SPARSIFY_PREFETCH(values + n + kValuesAhead);
      const typename V::Register w = V::Set(values[n]);
      if (Near) {
        const float* address = x[0] + offset;
        SPARSIFY_OPAQUE(address);  // one address register instead of an indexed operand in every load
        SPARSIFY_UNROLL
        for (int r = 0; r < R; ++r) {
          sum[n % S][r] = V::MulAdd(w, V::LoadAny(address + r * V::kWidth), sum[n % S][r]);
        }
      } else {
        SPARSIFY_UNROLL
        for (int r = 0; r < R; ++r) {
          sum[n % S][r] = V::MulAdd(w, V::LoadAny(RowAddress<V, false>(x, offset, r)), sum[n % S][r]);
        }
      }
    }
    SPARSIFY_UNROLL
    for (int s = 1; s < S; ++s) {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) sum[0][r] = V::Add(sum[0][r], sum[s][r]);
    }
    if (last != nullptr) {
      EndRow<V, Near>(sum[0], 0, row, *last);
    } else {
      SPARSIFY_UNROLL
      for (int r = 0; r < R; ++r) V::Store(sums + r * V::kWidth, sum[0][r]);
    }
    values += Count;
    offsets += Count;
  }
  state->cursor = {values, offsets, state->cursor.rows + rows};
}

template <class V, int G, bool Near>
void RowsOfSegment(const PanelSegment& segment, RowState* state) {
  using Rows = void (*)(RowState*, uint32_t);
#define SPARSIFY_4(n)                                                                            \
  &RowsOfCount<V, G, Near, n>, &RowsOfCount<V, G, Near, n + 1>, &RowsOfCount<V, G, Near, n + 2>, \
      &RowsOfCount<V, G, Near, n + 3>
  static constexpr Rows kRows[kMaxCount + 1] = {
      SPARSIFY_4(0),  SPARSIFY_4(4),  SPARSIFY_4(8),
      SPARSIFY_4(12), SPARSIFY_4(16), SPARSIFY_4(20),
      SPARSIFY_4(24), SPARSIFY_4(28), &RowsOfCount<V, G, Near, kMaxCount>};
#undef SPARSIFY_4
  for (size_t i = 0; i < segment.class_count; ++i) {
    kRows[segment.classes[i].count](state, segment.classes[i].rows);
  }
}

// `kRows` of a block's outputs, registers [first, first + Chunk) of the panel.
template <class V, int kRows, int Chunk, bool Near>
void RowsOfBlock(const RowState& state, int first, const float* values, const uint16_t* offsets,
                 uint32_t count, int64_t stride, int64_t row) {
  typename V::Register sum[kRows][Chunk];
  float* sums = state.sums + row * kRowSums + first * V::kWidth;
  SPARSIFY_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SPARSIFY_UNROLL
    for (int c = 0; c < Chunk; ++c) {
      sum[r][c] = state.first ? V::Zero() : V::Load(sums + r * kRowSums + c * V::kWidth);
    }
  }
  for (uint32_t n = 0; n < count; ++n, values += stride) {
    typename V::Register columns[Chunk];
    const int64_t offset = offsets[n];
    SPARSIFY_UNROLL
    for (int c = 0; c < Chunk; ++c) columns[c] = V::LoadAny(RowAddress<V, Near>(state.x, offset, first + c));
    SPARSIFY_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const typename V::Register w = V::Set(values[r]);
      SPARSIFY_UNROLL
      for (int c = 0; c < Chunk; ++c) sum[r][c] = V::MulAdd(w, columns[c], sum[r][c]);
    }
  }
  SPARSIFY_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (state.last == nullptr) {
      SPARSIFY_UNROLL
      for (int c = 0; c < Chunk; ++c) V::Store(sums + r * kRowSums + c * V::kWidth, sum[r][c]);
    } else if (row + r < state.last->rows) {
      EndRow<V, Near>(sum[r], first, row + r, *state.last);
    }
  }
}

template <class V, int G, int R, bool Near>
void RowsOfBlocks(const PanelSegment& segment, RowState* state) {
  constexpr int kRegisters = Shape<V, G>::kRegisters;
  constexpr int kMost = V::kBlock > 4 ? 4 : V::kBlock;  // with panels of 64 columns
  constexpr int kRows = R < kMost ? R : kMost;
  constexpr int kChunk = LargestDivisor(kRegisters, V::kSums / kRows);
  Cursor cursor = state->cursor;
  for (size_t i = 0; i < segment.class_count; ++i) {
    const uint32_t count = segment.classes[i].count;
    for (uint32_t n = 0; n < segment.classes[i].rows; ++n) {
      const int64_t row = *cursor.rows++;
      if (state->last != nullptr) {
        for (int r = 0; r < R; ++r) AskAhead<G>(*state->last, static_cast<int64_t>(*cursor.rows) + r);
      }
      for (int r = 0; r < R; r += kRows) {
        for (int c = 0; c < kRegisters; c += kChunk) {
          RowsOfBlock<V, kRows, kChunk, Near>(*state, c, cursor.values + r, cursor.offsets, count, R,
                                              row + r);
        }
      }
      cursor.values += count * R;
      cursor.offsets += count;
    }
  }
}

template <class V, int G, bool Near>
void RowsOfAny(const PanelSegment& segment, RowState* state) {
  switch (segment.block_rows) {
    case 1:
      return RowsOfSegment<V, G, Near>(segment, state);
    case 2:
      return RowsOfBlocks<V, G, 2, Near>(segment, state);
    case 4:
      return RowsOfBlocks<V, G, 4, Near>(segment, state);
    case 8:
      return RowsOfBlocks<V, G, 8, Near>(segment, state);
    default:
      return RowsOfBlocks<V, G, 16, Near>(segment, state);
  }
}

template <class V>
void MultiplyRowGroups(const PanelSegment& segment, const RowGroups& groups, float* sums, bool first,
                       const RowOutput* last) {
  RowState state = {{segment.values, segment.offsets, segment.rows},
                    {groups.x[0], groups.x[1], groups.x[2], groups.x[3]},
                    sums,
                    first,
                    last};
  switch (groups.count * 2 + (groups.near ? 1 : 0)) {
    case 2:
    case 3:
      return RowsOfAny<V, 1, true>(segment, &state);
    case 4:
      return RowsOfAny<V, 2, false>(segment, &state);
    case 5:
      return RowsOfAny<V, 2, true>(segment, &state);
    case 6:
      return RowsOfAny<V, 3, false>(segment, &state);
    case 7:
      return RowsOfAny<V, 3, true>(segment, &state);
    case 8:
      return RowsOfAny<V, 4, false>(segment, &state);
    default:
      return RowsOfAny<V, 4, true>(segment, &state);
  }
}

template <class V, int G>
void MoveSums(float* sums, int64_t outputs, int shift, const uint32_t* keep) {
  constexpr int R = Shape<V, G>::kRegisters;
  for (int64_t row = 0; row < outputs; ++row, sums += kRowSums) {
    typename V::Register sum[R];
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = V::LoadAny(sums + r * V::kWidth + shift);
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint32_t lanes = keep[r / kOfGroup<V>] >> r % kOfGroup<V> * V::kWidth;
      V::Store(sums + r * V::kWidth, V::Keep(V::Bits(lanes), sum[r]));
    }
  }
}

template <class V>
void MoveRowSums(float* sums, int64_t outputs, int groups, int shift, const uint32_t* keep) {
  switch (groups) {
    case 1:
      return MoveSums<V, 1>(sums, outputs, shift, keep);
    case 2:
      return MoveSums<V, 2>(sums, outputs, shift, keep);
    case 3:
      return MoveSums<V, 3>(sums, outputs, shift, keep);
    default:
      return MoveSums<V, 4>(sums, outputs, shift, keep);
  }
}

template <class V, Activation A>
void ActivateAll(const Epilogue& ending, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += V::kWidth) {
    V::StoreFirst(y + i, count - i, Activate<V, A>(V::LoadFirst(y + i, count - i), ending));
  }
}

template <class V>
void ActivateBy(const Epilogue& ending, float* y, int64_t count) {
  switch (ending.activation) {
    case Activation::kGelu:
      return ActivateAll<V, Activation::kGelu>(ending, y, count);
    case Activation::kGeluTanh:
      return ActivateAll<V, Activation::kGeluTanh>(ending, y, count);
    case Activation::kSilu:
      return ActivateAll<V, Activation::kSilu>(ending, y, count);
    default:
      return;
  }
}

#endif  // SPARSIFY_KERNELS_CSR_ROWS_BODY_H_
