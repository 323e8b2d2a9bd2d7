#include "packed.h"

#include <algorithm>
#include <limits>

namespace sparsify {
namespace csr {
namespace {

constexpr int32_t kMagic = 0x52534353;  // "SCSR", little-endian
constexpr int32_t kVersion = 1;
constexpr int64_t kHeaderSize = 8;
constexpr int64_t kNarrowColumns = 65536;
constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

bool Fail(std::string* error, const std::string& message) {
  *error = "csr: " + message;
  return false;
}

bool CheckTensor(const PackedTensor& tensor, const char* name, ElementType type, int64_t size,
                 std::string* error) {
  if (tensor.type != type) {
    return Fail(error, std::string(name) + " have element type " +
                           std::to_string(static_cast<int32_t>(tensor.type)) + " instead of " +
                           std::to_string(static_cast<int32_t>(type)));
  }
  if (tensor.size != size || tensor.data == nullptr) {
    return Fail(error, std::string(name) + " have " + std::to_string(tensor.size) + " elements instead of " +
                           std::to_string(size));
  }
  return true;
}

bool CheckHeader(const PackedTensor& tensor, int64_t rows, int64_t columns, std::string* error) {
  if (!CheckTensor(tensor, "header fields", ElementType::kInt32, kHeaderSize, error)) return false;
  const int32_t* header = static_cast<const int32_t*>(tensor.data);
  if (header[0] != kMagic) return Fail(error, "the packed weight does not begin with the layout's mark");
  if (header[1] != kVersion) {
    return Fail(error, "packed by version " + std::to_string(header[1]) + " of the layout; this is " +
                           std::to_string(kVersion) + ", so pack the weight again");
  }
  if (header[2] != rows || header[3] != columns) {
    return Fail(error, "packed for a weight of " + std::to_string(header[2]) + " x " +
                           std::to_string(header[3]) + ", but the node says " + std::to_string(rows) + " x " +
                           std::to_string(columns));
  }
  if (header[4] < 0 || header[4] > rows * columns) {
    return Fail(error, "impossible number of non-zeros " + std::to_string(header[4]));
  }
  if (header[5] != (columns <= kNarrowColumns ? 2 : 4)) {
    return Fail(error, "impossible column index of " + std::to_string(header[5]) + " bytes");
  }
  return true;
}

bool CheckRows(const Matrix& m, std::string* error) {
  if (m.pointers[0] != 0 || m.pointers[m.rows] != m.nonzeros) {
    return Fail(error, "row pointers do not span the non-zeros");
  }
  for (int64_t row = 0; row < m.rows; ++row) {
    if (m.pointers[row + 1] < m.pointers[row] || m.pointers[row + 1] > m.nonzeros) {
      return Fail(error, "row pointers fall at row " + std::to_string(row));
    }
    int64_t previous = -1;
    for (int64_t i = m.pointers[row]; i < m.pointers[row + 1]; ++i) {
      const int64_t column = m.Column(i);
      if (column <= previous || column >= m.columns) {
        return Fail(error, "column index " + std::to_string(column) + " of row " + std::to_string(row) +
                               " is out of order or out of bounds");
      }
      previous = column;
    }
  }
  return true;
}

}  // namespace

PackedTensor Packed::Tensor(int64_t index) const {
  switch (index) {
    case 0:
      return {header.data(), ElementType::kInt32, static_cast<int64_t>(header.size())};
    case 1:
      return {pointers.data(), ElementType::kInt32, static_cast<int64_t>(pointers.size())};
    case 2:
      if (narrow.empty()) return {wide.data(), ElementType::kInt32, static_cast<int64_t>(wide.size())};
      return {narrow.data(), ElementType::kUint16, static_cast<int64_t>(narrow.size())};
    default:
      return {values.data(), ElementType::kFloat, static_cast<int64_t>(values.size())};
  }
}

bool Pack(const float* weight, int64_t rows, int64_t columns, Packed* packed, std::string* error) {
  if (rows < 1 || columns < 1 || rows >= kLargest || columns > kLargest) {
    return Fail(
        error, "a weight of " + std::to_string(rows) + " x " + std::to_string(columns) + " cannot be packed");
  }
  int64_t nonzeros = 0;
  for (int64_t i = 0; i < rows * columns; ++i) nonzeros += weight[i] != 0.0f;
  if (nonzeros > kLargest) return Fail(error, "more than 2^31 - 1 non-zeros cannot be packed");
  const bool narrow = columns <= kNarrowColumns;
  const size_t stored = static_cast<size_t>(std::max<int64_t>(nonzeros, 1));
  packed->header = {kMagic,
                    kVersion,
                    static_cast<int32_t>(rows),
                    static_cast<int32_t>(columns),
                    static_cast<int32_t>(nonzeros),
                    narrow ? 2 : 4,
                    0,
                    0};
  packed->pointers.assign(static_cast<size_t>(rows) + 1, 0);
  packed->values.assign(stored, 0.0f);
  packed->narrow.assign(narrow ? stored : 0, 0);
  packed->wide.assign(narrow ? 0 : stored, 0);
  size_t next = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const float value = weight[row * columns + column];
      if (value == 0.0f) continue;
      packed->values[next] = value;
      if (narrow) {
        packed->narrow[next] = static_cast<uint16_t>(column);
      } else {
        packed->wide[next] = static_cast<int32_t>(column);
      }
      ++next;
    }
    packed->pointers[static_cast<size_t>(row) + 1] = static_cast<int32_t>(next);
  }
  return true;
}

bool Parse(const PackedTensor* tensors, size_t count, int64_t rows, int64_t columns, Matrix* matrix,
           std::string* error) {
  if (count != kPackedTensors) {
    return Fail(error,
                std::to_string(count) + " packed tensors instead of " + std::to_string(kPackedTensors));
  }
  if (rows < 1 || columns < 1 || rows >= kLargest || columns > kLargest) {
    return Fail(error, "impossible weight shape " + std::to_string(rows) + " x " + std::to_string(columns));
  }
  if (!CheckHeader(tensors[0], rows, columns, error)) return false;
  Matrix m;
  m.rows = rows;
  m.columns = columns;
  m.nonzeros = static_cast<const int32_t*>(tensors[0].data)[4];
  const bool narrow = columns <= kNarrowColumns;
  const int64_t stored = std::max<int64_t>(m.nonzeros, 1);
  if (!CheckTensor(tensors[1], "row pointers", ElementType::kInt32, rows + 1, error)) return false;
  if (!CheckTensor(tensors[2], "column indices", narrow ? ElementType::kUint16 : ElementType::kInt32, stored,
                   error)) {
    return false;
  }
  if (!CheckTensor(tensors[3], "values", ElementType::kFloat, stored, error)) return false;
  m.pointers = static_cast<const int32_t*>(tensors[1].data);
  if (narrow) {
    m.narrow = static_cast<const uint16_t*>(tensors[2].data);
  } else {
    m.wide = static_cast<const int32_t*>(tensors[2].data);
  }
  m.values = static_cast<const float*>(tensors[3].data);
  if (!CheckRows(m, error)) return false;
  *matrix = m;
  return true;
}

void Unpack(const Matrix& matrix, float* weight) {
  std::fill(weight, weight + matrix.rows * matrix.columns, 0.0f);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t i = matrix.pointers[row]; i < matrix.pointers[row + 1]; ++i) {
      weight[row * matrix.columns + matrix.Column(i)] = matrix.values[i];
    }
  }
}

}  // namespace csr
}  // namespace sparsify
