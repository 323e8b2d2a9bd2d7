// AVX2 with FMA: eight partial sums of eight lanes are summed up by horizontal additions.
#include <immintrin.h>
#include <string.h>

#include "../csr/compiler.h"
#include "sample.h"

namespace sparsify {
namespace train {
namespace {

struct V {
  using Register = __m256;
  static constexpr int kWidth = 8;

  static Register Zero() { return _mm256_setzero_ps(); }
  static Register Load(const float* p) { return _mm256_load_ps(p); }
  static Register LoadAny(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Register v) { _mm256_store_ps(p, v); }
  static void StoreAny(float* p, Register v) { _mm256_storeu_ps(p, v); }
  static Register Add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register Mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }

  // Lane i of the result is the sum of the lanes of register i.
  static Register Transposed(const float* p) {
    const Register a = Four(p), b = Four(p + 4 * 8);
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }

 private:
  // Sums of each half of four registers.
  static Register Four(const float* p) {
    const Register ab = _mm256_hadd_ps(Load(p), Load(p + 8));
    const Register cd = _mm256_hadd_ps(Load(p + 16), Load(p + 24));
    return _mm256_hadd_ps(ab, cd);
  }
};

#include "sample_body.h"

}  // namespace

const Sampler sampler_avx2 = {"avx2", &SampleRows<V>, &AddRows<V>};

}  // namespace train
}  // namespace sparsify
