#include "packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "values.h"

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

bool CheckHeader(const PackedTensor& tensor, int64_t rows, int64_t columns, int block_rows,
                 std::string* error) {
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
  if (header[6] != (block_rows == 1 ? 0 : block_rows)) {
    return Fail(error, "packed in blocks of " + std::to_string(header[6]) + " outputs instead of " +
                           std::to_string(block_rows));
  }
  if (header[4] < 0 || header[4] > (rows + block_rows - 1) / block_rows * columns) {
    return Fail(error, "impossible number of blocks " + std::to_string(header[4]));
  }
  if (header[5] != (columns <= kNarrowColumns ? 2 : 4)) {
    return Fail(error, "impossible column index of " + std::to_string(header[5]) + " bytes");
  }
  if (header[7] < 0 || header[7] > static_cast<int32_t>(ValueType::kFloat16)) {
    return Fail(error, "unknown type of values " + std::to_string(header[7]));
  }
  return true;
}

bool CheckRows(const Matrix& m, std::string* error) {
  if (m.pointers[0] != 0 || m.pointers[m.lines()] != m.blocks) {
    return Fail(error, "row pointers do not span the non-zeros");
  }
  for (int64_t row = 0; row < m.lines(); ++row) {
    if (m.pointers[row + 1] < m.pointers[row] || m.pointers[row + 1] > m.blocks) {
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

int BlockRows(const char* layout, std::string* error) {
  static constexpr struct {
    const char* name;
    int rows;
  } kLayouts[] = {{"csr", 1}, {"blocks-2", 2}, {"blocks-4", 4}, {"blocks-8", 8}, {"blocks-16", 16}};
  std::string names;
  for (const auto& known : kLayouts) {
    if (layout != nullptr && std::strcmp(layout, known.name) == 0) return known.rows;
    names += " " + std::string(known.name);
  }
  *error = "no layout '" + std::string(layout != nullptr ? layout : "") + "'; there are" + names;
  return 0;
}

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
      if (values.empty()) return {halves.data(), ElementType::kUint16, static_cast<int64_t>(halves.size())};
      return {values.data(), ElementType::kFloat, static_cast<int64_t>(values.size())};
  }
}

namespace {

// Whether any of the block's weights is not zero; outputs beyond the last count as zeros.
bool Occupied(const float* weight, int64_t rows, int64_t columns, int block_rows) {
  for (int64_t r = 0; r < std::min<int64_t>(rows, block_rows); ++r) {
    if (weight[r * columns] != 0.0f) return true;
  }
  return false;
}

// Rounds the values to 16 bits.
bool Halve(ValueType type, Packed* packed, std::string* error) {
  packed->halves.reserve(packed->values.size());
  for (const float value : packed->values) {
    const uint16_t half = type == ValueType::kBfloat16 ? ToBfloat16(value) : ToFloat16(value);
    const float rounded = type == ValueType::kBfloat16 ? FromBfloat16(half) : FromFloat16(half);
    if (std::isinf(rounded) && !std::isinf(value)) {
      return Fail(error, "the weight " + std::to_string(value) + " is too large for 16 bits");
    }
    packed->halves.push_back(half);
  }
  packed->values.clear();
  return true;
}

}  // namespace

bool Pack(const float* weight, int64_t rows, int64_t columns, int block_rows, ValueType type, Packed* packed,
          std::string* error) {
  if (rows < 1 || columns < 1 || rows >= kLargest || columns > kLargest) {
    return Fail(
        error, "a weight of " + std::to_string(rows) + " x " + std::to_string(columns) + " cannot be packed");
  }
  const bool narrow = columns <= kNarrowColumns;
  packed->pointers = {0};
  for (int64_t row = 0; row < rows; row += block_rows) {
    for (int64_t column = 0; column < columns; ++column) {
      const float* block = weight + row * columns + column;
      if (!Occupied(block, rows - row, columns, block_rows)) continue;
      for (int r = 0; r < block_rows; ++r) {
        packed->values.push_back(row + r < rows ? block[r * columns] : 0.0f);
      }
      if (narrow) {
        packed->narrow.push_back(static_cast<uint16_t>(column));
      } else {
        packed->wide.push_back(static_cast<int32_t>(column));
      }
    }
    const size_t blocks = packed->narrow.size() + packed->wide.size();
    if (blocks > static_cast<size_t>(kLargest)) {
      return Fail(error, "more than 2^31 - 1 non-zeros cannot be packed");
    }
    packed->pointers.push_back(static_cast<int32_t>(blocks));
  }
  packed->header = {kMagic,
                    kVersion,
                    static_cast<int32_t>(rows),
                    static_cast<int32_t>(columns),
                    packed->pointers.back(),
                    narrow ? 2 : 4,
                    block_rows == 1 ? 0 : block_rows,
                    static_cast<int32_t>(type)};
  if (packed->pointers.back() == 0) {
    packed->values.assign(static_cast<size_t>(block_rows), 0.0f);
    packed->narrow.assign(narrow ? 1 : 0, 0);
    packed->wide.assign(narrow ? 0 : 1, 0);
  }
  return type == ValueType::kFloat32 || Halve(type, packed, error);
}

bool Parse(const PackedTensor* tensors, size_t count, int64_t rows, int64_t columns, int block_rows,
           Matrix* matrix, std::string* error) {
  if (count != kPackedTensors) {
    return Fail(error,
                std::to_string(count) + " packed tensors instead of " + std::to_string(kPackedTensors));
  }
  if (rows < 1 || columns < 1 || rows >= kLargest || columns > kLargest) {
    return Fail(error, "impossible weight shape " + std::to_string(rows) + " x " + std::to_string(columns));
  }
  if (!CheckHeader(tensors[0], rows, columns, block_rows, error)) return false;
  Matrix m;
  m.rows = rows;
  m.columns = columns;
  m.block_rows = block_rows;
  m.blocks = static_cast<const int32_t*>(tensors[0].data)[4];
  const bool narrow = columns <= kNarrowColumns;
  const int64_t stored = std::max<int64_t>(m.blocks, 1);
  m.values.type = static_cast<ValueType>(static_cast<const int32_t*>(tensors[0].data)[7]);
  const ElementType value = m.values.type == ValueType::kFloat32 ? ElementType::kFloat : ElementType::kUint16;
  const ElementType index = narrow ? ElementType::kUint16 : ElementType::kInt32;
  if (!CheckTensor(tensors[1], "row pointers", ElementType::kInt32, m.lines() + 1, error) ||
      !CheckTensor(tensors[2], "column indices", index, stored, error) ||
      !CheckTensor(tensors[3], "values", value, stored * block_rows, error)) {
    return false;
  }
  m.pointers = static_cast<const int32_t*>(tensors[1].data);
  if (narrow) {
    m.narrow = static_cast<const uint16_t*>(tensors[2].data);
  } else {
    m.wide = static_cast<const int32_t*>(tensors[2].data);
  }
  m.values.data = tensors[3].data;
  if (!CheckRows(m, error)) return false;
  *matrix = m;
  return true;
}

void Unpack(const Matrix& matrix, float* weight) {
  std::fill(weight, weight + matrix.rows * matrix.columns, 0.0f);
  for (int64_t line = 0; line < matrix.lines(); ++line) {
    const int64_t first = line * matrix.block_rows;
    const int64_t rows = std::min<int64_t>(matrix.block_rows, matrix.rows - first);
    for (int64_t i = matrix.pointers[line]; i < matrix.pointers[line + 1]; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        weight[(first + r) * matrix.columns + matrix.Column(i)] =
            ValueAt(matrix.values, i * matrix.block_rows + r);
      }
    }
  }
}

}  // namespace csr
}  // namespace sparsify
