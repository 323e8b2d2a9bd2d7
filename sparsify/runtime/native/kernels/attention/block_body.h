// The steps of attention, written once for all vector widths. Included inside the anonymous namespace of an
// instruction set's source; V wraps its registers.
//
// Both products keep K rows of C registers of sums: each step loads C registers of the panel and broadcasts K
// numbers for K * C FMAs, 8 loads for 16 at 64 queries of AVX-512, so that the FMAs are the ceiling.
#ifndef SPARSIFY_KERNELS_ATTENTION_BLOCK_BODY_H_
#define SPARSIFY_KERNELS_ATTENTION_BLOCK_BODY_H_

template <class V, int G>
struct Shape {
  static constexpr int kRegisters = G * csr::kGroup / V::kWidth;
  static constexpr int kChunk = kRegisters < V::kSums / 4 ? kRegisters : V::kSums / 4;
  static constexpr int kRows = V::kSums / kChunk < 8 ? V::kSums / kChunk : 8;
  static_assert(kRegisters % kChunk == 0, "chunks divide the registers of a row");
};

// exp(x) for x <= 0: exactly 1 at 0, 0 below -87, NaN for NaN. 2^n * e^r with |r| <= ln(2) / 2, e^r by a
// minimax fit. n * ln(2) is off by 3e-8 of itself, which is at most 2e-8 of 1 in the result. Adding and
// taking away 1.5 * 2^23 rounds to integers.
template <class V>
inline typename V::Register Exp(typename V::Register x) {
  using T = typename V::Register;
  const T magic = V::Set(12582912.0f);
  const T n = V::Sub(V::MulAdd(x, V::Set(1.44269504f), magic), magic);
  const T r = V::MulAdd(n, V::Set(-0.69314718f), x);
  T p = V::MulAdd(r, V::Set(0.008290272206068039f), V::Set(0.04189816117286682f));
  p = V::MulAdd(r, p, V::Set(0.1666763871908188f));
  p = V::MulAdd(r, p, V::Set(0.4999914765357971f));
  p = V::MulAdd(r, p, V::Set(0.9999997019767761f));
  p = V::MulAdd(r, p, V::Set(1.0f));
  return V::ScaleUnlessBelow(p, n, x, V::Set(-87.0f));
}

template <class V, int G, int K, int C>
inline void ScoreRows(const float* queries, const float* keys, int64_t stride, int64_t size,
                      const ScoreTerms& terms, int64_t key, int column, float* scores, float* most) {
  constexpr int64_t kSpacing = csr::kSpacing[G];
  typename V::Register sum[K][C];
  SPARSIFY_UNROLL
  for (int k = 0; k < K; ++k) {
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) sum[k][c] = V::Zero();
  }
  if (column == 0) {
    for (int64_t i = 0; i < size; i += csr::kGroup) {
      SPARSIFY_UNROLL
      for (int k = K; k < 2 * K; ++k) SPARSIFY_PREFETCH(keys + k * stride + i);  // perhaps beyond the end
    }
  }
  const float* q = queries + column;
  for (int64_t i = 0; i < size; ++i, q += kSpacing) {
    typename V::Register x[C];
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) x[c] = V::Load(q + c * V::kWidth);
    SPARSIFY_UNROLL
    for (int k = 0; k < K; ++k) {
      const typename V::Register w = V::Set(keys[k * stride + i]);
      SPARSIFY_UNROLL
      for (int c = 0; c < C; ++c) sum[k][c] = V::MulAdd(w, x[c], sum[k][c]);
    }
  }
  const typename V::Register scale = V::Set(terms.scale);
  float* target = scores + key * kSpacing + column;
  typename V::Register top[C];
  SPARSIFY_UNROLL
  for (int c = 0; c < C; ++c) top[c] = V::Load(most + column + c * V::kWidth);
  SPARSIFY_UNROLL
  for (int k = 0; k < K; ++k) {
    const typename V::Register bias = terms.key_bias != nullptr ? V::Set(terms.key_bias[key + k]) : V::Zero();
    const int64_t hidden = key + k - terms.diagonal;  // lanes
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) {
      const int at = c * V::kWidth;
      const typename V::Register add = terms.panel_bias ? V::Load(target + k * kSpacing + at) : bias;
      typename V::Register s = V::MulAdd(sum[k][c], scale, add);
      if (hidden > column + at) s = V::HideFirst(s, hidden - column - at);
      V::Store(target + k * kSpacing + at, s);
      top[c] = V::Max(s, top[c]);
    }
  }
  SPARSIFY_UNROLL
  for (int c = 0; c < C; ++c) V::Store(most + column + c * V::kWidth, top[c]);
}

// Fewer than K keys.
template <class V, int G, int K>
inline void ScoreRest(const float* queries, const Rows& keys, const ScoreTerms& terms, int64_t key,
                      float* scores, float* most) {
  if constexpr (K > 1) {
    if (keys.count - key < K) return ScoreRest<V, G, K - 1>(queries, keys, terms, key, scores, most);
  }
  constexpr int C = Shape<V, G>::kChunk;
  for (int c = 0; c < Shape<V, G>::kRegisters; c += C) {
    ScoreRows<V, G, K, C>(queries, keys.data + key * keys.stride, keys.stride, keys.size, terms, key,
                          c * V::kWidth, scores, most);
  }
}

template <class V, int G>
void ScoresOf(const float* queries, const Rows& keys, const ScoreTerms& terms, float* scores, float* most) {
  constexpr int K = Shape<V, G>::kRows, C = Shape<V, G>::kChunk;
  int64_t key = 0;
  for (; key + K <= keys.count; key += K) {
    for (int c = 0; c < Shape<V, G>::kRegisters; c += C) {
      ScoreRows<V, G, K, C>(queries, keys.data + key * keys.stride, keys.stride, keys.size, terms, key,
                            c * V::kWidth, scores, most);
    }
  }
  if (key < keys.count) ScoreRest<V, G, K - 1>(queries, keys, terms, key, scores, most);
}

template <class V, int G, int K, int C>
inline void WeighRows(const float* weights, const float* values, int64_t stride, int64_t count, float* out) {
  constexpr int64_t kSpacing = csr::kSpacing[G];
  typename V::Register sum[K][C];
  SPARSIFY_UNROLL
  for (int k = 0; k < K; ++k) {
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) sum[k][c] = V::Load(out + k * kSpacing + c * V::kWidth);
  }
  for (int64_t key = 0; key < count; ++key, weights += kSpacing, values += stride) {
    typename V::Register x[C];
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) x[c] = V::Load(weights + c * V::kWidth);
    SPARSIFY_UNROLL
    for (int k = 0; k < K; ++k) {
      const typename V::Register w = V::Set(values[k]);
      SPARSIFY_UNROLL
      for (int c = 0; c < C; ++c) sum[k][c] = V::MulAdd(w, x[c], sum[k][c]);
    }
  }
  SPARSIFY_UNROLL
  for (int k = 0; k < K; ++k) {
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) V::Store(out + k * kSpacing + c * V::kWidth, sum[k][c]);
  }
}

template <class V, int G, int K>
inline void WeighAcross(const float* weights, const Rows& values, int64_t row, float* out) {
  constexpr int C = Shape<V, G>::kChunk;
  for (int c = 0; c < Shape<V, G>::kRegisters; c += C) {
    WeighRows<V, G, K, C>(weights + c * V::kWidth, values.data + row, values.stride, values.count,
                          out + row * csr::kSpacing[G] + c * V::kWidth);
  }
}

template <class V, int G, int K>
inline void WeighRest(const float* weights, const Rows& values, int64_t row, float* out) {
  if constexpr (K > 1) {
    if (values.size - row < K) return WeighRest<V, G, K - 1>(weights, values, row, out);
  }
  WeighAcross<V, G, K>(weights, values, row, out);
}

template <class V, int G>
void WeighOf(const float* weights, const Rows& values, float* out) {
  constexpr int K = Shape<V, G>::kRows;
  int64_t row = 0;
  for (; row + K <= values.size; row += K) WeighAcross<V, G, K>(weights, values, row, out);
  if (row < values.size) WeighRest<V, G, K - 1>(weights, values, row, out);
}

// Rows of values lie so far apart that few of them fit into the first-level cache side by side, and they are
// read size / K times: they move to one place while the exponentials keep the processor busy.
constexpr int64_t kRowsAhead = 8;

template <class V>
inline void CopyRow(const Rows& values, int64_t row, float* copy) {
  const float* source = values.data + row * values.stride;
  float* target = copy + row * values.size;
  int64_t i = 0;
  for (; i + V::kWidth <= values.size; i += V::kWidth) V::StoreAny(target + i, V::LoadAny(source + i));
  for (; i < values.size; ++i) target[i] = source[i];
  const float* ahead = source + kRowsAhead * values.stride;  // perhaps beyond the end, which does no harm
  for (i = 0; i < values.size; i += csr::kGroup) SPARSIFY_PREFETCH(ahead + i);
}

template <class V, int G>
void ExponentsOf(float* scores, const float* most, float* sums, const Rows& values, float* copy) {
  constexpr int R = Shape<V, G>::kRegisters, C = R < 4 ? R : 4;
  for (int column = 0; column < R * V::kWidth; column += C * V::kWidth) {
    typename V::Register top[C], sum[C];
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) {
      top[c] = V::Load(most + column + c * V::kWidth);
      sum[c] = V::Load(sums + column + c * V::kWidth);
    }
    float* at = scores + column;
    for (int64_t key = 0; key < values.count; ++key, at += csr::kSpacing[G]) {
      if (column == 0) CopyRow<V>(values, key, copy);
      SPARSIFY_UNROLL
      for (int c = 0; c < C; ++c) {
        const typename V::Register p = Exp<V>(V::Sub(V::Load(at + c * V::kWidth), top[c]));
        V::Store(at + c * V::kWidth, p);
        sum[c] = V::Add(sum[c], p);
      }
    }
    SPARSIFY_UNROLL
    for (int c = 0; c < C; ++c) V::Store(sums + column + c * V::kWidth, sum[c]);
  }
}

// Calls function<V, groups>(arguments...).
#define SPARSIFY_BY_GROUPS(groups, function, ...) \
  switch (groups) {                               \
    case 1:                                       \
      return function<V, 1>(__VA_ARGS__);         \
    case 2:                                       \
      return function<V, 2>(__VA_ARGS__);         \
    case 3:                                       \
      return function<V, 3>(__VA_ARGS__);         \
    default:                                      \
      return function<V, 4>(__VA_ARGS__);         \
  }

template <class V>
void Scores(const float* queries, const Rows& keys, const ScoreTerms& terms, float* scores, float* most,
            int groups) {
  SPARSIFY_BY_GROUPS(groups, ScoresOf, queries, keys, terms, scores, most)
}

template <class V>
void Exponents(float* scores, const float* most, float* sums, const Rows& values, float* copy, int groups) {
  SPARSIFY_BY_GROUPS(groups, ExponentsOf, scores, most, sums, values, copy)
}

template <class V>
void Weigh(const float* weights, const Rows& values, float* out, int groups) {
  SPARSIFY_BY_GROUPS(groups, WeighOf, weights, values, out)
}

template <class V>
void Rescale(const float* before, const float* most, float* sums, float* out, int64_t rows, int groups) {
  for (int column = 0; column < groups * csr::kGroup; column += V::kWidth) {
    const typename V::Register factor = Exp<V>(V::Sub(V::Load(before + column), V::Load(most + column)));
    V::Store(sums + column, V::Mul(V::Load(sums + column), factor));
    for (int64_t row = 0; row < rows; ++row) {
      float* at = out + row * csr::kSpacing[groups] + column;
      V::Store(at, V::Mul(V::Load(at), factor));
    }
  }
}

template <class V>
void Finish(const float* sums, bool guard, float* out, int64_t rows, int groups) {
  for (int column = 0; column < groups * csr::kGroup; column += V::kWidth) {
    const typename V::Register sum = V::Load(sums + column);
    const typename V::Register factor = V::Div(V::Set(1.0f), sum);
    for (int64_t row = 0; row < rows; ++row) {
      float* at = out + row * csr::kSpacing[groups] + column;
      const typename V::Register v = V::Mul(V::Load(at), factor);
      V::Store(at, guard ? V::IfPositive(sum, v) : v);
    }
  }
}

#endif  // SPARSIFY_KERNELS_ATTENTION_BLOCK_BODY_H_
