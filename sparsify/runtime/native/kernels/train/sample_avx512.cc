// AVX-512: sixteen partial sums of sixteen lanes are summed up by four rounds of blend, shuffle and add.
#include <immintrin.h>
#include <string.h>

#include "../csr/compiler.h"
#include "sample.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a variable that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace sparsify {
namespace train {
namespace {

struct V {
  using Register = __m512;
  static constexpr int kWidth = 16;

  static Register Zero() { return _mm512_setzero_ps(); }
  static Register Load(const float* p) { return _mm512_load_ps(p); }
  static Register LoadAny(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Register v) { _mm512_store_ps(p, v); }
  static void StoreAny(float* p, Register v) { _mm512_storeu_ps(p, v); }
  static Register Add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }

  // Lane i of the result is the sum of the lanes of register i. Each round halves the number of registers:
  // the halves of a that are added up fill the places where b's were not taken.
  static Register Transposed(const float* p) {
    Register eight[8], four[4];
    SPARSIFY_UNROLL
    for (int i = 0; i < 8; ++i) eight[i] = Halves(Load(p + i * 16), Load(p + (i + 8) * 16));
    SPARSIFY_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = Quarters(eight[i], eight[i + 4]);
    const Register low = Pairs(four[0], four[2]), high = Pairs(four[1], four[3]);
    const Register mixed = _mm512_mask_blend_ps(0xaaaa, low, high);
    return _mm512_add_ps(mixed, Swapped(low, high));
  }

 private:
  // [a.low + a.high, b.low + b.high], of eight lanes each.
  static Register Halves(Register a, Register b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
  }
  // The same inside each half.
  static Register Quarters(Register a, Register b) {
    const Register mixed = _mm512_mask_blend_ps(0xf0f0, a, b);
    const Register rest = _mm512_mask_blend_ps(0xf0f0, b, a);
    return _mm512_add_ps(mixed, _mm512_shuffle_f32x4(rest, rest, 0xb1));
  }
  // The same inside each quarter.
  static Register Pairs(Register a, Register b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
  }
  static Register Swapped(Register a, Register b) {
    const Register rest = _mm512_mask_blend_ps(0xaaaa, b, a);
    return _mm512_permute_ps(rest, 0xb1);
  }
};

#include "sample_body.h"

}  // namespace

const Sampler sampler_avx512 = {"avx512", &SampleRows<V>, &AddRows<V>};

}  // namespace train
}  // namespace sparsify
