// The instruction set that is always there: plain C++, and the meaning the others are tested against.
#include <cmath>

#include "rows_isa.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int64_t kRowSums = 64;

float Clip(float x, const RowOutput& out) {
  if (x < out.low) x = out.low;
  return x > out.high ? out.high : x;
}

void End(const float* sums, int groups, int64_t row, const RowOutput& out) {
  if (row >= out.rows) return;
  for (int g = 0; g < groups; ++g) {
    float* y = out.y[g] + row * out.y_stride;
    for (int i = 0; i < kGroup; ++i) {
      const bool pixel = (out.pixels[g] >> i & 1) != 0;
      if (!pixel && out.planes) continue;
      float v = sums[g * kGroup + i] + (out.bias != nullptr ? out.bias[row] : 0.0f);
      if (out.has_residual) v += out.residual[g][row * out.residual_stride + i];
      y[i] = pixel ? Clip(v, out) : 0.0f;
    }
  }
}

void Multiply(const PanelSegment& segment, const RowGroups& groups, float* sums, bool first,
              const RowOutput* last) {
  const float* value = segment.values;
  const uint16_t* offset = segment.offsets;
  const uint32_t* row = segment.rows;
  const int width = groups.count * kGroup;
  for (size_t c = 0; c < segment.class_count; ++c) {
    const uint32_t count = segment.classes[c].count;
    for (uint32_t i = 0; i < segment.classes[c].rows; ++i, ++row, offset += count) {
      for (int r = 0; r < segment.block_rows; ++r) {
        float sum[kPanelColumns];
        float* waiting = sums + (static_cast<int64_t>(*row) + r) * kRowSums;
        for (int j = 0; j < width; ++j) sum[j] = first ? 0.0f : waiting[j];
        for (uint32_t n = 0; n < count; ++n) {
          const float w = value[static_cast<int64_t>(n) * segment.block_rows + r];
          for (int j = 0; j < width; ++j) sum[j] += w * groups.x[j / kGroup][offset[n] + j % kGroup];
        }
        if (last != nullptr) {
          End(sum, groups.count, static_cast<int64_t>(*row) + r, *last);
        } else {
          for (int j = 0; j < width; ++j) waiting[j] = sum[j];
        }
      }
      value += static_cast<int64_t>(count) * segment.block_rows;
    }
  }
}

void Move(float* sums, int64_t outputs, int groups, int shift, const uint32_t* keep) {
  for (int64_t row = 0; row < outputs; ++row, sums += kRowSums) {
    float moved[kPanelColumns];
    for (int i = 0; i < groups * kGroup; ++i) {
      moved[i] = (keep[i / kGroup] >> i % kGroup & 1) != 0 ? sums[i + shift] : 0.0f;
    }
    for (int i = 0; i < groups * kGroup; ++i) sums[i] = moved[i];
  }
}

void Activate(const Epilogue& ending, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = y[i];
    if (ending.activation == Activation::kGelu) {
      y[i] = 0.5f * x * std::erfc(-0.70710678f * x);
    } else if (ending.activation == Activation::kGeluTanh) {
      y[i] = 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    } else if (ending.activation == Activation::kSilu) {
      y[i] = x < -88.0f ? 0.0f : x / (1.0f + std::exp(-x));
    }
  }
}

}  // namespace

const RowsIsa rows_scalar = {&Multiply, &Move, &Activate};

}  // namespace csr
}  // namespace sparsify
