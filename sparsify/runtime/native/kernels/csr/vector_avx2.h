// The registers of AVX2. Included inside the anonymous namespace of an instruction set's source.
#ifndef SPARSIFY_KERNELS_CSR_VECTOR_AVX2_H_
#define SPARSIFY_KERNELS_CSR_VECTOR_AVX2_H_

alignas(32) constexpr int32_t kBit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
alignas(32) constexpr int32_t kFirst[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct V {
  using Register = __m256;
  static constexpr bool kDeep = false;  // see base/tuning.h
  static constexpr int kWidth = 8;
  static constexpr int kAccumulators = 8;
  static constexpr int kSums = 8;   // of a block of outputs
  static constexpr int kBlock = 4;  // its outputs, at most

  static Register Zero() { return _mm256_setzero_ps(); }
  static Register Set(float v) { return _mm256_set1_ps(v); }
  // Four floats in each 128 bits of a register, and the i-th of them in all lanes.
  static Register Quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  static Register Lane(Register quad, int i) {
    return i == 0   ? _mm256_permute_ps(quad, 0x00)
           : i == 1 ? _mm256_permute_ps(quad, 0x55)
           : i == 2 ? _mm256_permute_ps(quad, 0xaa)
                    : _mm256_permute_ps(quad, 0xff);
  }
  static Register Load(const float* p) { return _mm256_load_ps(p); }
  static void Hold(Register*) {}
  static Register LoadAny(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Register v) { _mm256_store_ps(p, v); }
  using Mask = __m256i;
  static Mask First(int64_t n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 8 - (n < 8 ? n : 8)));
  }
  static Mask Bits(uint32_t bits) {
    const __m256i bit = _mm256_load_si256(reinterpret_cast<const __m256i*>(kBit));
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit), bit);
  }
  static Register LoadMasked(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static Register LoadInto(Register v, const float* p, Mask m) { return _mm256_or_ps(v, LoadMasked(p, m)); }
  static void StoreMasked(float* p, Mask m, Register v) { _mm256_maskstore_ps(p, m, v); }
  static void StoreAny(float* p, Register v) { _mm256_storeu_ps(p, v); }
  static Register LoadFirst(const float* p, int64_t n) {
    return n >= 8 ? LoadAny(p) : LoadMasked(p, First(n));
  }
  static void StoreFirst(float* p, int64_t n, Register v) {
    if (n >= 8) {
      StoreAny(p, v);
    } else {
      StoreMasked(p, First(n), v);
    }
  }
  // v where the mask has a lane, else zero.
  static Register Keep(Mask m, Register v) { return _mm256_and_ps(_mm256_castsi256_ps(m), v); }
  static Register EveryOther(Register low, Register high) {
    const __m256 pairs = _mm256_shuffle_ps(low, high, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
  }
  static Register Add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register Div(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  static Register NegMulAdd(Register a, Register b, Register c) { return _mm256_fnmadd_ps(a, b, c); }
  static Register Min(Register a, Register b) { return _mm256_min_ps(a, b); }
  static Register Max(Register a, Register b) { return _mm256_max_ps(a, b); }
  static Register Abs(Register a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Register Round(Register a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // a * 2^n for integers n in [-126, 127].
  static Register Scale(Register a, Register n) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
  }
};

#endif  // SPARSIFY_KERNELS_CSR_VECTOR_AVX2_H_
