// Blocks of R outputs on few rows of X, in place, for 16-bit columns. Included inside the anonymous namespace
// of isa_avx512.cc.
//
// A register holds the values of 16 / R entries of one block row; each entry's input is broadcast to its R
// lanes, by masked broadcasts that merge. Nothing but values and columns is read: bytes are the ceiling at
// one row of X, and values are asked for ahead, as prefetchers stop at every page. With more rows the
// broadcasts are, 16 / R of them a row for 16 weights.
#ifndef SPARSIFY_KERNELS_CSR_AVX512_BLOCKS_H_
#define SPARSIFY_KERNELS_CSR_AVX512_BLOCKS_H_

// The inputs of `count` entries, each in the R lanes of its outputs; more entries repeat the last.
template <int R>
__m512 Spread(const float* x, const uint16_t* columns, int64_t count) {
  __m512 spread = _mm512_set1_ps(x[columns[0]]);
  SPARSIFY_UNROLL
  for (int e = 1; e < kLanes / R; ++e) {
    const int64_t at = e < count ? e : count - 1;
    const __mmask16 lanes = static_cast<__mmask16>(((1 << R) - 1) << (e * R));
    spread = _mm512_mask_broadcastss_ps(spread, lanes, _mm_load_ss(x + columns[at]));
  }
  return spread;
}

template <ValueType T>
constexpr int64_t kBytes = T == ValueType::kFloat32 ? 4 : 2;  // of a stored value

// The first lanes of sixteen stored values; nothing is read of the others.
template <ValueType T>
__m512 Stored(const void* values, int64_t at, __mmask16 lanes) {
  if (T == ValueType::kFloat32) return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(values) + at);
  const __m256i halves = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(values) + at);
  if (T == ValueType::kFloat16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Sums over the entries of a register: R lanes are left.
template <int R>
__m512 Fold(__m512 sum) {
  if (R >= 16) return sum;
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum), 1));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), high);
  if (R == 8) return _mm512_castps256_ps512(eight);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  if (R == 2) four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm512_castps128_ps512(four);
}

template <int R, int Rows, ValueType T>
void BlockRow(const PackedRows& matrix, const RowMajor& operand, int64_t line, const Epilogue& epilogue) {
  constexpr int E = kLanes / R, S = Sums<Rows>::kSets;
  __m512 sum[S][Rows];
  SPARSIFY_UNROLL
  for (int s = 0; s < S; ++s) {
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) sum[s][b] = V::Zero();
  }
  int64_t i = matrix.pointers[line];
  const int64_t end = matrix.pointers[line + 1];
  for (; i + S * E <= end; i += S * E) {
    SPARSIFY_UNROLL
    for (int s = 0; s < S; ++s) {
      const int64_t at = R * (i + s * E);
      SPARSIFY_PREFETCH(static_cast<const char*>(matrix.values.data) + (at + kValuesAhead) * kBytes<T>);
      const __m512 w = Stored<T>(matrix.values.data, at, 0xffff);
      SPARSIFY_UNROLL
      for (int b = 0; b < Rows; ++b) {
        const __m512 x = Spread<R>(operand.x + b * operand.x_stride, matrix.narrow + i + s * E, E);
        sum[s][b] = _mm512_fmadd_ps(w, x, sum[s][b]);
      }
    }
  }
  for (; i < end; i += E) {
    const int64_t count = end - i < E ? end - i : E;
    const __mmask16 lanes = static_cast<__mmask16>((1u << (count * R)) - 1);
    const __m512 w = Stored<T>(matrix.values.data, R * i, lanes);
    SPARSIFY_UNROLL
    for (int b = 0; b < Rows; ++b) {
      const __m512 x = Spread<R>(operand.x + b * operand.x_stride, matrix.narrow + i, count);
      sum[0][b] = _mm512_mask3_fmadd_ps(w, x, sum[0][b], lanes);
    }
  }
  SPARSIFY_UNROLL
  for (int b = 0; b < Rows; ++b) {
    SPARSIFY_UNROLL
    for (int s = 1; s < S; ++s) sum[0][b] = V::Add(sum[0][b], sum[s][b]);
    sum[0][b] = Fold<R>(sum[0][b]);
  }
  const int64_t first = line * R;
  StoreLanesBy(sum[0], operand, first, first + R < matrix.rows ? first + R : matrix.rows, epilogue);
}

template <int R, int Rows, ValueType T>
void BlockRowsFor(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
                  const Epilogue& epilogue) {
  for (int64_t line = first; line < last; ++line) BlockRow<R, Rows, T>(matrix, operand, line, epilogue);
}

template <int R, ValueType T>
void BlockRowsIn(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
                 const Epilogue& epilogue) {
  using Function = void (*)(const PackedRows&, const RowMajor&, int64_t, int64_t, const Epilogue&);
  static constexpr Function kFunctions[] = {&BlockRowsFor<R, 1, T>, &BlockRowsFor<R, 2, T>,
                                            &BlockRowsFor<R, 3, T>, &BlockRowsFor<R, 4, T>,
                                            &BlockRowsFor<R, 5, T>, &BlockRowsFor<R, 6, T>};
  kFunctions[operand.rows - 1](matrix, operand, first, last, epilogue);
}

template <int R>
void BlockRowsOf(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
                 const Epilogue& epilogue) {
  switch (matrix.values.type) {
    case ValueType::kBfloat16:
      return BlockRowsIn<R, ValueType::kBfloat16>(matrix, operand, first, last, epilogue);
    case ValueType::kFloat16:
      return BlockRowsIn<R, ValueType::kFloat16>(matrix, operand, first, last, epilogue);
    default:
      return BlockRowsIn<R, ValueType::kFloat32>(matrix, operand, first, last, epilogue);
  }
}

void BlockRows(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
               const Epilogue& epilogue) {
  switch (matrix.block_rows) {
    case 2:
      return BlockRowsOf<2>(matrix, operand, first, last, epilogue);
    case 4:
      return BlockRowsOf<4>(matrix, operand, first, last, epilogue);
    case 8:
      return BlockRowsOf<8>(matrix, operand, first, last, epilogue);
    default:
      return BlockRowsOf<16>(matrix, operand, first, last, epilogue);
  }
}

#endif  // SPARSIFY_KERNELS_CSR_AVX512_BLOCKS_H_
