// The registers of AVX-512. Included inside the anonymous namespace of an instruction set's source.
#ifndef SPARSIFY_KERNELS_CSR_VECTOR_AVX512_H_
#define SPARSIFY_KERNELS_CSR_VECTOR_AVX512_H_

struct V {
  using Register = __m512;
  static constexpr bool kDeep = false;  // see base/tuning.h
  static constexpr int kWidth = 16;
  static constexpr int kAccumulators = 10;
  static constexpr int kSums = 20;  // of a block of outputs
  static constexpr int kBlock = 8;  // its outputs, at most

  static Register Zero() { return _mm512_setzero_ps(); }
  static Register Set(float v) { return _mm512_set1_ps(v); }
  // Four floats in each 128 bits of a register, and the i-th of them in all lanes.
  static Register Quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  static Register Lane(Register quad, int i) {
    return i == 0   ? _mm512_permute_ps(quad, 0x00)
           : i == 1 ? _mm512_permute_ps(quad, 0x55)
           : i == 2 ? _mm512_permute_ps(quad, 0xaa)
                    : _mm512_permute_ps(quad, 0xff);
  }
  static Register Load(const float* p) { return _mm512_load_ps(p); }
#if defined(__GNUC__)
  static void Hold(Register* v) { __asm__("" : "+v"(*v)); }
#else
  static void Hold(Register*) {}
#endif
  static Register LoadAny(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Register v) { _mm512_store_ps(p, v); }
  using Mask = __mmask16;
  static Mask First(int64_t n) { return static_cast<Mask>(n >= 16 ? 0xffff : (1u << n) - 1); }
  static Register LoadMasked(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static Mask Bits(uint32_t bits) { return static_cast<Mask>(bits); }
  static Register LoadInto(Register v, const float* p, Mask m) { return _mm512_mask_loadu_ps(v, m, p); }
  static void StoreMasked(float* p, Mask m, Register v) { _mm512_mask_storeu_ps(p, m, v); }
  static void StoreAny(float* p, Register v) { _mm512_storeu_ps(p, v); }
  static Register LoadFirst(const float* p, int64_t n) { return LoadMasked(p, First(n)); }
  static void StoreFirst(float* p, int64_t n, Register v) { StoreMasked(p, First(n), v); }
  // v where the mask has a lane, else zero.
  static Register Keep(Mask m, Register v) { return _mm512_maskz_mov_ps(m, v); }
  static Register EveryOther(Register low, Register high) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_ps(low, even, high);
  }
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
};

#endif  // SPARSIFY_KERNELS_CSR_VECTOR_AVX512_H_
