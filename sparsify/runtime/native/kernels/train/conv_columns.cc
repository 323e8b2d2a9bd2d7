#include "conv_columns.h"

#include <algorithm>
#include <cstring>

#include "../csr/compiler.h"

namespace sparsify {
namespace train {

using csr::kGroup;

void CopyChannel(const csr::Isa& isa, const Planes& planes, const float* x, float* copy) {
  for (const Phase& phase : planes.phases) {
    for (int64_t i = 0; i < phase.rows && phase.columns > 0; ++i) {
      const float* source = x + (phase.top + i * planes.strides[0]) * planes.width + phase.left;
      isa.take_every(source, 1, planes.width, phase.columns, planes.strides[1], copy + i * planes.pitch);
    }
    copy += planes.plane_floats;
  }
}

Columns::Columns(const Planes& planes, int64_t rows, int64_t columns)
    : planes_(planes), taps_(static_cast<int64_t>(planes.taps.size())) {
  const int64_t last = rows > 0 && columns > 0 ? (rows - 1) * planes.pitch + columns : 0;
  groups_ = (last + kGroup - 1) / kGroup;
  for (const Tap& tap : planes.taps) {
    offsets_.push_back(tap.plane * planes.plane_floats + tap.row * planes.pitch + tap.column);
  }
  masks_.assign(static_cast<size_t>(groups_ * taps_), 0);
  runs_.resize(static_cast<size_t>(groups_));
  for (int64_t at = 0; at < last; ++at) {
    const int64_t row = at / planes.pitch, column = at % planes.pitch, lane = at % kGroup;
    if (column >= columns) continue;
    std::vector<Run>& runs = runs_[static_cast<size_t>(at / kGroup)];
    if (runs.empty() || column == 0) runs.push_back({row, column, lane, 0});
    ++runs.back().length;
    uint16_t* masks = masks_.data() + at / kGroup * taps_;
    for (size_t t = 0; t < planes.taps.size(); ++t) {
      const Tap& tap = planes.taps[t];
      const Phase& phase = planes.phases[static_cast<size_t>(tap.plane)];
      const int64_t y = row + tap.row, x = column + tap.column;
      const bool inside = y >= 0 && y < phase.rows && x >= 0 && x < phase.columns;
      if (inside) masks[t] = static_cast<uint16_t>(masks[t] | 1u << lane);
    }
  }
}

Pixels::Pixels(const csr::Isa& isa, const Columns& columns, const float* x, int64_t first, int64_t count)
    : isa_(isa),
      columns_(columns),
      x_(x),
      furthest_(*std::max_element(columns.offsets().begin(), columns.offsets().end())) {
  const int64_t taps = static_cast<int64_t>(columns.offsets().size());
  masks_.resize(static_cast<size_t>(count * taps));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t image = (first + i) / columns.groups(), group = (first + i) % columns.groups();
    sources_[i] = image * columns.planes().image_stride() + group * kGroup;
    group_end_[i] = static_cast<uint32_t>(i + 1);
    std::memcpy(masks_.data() + i * taps, columns.masks(group), static_cast<size_t>(taps) * sizeof(uint16_t));
  }
}

void Pixels::Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
  const csr::PixelPanel panel = {sources_,
                                 masks_.data(),
                                 group_end_,
                                 columns_.offsets().data(),
                                 static_cast<int64_t>(columns_.offsets().size()),
                                 columns_.planes().channel_stride()};
  Ask(first_input + depth, depth, groups);
  isa_.pack_pixels(x_, panel, first_input, depth, tile, groups);
}

void Pixels::Ask(int64_t first_input, int64_t depth, int groups) const {
  const Planes& planes = columns_.planes();
  const int64_t taps = static_cast<int64_t>(planes.taps.size());
  const int64_t last = std::min((first_input + depth + taps - 1) / taps, 2 * planes.channels);
  for (int64_t channel = first_input / taps; channel < last; ++channel) {
    // After the last channel come the first ones of the panel that follows.
    const bool next = channel >= planes.channels;
    const int64_t at = (next ? channel - planes.channels : channel) * planes.channel_stride() + furthest_ +
                       (next ? groups * kGroup : 0);
    for (int group = 0; group < groups; ++group) SPARSIFY_PREFETCH(x_ + sources_[group] + at);
  }
}

namespace {

// With a stride of columns the pixels of a row lie apart.
void Spread(const csr::OutputRun& run, const Target& target, int64_t first, int64_t last, const float* panel,
            int64_t spacing) {
  const int64_t step = target.strides[1];
  for (int64_t row = first; row < last; ++row) {
    const float* source = panel + (row - first) * spacing + run.column;
    float* y = target.y + run.target + row * target.plane;
    for (int64_t i = 0; i < run.length; ++i) y[i * step] = source[i];
  }
}

}  // namespace

void StorePixels(const csr::Isa& isa, const Columns& columns, const Target& target, int64_t first_group,
                 int64_t first, int64_t last, const float* panel, int groups) {
  std::vector<csr::OutputRun> runs;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t image = (first_group + i) / columns.groups(), group = (first_group + i) % columns.groups();
    for (const Run& run : columns.runs(group)) {
      const int64_t y = target.top + run.row * target.strides[0];
      const int64_t x = target.left + run.column * target.strides[1];
      const int64_t at = image * target.channels * target.plane + y * target.width + x;
      const int64_t column = i * kGroup + run.lane;
      const bool follows = !runs.empty() && target.strides[1] == 1 &&
                           runs.back().target + runs.back().length == at &&
                           runs.back().column + runs.back().length == column;
      if (follows) {
        runs.back().length += run.length;
      } else {
        runs.push_back({at, column, run.length});
      }
    }
  }
  if (target.strides[1] == 1) {
    Epilogue epilogue;
    epilogue.bias = target.bias;
    isa.store_pixels(panel, first, last, runs.data(), runs.size(), epilogue, target.y, target.plane, groups);
    return;
  }
  for (const csr::OutputRun& run : runs) Spread(run, target, first, last, panel, csr::kSpacing[groups]);
}

}  // namespace train
}  // namespace sparsify
