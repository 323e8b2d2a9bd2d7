// The sampled product for vector registers. Included inside the anonymous namespace of an instruction set's
// source; V wraps its registers.
//
// A row of dY stays in registers; each position takes one load and FMA per register of columns, and leaves
// one register of partial sums in a buffer. As many of these as a register has lanes are summed up together,
// by the shuffles of a transposition: 45 instructions for 16 sums instead of 7 for each.
#ifndef SPARSIFY_KERNELS_TRAIN_SAMPLE_BODY_H_
#define SPARSIFY_KERNELS_TRAIN_SAMPLE_BODY_H_

// Partial sums that wait; they are summed up when there are kFlush or more.
constexpr int kFlush = 32;

template <class V>
struct Waiting {
  alignas(64) float sums[(kFlush + csr::kMaxCount) * V::kWidth];
  int count;
  float* gradients;
};

template <class V, bool Add>
void SumUp(const float* sums, float* gradients) {
  typename V::Register v = V::Transposed(sums);
  if (Add) v = V::Add(v, V::LoadAny(gradients));
  V::StoreAny(gradients, v);
}

template <class V, bool Add>
inline void Flush(Waiting<V>* waiting) {
  SPARSIFY_UNROLL
  for (int i = 0; i < kFlush; i += V::kWidth) {
    SumUp<V, Add>(waiting->sums + i * V::kWidth, waiting->gradients + i);
  }
  waiting->gradients += kFlush;
  waiting->count -= kFlush;
  for (int i = 0; i < waiting->count; ++i) {
    V::Store(waiting->sums + i * V::kWidth, V::Load(waiting->sums + (kFlush + i) * V::kWidth));
  }
}

template <class V, bool Add>
void Finish(Waiting<V>* waiting) {
  for (int i = 0; i < waiting->count; i += V::kWidth) {
    const int left = waiting->count - i < V::kWidth ? waiting->count - i : V::kWidth;
    if (left == V::kWidth) {
      SumUp<V, Add>(waiting->sums + i * V::kWidth, waiting->gradients + i);
      continue;
    }
    for (int j = left; j < V::kWidth; ++j) V::Store(waiting->sums + (i + j) * V::kWidth, V::Zero());
    float last[V::kWidth];
    SumUp<V, false>(waiting->sums + i * V::kWidth, last);
    for (int j = 0; j < left; ++j) {
      waiting->gradients[i + j] = Add ? waiting->gradients[i + j] + last[j] : last[j];
    }
  }
}

template <class V, int G, bool Add, int Count>
void SampleClass(const csr::PanelSegment& segment, size_t first_row, size_t first, uint32_t rows,
                 const char* tile, const float* panel, Waiting<V>* waiting) {
  constexpr int R = G * csr::kGroup / V::kWidth;
  constexpr int64_t kStride = csr::kSpacing[G];
  const uint16_t* offsets = segment.offsets + first;
  const uint32_t* row = segment.rows + first_row;
  for (uint32_t i = 0; i < rows; ++i) {
    const float* line = panel + static_cast<int64_t>(row[i]) * kStride;
    const float* soon = panel + static_cast<int64_t>(row[i + kRowsAhead]) * kStride;
    SPARSIFY_UNROLL
    for (int64_t k = 0; k < kStride; k += csr::kGroup) SPARSIFY_PREFETCH(soon + k);
    typename V::Register d[R];
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) d[r] = V::Load(line + r * V::kWidth);
    float* sums = waiting->sums + waiting->count * V::kWidth;
    SPARSIFY_UNROLL
    for (int n = 0; n < Count; ++n) {
      const float* x = reinterpret_cast<const float*>(tile + size_t{offsets[n]} * (kStride / csr::kGroup));
      typename V::Register sum = V::Mul(d[0], V::Load(x));
      SPARSIFY_UNROLL
      for (int r = 1; r < R; ++r) sum = V::MulAdd(d[r], V::Load(x + r * V::kWidth), sum);
      V::Store(sums + n * V::kWidth, sum);
    }
    offsets += Count;
    waiting->count += Count;
    if (waiting->count >= kFlush) Flush<V, Add>(waiting);
  }
}

template <class V, int G, bool Add>
void SampleSegment(const csr::PanelSegment& segment, const float* tile, const float* panel,
                   float* gradients) {
  using Class =
      void (*)(const csr::PanelSegment&, size_t, size_t, uint32_t, const char*, const float*, Waiting<V>*);
#define SPARSIFY_4(n)                                                                         \
  &SampleClass<V, G, Add, n>, &SampleClass<V, G, Add, n + 1>, &SampleClass<V, G, Add, n + 2>, \
      &SampleClass<V, G, Add, n + 3>
  static constexpr Class kClasses[csr::kMaxCount] = {SPARSIFY_4(1),  SPARSIFY_4(5),  SPARSIFY_4(9),
                                                     SPARSIFY_4(13), SPARSIFY_4(17), SPARSIFY_4(21),
                                                     SPARSIFY_4(25), SPARSIFY_4(29)};
#undef SPARSIFY_4
  Waiting<V> waiting;
  waiting.count = 0;
  waiting.gradients = gradients;
  size_t row = 0, first = 0;
  for (size_t i = 0; i < segment.class_count; ++i) {
    const csr::RowClass& c = segment.classes[i];
    kClasses[c.count - 1](segment, row, first, c.rows, reinterpret_cast<const char*>(tile), panel, &waiting);
    row += c.rows;
    first += size_t{c.rows} * c.count;
  }
  Finish<V, Add>(&waiting);
}

template <class V, int G>
void SampleGroups(const csr::PanelSegment& segment, const float* tile, const float* panel, bool add,
                  float* gradients) {
  if (add) {
    SampleSegment<V, G, true>(segment, tile, panel, gradients);
  } else {
    SampleSegment<V, G, false>(segment, tile, panel, gradients);
  }
}

template <class V>
void AddRows(const float* panel, int64_t rows, int groups, float* sums) {
  const int64_t spacing = csr::kSpacing[groups];
  alignas(64) float partial[V::kWidth * V::kWidth];
  for (int64_t row = 0; row < rows; row += V::kWidth) {
    const int64_t left = rows - row < V::kWidth ? rows - row : V::kWidth;
    for (int64_t i = 0; i < left; ++i) {
      const float* line = panel + (row + i) * spacing;
      typename V::Register sum = V::Load(line);
      for (int64_t k = V::kWidth; k < groups * csr::kGroup; k += V::kWidth)
        sum = V::Add(sum, V::Load(line + k));
      V::Store(partial + i * V::kWidth, sum);
    }
    for (int64_t i = left; i < V::kWidth; ++i) V::Store(partial + i * V::kWidth, V::Zero());
    float found[V::kWidth];
    V::StoreAny(found, V::Transposed(partial));
    for (int64_t i = 0; i < left; ++i) sums[row + i] += found[i];
  }
}

template <class V>
void SampleRows(const csr::PanelSegment& segment, const float* tile, const float* panel, int groups, bool add,
                float* gradients) {
  switch (groups) {
    case 1:
      return SampleGroups<V, 1>(segment, tile, panel, add, gradients);
    case 2:
      return SampleGroups<V, 2>(segment, tile, panel, add, gradients);
    case 3:
      return SampleGroups<V, 3>(segment, tile, panel, add, gradients);
    default:
      return SampleGroups<V, 4>(segment, tile, panel, add, gradients);
  }
}

#endif  // SPARSIFY_KERNELS_TRAIN_SAMPLE_BODY_H_
