// Plain C++, and the meaning the others are tested against. Sixteen sums that do not depend on each other let
// a compiler use whatever registers the baseline of the target has.
#include "sample.h"

namespace sparsify {
namespace train {
namespace {

using csr::kGroup;

float Dot(const float* a, const float* b, int64_t size) {
  float sums[kGroup] = {};
  for (int64_t i = 0; i < size; i += kGroup) {
    for (int j = 0; j < kGroup; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (int half = kGroup / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

void SampleRows(const csr::PanelSegment& segment, const float* tile, const float* panel, int groups, bool add,
                float* gradients) {
  const int64_t spacing = csr::kSpacing[groups];
  const uint16_t* offset = segment.offsets;
  const uint32_t* row = segment.rows;
  for (size_t c = 0; c < segment.class_count; ++c) {
    for (uint32_t i = 0; i < segment.classes[c].rows; ++i, ++row) {
      const float* line = panel + static_cast<int64_t>(*row) * spacing;
      for (uint32_t n = 0; n < segment.classes[c].count; ++n, ++offset, ++gradients) {
        const float sum = Dot(line, tile + *offset / 64 * spacing, groups * kGroup);
        *gradients = add ? *gradients + sum : sum;
      }
    }
  }
}

void AddRows(const float* panel, int64_t rows, int groups, float* sums) {
  const int64_t spacing = csr::kSpacing[groups];
  float ones[csr::kPanelColumns];
  for (float& one : ones) one = 1.0f;
  for (int64_t row = 0; row < rows; ++row) sums[row] += Dot(panel + row * spacing, ones, groups * kGroup);
}

}  // namespace

const Sampler sampler_scalar = {"scalar", &SampleRows, &AddRows};

}  // namespace train
}  // namespace sparsify
