// The packed form of a weight in the "csr" layout, as it stands in a file. See docs/design/csr-layout.md.
//
//   0  header   int32 [8]         magic, version, rows, columns, non-zeros, bytes of a column index, 0, 0
//   1  pointers int32 [rows + 1]  first non-zero of each row
//   2  columns  uint16 or int32   ascending inside a row; uint16 when columns <= 65536
//   3  values   float32           none of them zero
//
// Columns and values hold one element of zero when there is no non-zero, since empty initializers are
// mishandled by some tools. A convolution is the matrix [out, in * kh * kw].
#ifndef SPARSIFY_KERNELS_CSR_PACKED_H_
#define SPARSIFY_KERNELS_CSR_PACKED_H_

#include <cstdint>
#include <string>
#include <vector>

#include "../api.h"

namespace sparsify {
namespace csr {

constexpr int64_t kPackedTensors = 4;

// A checked packed weight; refers to the packed tensors.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t nonzeros = 0;
  const int32_t* pointers = nullptr;
  const uint16_t* narrow = nullptr;  // one of these two is null
  const int32_t* wide = nullptr;
  const float* values = nullptr;

  int64_t Column(int64_t i) const { return narrow != nullptr ? narrow[i] : wide[i]; }
};

struct Packed {
  std::vector<int32_t> header, pointers, wide;
  std::vector<uint16_t> narrow;
  std::vector<float> values;

  PackedTensor Tensor(int64_t index) const;
};

// All return false and set *error on failure.
bool Pack(const float* weight, int64_t rows, int64_t columns, Packed* packed, std::string* error);
bool Parse(const PackedTensor* tensors, size_t count, int64_t rows, int64_t columns, Matrix* matrix,
           std::string* error);
void Unpack(const Matrix& matrix, float* weight);

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PACKED_H_
