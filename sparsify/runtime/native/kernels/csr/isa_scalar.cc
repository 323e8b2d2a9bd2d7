// The instruction set that is always there: plain C++, and the meaning the others are tested against.
#include <cmath>

#include "isa.h"
#include "rows_isa.h"
#include "values.h"

namespace sparsify {
namespace csr {
namespace {

float Activate(float x, const Epilogue& epilogue) {
  switch (epilogue.activation) {
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;
    case Activation::kGelu:
      return 0.5f * x * std::erfc(-0.70710678f * x);
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::kSilu:
      return x < -88.0f ? 0.0f : x / (1.0f + std::exp(-x));
    case Activation::kClip:
      if (x < epilogue.low) x = epilogue.low;
      return x > epilogue.high ? epilogue.high : x;
    default:
      return x;
  }
}

float Finish(float sum, int64_t row, int64_t target, const Epilogue& epilogue) {
  if (epilogue.bias != nullptr) sum += epilogue.bias[row];
  if (epilogue.residual != nullptr) sum += epilogue.residual[target];
  return Activate(sum, epilogue);
}

void Multiply(const PanelSegment& segment, const float* tile, float* panel, int groups) {
  const int64_t spacing = kSpacing[groups], width = groups * kGroup;
  const int64_t block_rows = segment.block_rows;
  const float* value = segment.values;
  const uint16_t* offset = segment.offsets;
  const uint32_t* row = segment.rows;
  for (size_t c = 0; c < segment.class_count; ++c) {
    for (uint32_t i = 0; i < segment.classes[c].rows; ++i, ++row) {
      float* sums = panel + static_cast<int64_t>(*row) * spacing;
      if (segment.classes[c].begins) {
        for (int64_t j = 0; j < block_rows * spacing; ++j) sums[j] = 0.0f;
      }
      for (uint32_t n = 0; n < segment.classes[c].count; ++n, ++offset) {
        const float* x = tile + (segment.flat ? *offset : *offset / 64 * spacing);
        for (int64_t r = 0; r < block_rows; ++r, ++value) {
          for (int64_t j = 0; j < width; ++j) sums[r * spacing + j] += *value * x[j];
        }
      }
    }
  }
}

void PackFlat(const float* x, const FlatPanel& panel, int64_t channels, float* tile) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    uint32_t piece = 0;
    for (int64_t i = 0; i < panel.registers; ++i, tile += kGroup) {
      for (int lane = 0; lane < kGroup; ++lane) tile[lane] = 0.0f;
      for (; piece < panel.register_end[i]; ++piece) {
        for (int lane = 0; lane < kGroup; ++lane) {
          if (panel.masks[piece] >> lane & 1) tile[lane] = x[panel.sources[piece] + lane];
        }
      }
    }
    x += panel.channel_stride;
  }
}

void PackRows(const float* x, int64_t stride, int64_t columns, int64_t depth, float* tile, int groups) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = 0; i < groups * kGroup; ++i) {
      tile[k * kSpacing[groups] + i] = i < columns ? x[i * stride + k] : 0.0f;
    }
  }
}

void PackPixels(const float* x, const PixelPanel& panel, int64_t first, int64_t depth, float* tile,
                int groups) {
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t tap = (first + k) % panel.taps;
    const int64_t input = (first + k) / panel.taps * panel.channel_stride + panel.offsets[tap];
    uint32_t piece = 0;
    for (int g = 0; g < groups; ++g) {
      float* target = tile + k * kSpacing[groups] + g * kGroup;
      for (int i = 0; i < kGroup; ++i) target[i] = 0.0f;
      for (; piece < panel.group_end[g]; ++piece) {
        const int mask = panel.masks[piece * panel.taps + tap];
        for (int i = 0; i < kGroup; ++i) {
          if ((mask >> i & 1) != 0) target[i] = x[panel.sources[piece] + i + input];
        }
      }
    }
  }
}

void TakeEvery(const float* x, int64_t rows, int64_t stride, int64_t count, int64_t step, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < count; ++j) y[i * count + j] = x[i * stride + j * step];
  }
}

void StoreRows(const float* panel, int64_t first, int64_t last, int64_t columns, const Epilogue& epilogue,
               float* y, int64_t stride, int groups) {
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t target = i * stride + row;
      y[target] = Finish(panel[(row - first) * kSpacing[groups] + i], row, target, epilogue);
    }
  }
}

void StorePixels(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
                 const Epilogue& epilogue, float* y, int64_t plane, int groups) {
  for (int64_t row = first; row < last; ++row) {
    for (size_t k = 0; k < run_count; ++k) {
      const int64_t target = runs[k].target + row * plane;
      const float* source = panel + (row - first) * kSpacing[groups] + runs[k].column;
      for (int64_t i = 0; i < runs[k].length; ++i) {
        y[target + i] = Finish(source[i], row, target + i, epilogue);
      }
    }
  }
}

void Dot(const PackedRows& matrix, const RowMajor& operand, int64_t first, int64_t last,
         const Epilogue& epilogue) {
  const int64_t block_rows = matrix.block_rows;
  const int64_t end = last * block_rows < matrix.rows ? last * block_rows : matrix.rows;
  for (int64_t row = first * block_rows; row < end; ++row) {
    const int64_t line = row / block_rows, r = row % block_rows;
    for (int64_t b = 0; b < operand.rows; ++b) {
      const float* x = operand.x + b * operand.x_stride;
      float sum = 0.0f;
      for (int32_t i = matrix.pointers[line]; i < matrix.pointers[line + 1]; ++i) {
        const int64_t column = matrix.narrow != nullptr ? matrix.narrow[i] : matrix.wide[i];
        sum += ValueAt(matrix.values, i * block_rows + r) * x[column];
      }
      const int64_t target = b * operand.y_stride + row;
      operand.y[target] = Finish(sum, row, target, epilogue);
    }
  }
}

}  // namespace

const Isa isa_scalar = {"scalar",     &Multiply, &PackRows, &PackPixels, &PackFlat, &TakeEvery,  &StoreRows,
                        &StorePixels, 4,         nullptr,   &Dot,        nullptr,   &rows_scalar};

}  // namespace csr
}  // namespace sparsify
