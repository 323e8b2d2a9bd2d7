// AVX-512 (F).
#include <immintrin.h>
#include <math.h>

#include "../csr/compiler.h"
#include "block.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a variable that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace sparsify {
namespace attention {
namespace {

struct V {
  using Register = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kSums = 16;

  static Register Zero() { return _mm512_setzero_ps(); }
  static Register Set(float v) { return _mm512_set1_ps(v); }
  static Register Load(const float* p) { return _mm512_load_ps(p); }
  static void Store(float* p, Register v) { _mm512_store_ps(p, v); }
  static Register LoadAny(const float* p) { return _mm512_loadu_ps(p); }
  static void StoreAny(float* p, Register v) { _mm512_storeu_ps(p, v); }
  static Register Add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register Sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register Div(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register Max(Register a, Register b) { return _mm512_max_ps(a, b); }
  // p * 2^n, or 0 where x < bound.
  static Register ScaleUnlessBelow(Register p, Register n, Register x, Register bound) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), p, n);
  }
  // v, or 0 where x > 0 is not true.
  static Register IfPositive(Register x, Register v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, Zero(), _CMP_GT_OQ), v);
  }
  // v with -infinity in the first n lanes, n > 0.
  static Register HideFirst(Register v, int64_t n) {
    const __mmask16 first = static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1);
    return _mm512_mask_mov_ps(v, first, Set(-HUGE_VALF));
  }
};

#include "block_body.h"

}  // namespace

const Block block_avx512 = {"avx512", &Scores<V>, &Exponents<V>, &Weigh<V>, &Rescale<V>, &Finish<V>};

}  // namespace attention
}  // namespace sparsify
