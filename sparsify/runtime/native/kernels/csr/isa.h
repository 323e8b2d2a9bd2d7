// The table of instruction sets and what each of them must provide.
//
// Sources compiled for an instruction set (isa_<name>.cc) include this header and nothing that holds inline
// functions of the C++ library: a function compiled there and merged by the linker with its twin elsewhere
// would run on CPUs that lack the instructions. All their code is in anonymous namespaces.
#ifndef SPARSIFY_KERNELS_CSR_ISA_H_
#define SPARSIFY_KERNELS_CSR_ISA_H_

#include <cstddef>
#include <cstdint>

#include "../epilogue.h"
#include "value_type.h"

namespace sparsify {
namespace csr {

// A panel holds up to 64 columns of X (rows of a linear's input, pixels of a convolution's), or 80 where 16
// would be left alone, as rows of `groups` x 16 floats, spaced by 16, 32, 64 or 80 floats, so that one array
// of offsets serves all widths: offset * spacing / 16 bytes.
constexpr int kGroup = 16;
constexpr int kMaxGroups = 4;
constexpr int kWideGroups = kMaxGroups + 1;
constexpr int64_t kPanelColumns = kGroup * kMaxGroups;
constexpr int64_t kSpacing[kWideGroups + 1] = {0, 16, 32, 64, 64, 80};

// Non-zeros that a row brings to one tile; a row with more is listed several times.
constexpr int kMaxCount = 32;

// Consecutive rows of a segment with the same number of non-zeros.
struct RowClass {
  uint32_t count;
  uint32_t rows;
  bool begins = false;  // no sums of these rows wait yet
};

// The non-zeros of a part of the rows in one tile of inputs, rows in ascending order of their number. In the
// first tile every row is listed, and begins its sums; what a row brings beyond that comes behind. In a
// layout of blocks every entry stands for block_rows consecutive rows, and a row for the first of them.
struct PanelSegment {
  const float* values;      // [entries][block_rows]
  const uint16_t* offsets;  // 64 * (input - first input of the tile); of a flat tile in floats
  const uint32_t* rows;     // relative to the part
  const RowClass* classes;
  size_t class_count;
  int block_rows;
  bool flat;
  bool deep = false;    // the CPU looks far ahead by itself (see base/tuning.h)
  bool single = false;  // of the last group of columns only the first is wanted
};

// Where the columns of a panel lie in an image-major source, and which taps find them inside it. Input
// channel * taps + tap of lane i of a piece is x[source + i + channel * channel_stride + offsets[tap]], or
// zero where the mask of that tap lacks the lane. The pieces of a group of columns have no lane in common.
struct PixelPanel {
  const int64_t* sources;     // [pieces]
  const uint16_t* masks;      // [pieces][taps]
  const uint32_t* group_end;  // [groups] one past the last piece
  const int64_t* offsets;     // [taps]
  int64_t taps;
  int64_t channel_stride;
};

// The same for a flat tile (see conv_flat.h): where its registers of 16 columns lie in a source. Lane i of a
// piece is x[source + i + channel * channel_stride]; lanes in no piece's mask are zero.
struct FlatPanel {
  const int64_t* sources;        // [pieces]
  const uint16_t* masks;         // [pieces]
  const uint32_t* register_end;  // [registers] one past the last piece
  int64_t registers;             // of a channel
  int64_t channel_stride;
};

// Columns [column, column + length) of a panel are neighbouring pixels of one image: those of output row r
// begin at y + target + r * plane.
struct OutputRun {
  int64_t target;
  int64_t column;
  int64_t length;
};

// Sixteen output rows as lanes. For each listed block of 32 inputs a record: one word of indices (lane i:
// 5 bits each for up to 6 slots), then for each slot the values of the lanes in its mask, packed. Non-zeros
// that found no slot are the rest.
constexpr int kLanes = 16;
constexpr int kBlock = 32;
constexpr int kMaxSlots = 6;

struct SlotClass {
  uint32_t slots;
  uint32_t blocks;
};

struct SlotGroup {
  const float* stream;     // records, in the order of `blocks`
  const uint16_t* masks;   // of each slot of each record
  const uint32_t* blocks;  // first input of each record
  const SlotClass* classes;
  size_t class_count;
  const float* rest_values;     // [rest]
  const uint32_t* rest_inputs;  // [rest]
  const uint8_t* rest_lanes;    // [rest], neighbours in different lanes where they can be
  size_t rest;
};

// A row-major operand.
struct RowMajor {
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  int64_t rows;
};

struct PackedRows {
  const int32_t* pointers;  // of each block row
  const uint16_t* narrow;   // one of these two is null
  const int32_t* wide;
  Values values;
  int block_rows;
  int64_t rows;  // outputs
};

struct RowsIsa;

struct Isa {
  const char* name;
  // panel[row] += segment * tile.
  void (*multiply)(const PanelSegment& segment, const float* tile, float* panel, int groups);
  // tile[k][i] = x[i * stride + k] for i < columns, k < depth, zero for the other columns of the groups.
  void (*pack_rows)(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups);
  // tile[k] = input first + k of every column, k < depth; zero for the other columns of the groups.
  void (*pack_pixels)(const float* x, const PixelPanel& panel, int64_t first, int64_t depth, float* tile,
                      int groups);
  // tile[channel] = the registers of that channel.
  void (*pack_flat)(const float* x, const FlatPanel& panel, int64_t channels, float* tile);
  // y[i * count + j] = x[i * stride + j * step] for i < rows, j < count.
  void (*take_every)(const float* x, int64_t rows, int64_t stride, int64_t count, int64_t step, float* y);
  // y[i * stride + row] = finished panel[row - first][i]; bias and residual are indexed like y.
  void (*store_rows)(const float* panel, int64_t first, int64_t last, int64_t columns,
                     const Epilogue& epilogue, float* y, int64_t stride, int groups);
  void (*store_pixels)(const float* panel, int64_t first, int64_t last, const OutputRun* runs,
                       size_t run_count, const Epilogue& epilogue, float* y, int64_t plane, int groups);
  // Up to `few_rows` rows of X without a panel: one of the two is there, or the limit is 0.
  int64_t few_rows;
  void (*slots)(const SlotGroup& group, const RowMajor& operand, int64_t first, int64_t last,
                const Epilogue& epilogue);
  void (*dot)(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
              const Epilogue& epilogue);
  // The same for blocks of two outputs or more, block rows [first, last), in place; may be null.
  void (*blocks)(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
                 const Epilogue& epilogue);
  const RowsIsa* rows;  // for convolutions on maps kept as rows
};

// One row for each instruction set, best last: name, condition on the CPU.
#if defined(__x86_64__) || defined(_M_X64)
#define SPARSIFY_CSR_ISAS(ROW) \
  ROW(scalar, true)            \
  ROW(avx2, Cpu().avx2)        \
  ROW(avx512, Cpu().avx512)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define SPARSIFY_CSR_ISAS(ROW) \
  ROW(scalar, true)            \
  ROW(neon, true)
#else
#define SPARSIFY_CSR_ISAS(ROW) ROW(scalar, true)
#endif

#define SPARSIFY_DECLARE_ISA(name, condition) extern const Isa isa_##name;
SPARSIFY_CSR_ISAS(SPARSIFY_DECLARE_ISA)
#undef SPARSIFY_DECLARE_ISA

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_ISA_H_
