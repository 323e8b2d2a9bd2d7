// NEON of 64-bit ARM.
#include <arm_neon.h>
#include <math.h>

#include "../csr/compiler.h"
#include "block.h"

namespace sparsify {
namespace attention {
namespace {

constexpr float kLane[4] = {0, 1, 2, 3};

struct V {
  using Register = float32x4_t;
  static constexpr int kWidth = 4;
  static constexpr int kSums = 16;

  static Register Zero() { return vdupq_n_f32(0.0f); }
  static Register Set(float v) { return vdupq_n_f32(v); }
  static Register Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, Register v) { vst1q_f32(p, v); }
  static Register LoadAny(const float* p) { return vld1q_f32(p); }
  static void StoreAny(float* p, Register v) { vst1q_f32(p, v); }
  static Register Add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register Sub(Register a, Register b) { return vsubq_f32(a, b); }
  static Register Mul(Register a, Register b) { return vmulq_f32(a, b); }
  static Register Div(Register a, Register b) { return vdivq_f32(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static Register Max(Register a, Register b) { return vmaxq_f32(a, b); }
  // For integers n in [-126, 127] where x is not below the bound.
  static Register ScaleUnlessBelow(Register p, Register n, Register x, Register bound) {
    const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    const Register scaled = vmulq_f32(p, vreinterpretq_f32_s32(bits));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(scaled), vcltq_f32(x, bound)));
  }
  static Register IfPositive(Register x, Register v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vcgtq_f32(x, Zero())));
  }
  static Register HideFirst(Register v, int64_t n) {
    const Register limit = Set(n >= kWidth ? static_cast<float>(kWidth) : static_cast<float>(n));
    return vbslq_f32(vcltq_f32(Load(kLane), limit), Set(-HUGE_VALF), v);
  }
};

#include "block_body.h"

}  // namespace

const Block block_neon = {"neon", &Scores<V>, &Exponents<V>, &Weigh<V>, &Rescale<V>, &Finish<V>};

}  // namespace attention
}  // namespace sparsify
