// Plain C++: registers of one float, which a compiler may gather into those of the target's baseline.
#include <math.h>

#include "../csr/compiler.h"
#include "block.h"

namespace sparsify {
namespace attention {
namespace {

struct V {
  using Register = float;
  static constexpr int kWidth = 1;
  static constexpr int kSums = 16;

  static Register Zero() { return 0.0f; }
  static Register Set(float v) { return v; }
  static Register Load(const float* p) { return *p; }
  static void Store(float* p, Register v) { *p = v; }
  static Register LoadAny(const float* p) { return *p; }
  static void StoreAny(float* p, Register v) { *p = v; }
  static Register Add(Register a, Register b) { return a + b; }
  static Register Sub(Register a, Register b) { return a - b; }
  static Register Mul(Register a, Register b) { return a * b; }
  static Register Div(Register a, Register b) { return a / b; }
  static Register MulAdd(Register a, Register b, Register c) { return a * b + c; }
  static Register Max(Register a, Register b) { return a > b ? a : b; }
  static Register ScaleUnlessBelow(Register p, Register n, Register x, Register bound) {
    if (x < bound) return 0.0f;
    return x >= bound ? ldexpf(p, static_cast<int>(n)) : p;
  }
  static Register IfPositive(Register x, Register v) { return x > 0.0f ? v : 0.0f; }
  static Register HideFirst(Register, int64_t) { return -HUGE_VALF; }
};

#include "block_body.h"

}  // namespace

const Block block_scalar = {"scalar", &Scores<V>, &Exponents<V>, &Weigh<V>, &Rescale<V>, &Finish<V>};

}  // namespace attention
}  // namespace sparsify
