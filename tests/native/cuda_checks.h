// Comparisons that the programs for the operators on CUDA share.
#ifndef SPARSIFY_TESTS_NATIVE_CUDA_CHECKS_H_
#define SPARSIFY_TESTS_NATIVE_CUDA_CHECKS_H_

#include <cmath>
#include <string>
#include <vector>

#include "cuda_nodes.h"

namespace sparsify_tests {

// Comparisons that held.
inline int64_t& Runs() {
  static int64_t runs = 0;
  return runs;
}

inline void* const kStream = reinterpret_cast<void*>(uintptr_t{0x57});

inline void Expect(bool holds, const std::string& what) {
  if (!holds) Die(what);
}

inline int64_t FirstWrong(const float* got, const Expected& want) {
  for (size_t i = 0; i < want.values.size(); ++i) {
    if (!(std::fabs(got[i] - want.values[i]) <= want.bounds[i])) return static_cast<int64_t>(i);
  }
  return -1;
}

inline void Compare(const NodeKernel& kernel, const Expected& want, const std::string& label) {
  int64_t size = 1;
  for (const int64_t dim : kernel.shape) size *= dim;
  Expect(size == static_cast<int64_t>(want.values.size()), label + ": wrong output shape");
  const int64_t wrong = FirstWrong(kernel.y(), want);
  if (wrong >= 0) {
    Die(label + ": output " + std::to_string(wrong) + " is " + std::to_string(kernel.y()[wrong]) +
        " instead of " + std::to_string(want.values[static_cast<size_t>(wrong)]));
  }
  Expect(Stub::The().GuardsIntact(), label + ": something was written beside an array");
  ++Runs();
}

// What the stored values are, rounded to their type.
inline std::vector<float> Stored(const PackedWeight& packed) {
  std::vector<float> weight(static_cast<size_t>(packed.rows * packed.columns));
  if (sparsify_unpack(packed.layout.c_str(), packed.tensors.data(), packed.count(), packed.rows,
                      packed.columns, weight.data()) != 0) {
    Die(sparsify_last_error());
  }
  return weight;
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_CUDA_CHECKS_H_
