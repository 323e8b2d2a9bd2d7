// Weights, inputs and kernels for the native test programs, over nothing but the C ABI.
#ifndef SPARSIFY_TESTS_NATIVE_WEIGHTS_H_
#define SPARSIFY_TESTS_NATIVE_WEIGHTS_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "capi/capi.h"

namespace sparsify_tests {

constexpr int32_t kValueTypes = 3;  // float32, bfloat16, float16

inline const char* const kLayouts[] = {"csr", "blocks-2", "blocks-4", "blocks-8", "blocks-16"};

[[noreturn]] inline void Die(const std::string& message) {
  std::fprintf(stderr, "FAILED: %s\n", message.c_str());
  std::exit(1);
}

// The same numbers with every compiler: the standard fixes this generator, but not the distributions.
class Random {
 public:
  explicit Random(uint32_t seed) : bits_(seed) {}
  uint32_t Bits() { return bits_(); }
  // In [0, bound).
  int64_t Below(int64_t bound) { return static_cast<int64_t>(bits_() % static_cast<uint64_t>(bound)); }
  double Unit() { return bits_() / 4294967296.0; }
  // Of variance 1, in about [-3.5, 3.5].
  float Normal() {
    double sum = 0.0;
    for (int i = 0; i < 4; ++i) sum += Unit() - 0.5;
    return static_cast<float>(sum * 1.7320508);
  }
  std::vector<float> Normals(int64_t size) {
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = Normal();
    return values;
  }

 private:
  std::mt19937 bits_;
};

inline std::vector<float> SparseWeight(Random* random, int64_t rows, int64_t columns, double density) {
  std::vector<float> weight(static_cast<size_t>(rows * columns), 0.0f);
  for (float& value : weight) {
    if (random->Unit() < density) value = random->Normal();
  }
  return weight;
}

// The packed tensors of a weight, each copied into memory of exactly its size.
struct PackedWeight {
  std::string layout;
  int64_t rows = 0, columns = 0;
  std::vector<std::vector<unsigned char>> memory;
  std::vector<sparsify_tensor> tensors;

  PackedWeight() = default;
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;
  PackedWeight(PackedWeight&&) = default;
  PackedWeight& operator=(PackedWeight&&) = default;
  int32_t count() const { return static_cast<int32_t>(tensors.size()); }
};

inline int64_t ElementBytes(int32_t type) { return type == 4 ? 2 : type == 2 ? 1 : 4; }

inline PackedWeight Pack(const char* layout, const std::vector<float>& weight, int64_t rows, int64_t columns,
                         int32_t value_type = 0) {
  sparsify_packed* packed = nullptr;
  if (sparsify_pack(layout, weight.data(), rows, columns, value_type, &packed) != 0)
    Die(sparsify_last_error());
  PackedWeight result;
  result.layout = layout;
  result.rows = rows;
  result.columns = columns;
  for (int32_t i = 0; i < sparsify_packed_count(packed); ++i) {
    sparsify_tensor tensor = sparsify_packed_tensor(packed, i);
    const auto* bytes = static_cast<const unsigned char*>(tensor.data);
    result.memory.emplace_back(bytes, bytes + tensor.size * ElementBytes(tensor.type));
    tensor.data = result.memory.back().data();
    result.tensors.push_back(tensor);
  }
  sparsify_packed_free(packed);
  return result;
}

inline std::vector<std::string> SupportedKernels() {
  std::vector<std::string> names;
  for (int32_t i = 0; i < sparsify_kernel_count(); ++i) {
    if (sparsify_kernel_supported(i) != 0) names.push_back(sparsify_kernel_name(i));
  }
  return names;
}

}  // namespace sparsify_tests

#endif  // SPARSIFY_TESTS_NATIVE_WEIGHTS_H_
