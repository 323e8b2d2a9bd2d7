// AVX2 with FMA.
#include <immintrin.h>
#include <math.h>

#include "../csr/compiler.h"
#include "block.h"

namespace sparsify {
namespace attention {
namespace {

alignas(32) constexpr float kLane[8] = {0, 1, 2, 3, 4, 5, 6, 7};

struct V {
  using Register = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kSums = 8;

  static Register Zero() { return _mm256_setzero_ps(); }
  static Register Set(float v) { return _mm256_set1_ps(v); }
  static Register Load(const float* p) { return _mm256_load_ps(p); }
  static void Store(float* p, Register v) { _mm256_store_ps(p, v); }
  static Register LoadAny(const float* p) { return _mm256_loadu_ps(p); }
  static void StoreAny(float* p, Register v) { _mm256_storeu_ps(p, v); }
  static Register Add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register Sub(Register a, Register b) { return _mm256_sub_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register Div(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  static Register Max(Register a, Register b) { return _mm256_max_ps(a, b); }
  // For integers n in [-126, 127] where x is not below the bound.
  static Register ScaleUnlessBelow(Register p, Register n, Register x, Register bound) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(_mm256_cmp_ps(x, bound, _CMP_LT_OQ), _mm256_mul_ps(p, _mm256_castsi256_ps(bits)));
  }
  static Register IfPositive(Register x, Register v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, Zero(), _CMP_GT_OQ), v);
  }
  static Register HideFirst(Register v, int64_t n) {
    const Register limit = Set(n >= kWidth ? static_cast<float>(kWidth) : static_cast<float>(n));
    const Register hidden = _mm256_cmp_ps(Load(kLane), limit, _CMP_LT_OQ);
    return _mm256_blendv_ps(v, Set(-HUGE_VALF), hidden);
  }
};

#include "block_body.h"

}  // namespace

const Block block_avx2 = {"avx2", &Scores<V>, &Exponents<V>, &Weigh<V>, &Rescale<V>, &Finish<V>};

}  // namespace attention
}  // namespace sparsify
