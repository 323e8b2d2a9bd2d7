// The number types that weights are stored in; all are computed with as float32.
#ifndef SPARSIFY_KERNELS_CSR_VALUE_TYPE_H_
#define SPARSIFY_KERNELS_CSR_VALUE_TYPE_H_

#include <cstdint>

namespace sparsify {
namespace csr {

enum class ValueType : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Weights as they stand in a file; values.h reads them.
struct Values {
  const void* data;
  ValueType type;
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_VALUE_TYPE_H_
