// The packed form of a weight in the layouts "csr" and "blocks-R", as it stands in a file. See
// docs/design/packed-layouts.md. A block is R outputs of one input, csr is R = 1.
//
//   0  header   int32 [8]           magic, version, rows, columns, blocks, bytes of a column index, R, value
//   type 1  pointers int32 [rows/R + 1]  first block of each block row 2  columns  uint16 or int32 ascending
//   inside a block row; uint16 when columns <= 65536 3  values   [blocks][R]         float32, or 16 bits as
//   uint16; see values.h
//
// Columns and values hold one block of zeros when there is none, since empty initializers are mishandled by
// some tools. A convolution is the matrix [out, in * kh * kw].
#ifndef SPARSIFY_KERNELS_CSR_PACKED_H_
#define SPARSIFY_KERNELS_CSR_PACKED_H_

#include <cstdint>
#include <string>
#include <vector>

#include "../api.h"
#include "value_type.h"

namespace sparsify {
namespace csr {

constexpr int64_t kPackedTensors = 4;
constexpr int kMostBlockRows = 16;

// R of a layout's name; 0 and *error for an unknown one.
int BlockRows(const char* layout, std::string* error);

// A checked packed weight; refers to the packed tensors.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t blocks = 0;
  int block_rows = 1;  // R: 1, 2, 4, 8 or 16
  const int32_t* pointers = nullptr;
  const uint16_t* narrow = nullptr;  // one of these two is null
  const int32_t* wide = nullptr;
  Values values = {nullptr, ValueType::kFloat32};

  int64_t lines() const { return (rows + block_rows - 1) / block_rows; }  // block rows
  int64_t Column(int64_t i) const { return narrow != nullptr ? narrow[i] : wide[i]; }
};

struct Packed {
  std::vector<int32_t> header, pointers, wide;
  std::vector<uint16_t> narrow, halves;
  std::vector<float> values;  // one of these two is empty

  PackedTensor Tensor(int64_t index) const;
};

// All return false and set *error on failure.
bool Pack(const float* weight, int64_t rows, int64_t columns, int block_rows, ValueType type, Packed* packed,
          std::string* error);
bool Parse(const PackedTensor* tensors, size_t count, int64_t rows, int64_t columns, int block_rows,
           Matrix* matrix, std::string* error);
void Unpack(const Matrix& matrix, float* weight);

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PACKED_H_
