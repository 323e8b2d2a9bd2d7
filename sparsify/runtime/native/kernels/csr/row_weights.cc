#include "row_weights.h"

#include <algorithm>
#include <cstddef>

#include "values.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int64_t kMostOffset = 65535;
// Input of a pass: 64 columns of each of its channels, in a first-level cache of 32 KB.
constexpr int64_t kPassChannels = 128;
// Non-zeros of an output in a pass: more gain nothing, and kMaxCount must suffice for most outputs.
constexpr int64_t kUsefulCount = 26;
// Outputs whose sums wait together, 256 bytes each.
constexpr int64_t kPartRows = 256;

int64_t LargestTap(const RowTaps& taps) {
  return *std::max_element(taps.offsets.begin(), taps.offsets.end());
}

// Shifts in the order of their passes: ascending, so that sums move to the right and lose nothing that
// counts, but zero last.
std::vector<int64_t> Frames(const RowTaps& taps) {
  std::vector<int64_t> frames(taps.shifts);
  std::sort(frames.begin(), frames.end());
  frames.erase(std::unique(frames.begin(), frames.end()), frames.end());
  frames.erase(std::remove(frames.begin(), frames.end(), int64_t{0}), frames.end());
  frames.push_back(0);
  return frames;
}

// Columns of taps that a pass serves, at most.
int64_t TogetherTaps(const RowTaps& taps) {
  if (taps.shifts.empty()) return taps.kernel_width;
  int64_t most = 1;
  for (const int64_t shift : taps.shifts) {
    most = std::max<int64_t>(most, std::count(taps.shifts.begin(), taps.shifts.end(), shift));
  }
  return most;
}

// Channels of a pass, about as many in each.
int64_t PassChannels(const Matrix& matrix, const RowTaps& taps) {
  const int64_t channels = matrix.columns / (taps.kernel_height * taps.kernel_width);
  int64_t most = kPassChannels / taps.planes;
  most = std::min(most, (kMostOffset - LargestTap(taps)) / taps.spacing + 1);
  if (matrix.block_rows == 1) {
    const double density = static_cast<double>(matrix.blocks) /
                           static_cast<double>(std::max<int64_t>(1, matrix.rows * matrix.columns));
    const double useful =
        static_cast<double>(kUsefulCount) / std::max(1e-6, density * static_cast<double>(TogetherTaps(taps)));
    most = std::min(most, std::max<int64_t>(16, static_cast<int64_t>(std::min(useful, 1e6))));
  }
  const int64_t passes = (channels + most - 1) / most;
  return (channels + passes - 1) / passes;
}

}  // namespace

// The entries of a part that one pass reads, before they are cut to kMaxCount an output.
struct RowWeights::Tile {
  int64_t tap_row, first_channel, shift;
  std::vector<std::vector<int64_t>> entries;   // [lines], numbers of entries of the matrix
  std::vector<std::vector<uint16_t>> offsets;  // of these
};

bool RowWeights::Fits(const RowTaps& taps) { return LargestTap(taps) + 16 * taps.spacing <= kMostOffset; }

RowWeights::RowWeights(const Matrix& matrix, const RowTaps& taps)
    : block_rows_(matrix.block_rows), channels_(PassChannels(matrix, taps)) {
  reach_ = (channels_ - 1) * taps.spacing + LargestTap(taps);
  values_.reserve(static_cast<size_t>(matrix.blocks * block_rows_));
  offsets_.reserve(static_cast<size_t>(matrix.blocks));
  const int64_t lines = matrix.lines();
  const int64_t parts = (matrix.rows + kPartRows - 1) / kPartRows;
  for (int64_t part = 0; part <= parts; ++part) bounds_.push_back(lines * part / parts);
  for (int64_t part = 0; part < parts; ++part) {
    first_pass_.push_back(begins_.size());
    AddPart(matrix, bounds_[static_cast<size_t>(part)], bounds_[static_cast<size_t>(part) + 1], taps);
  }
  first_pass_.push_back(begins_.size());
  rows_.insert(rows_.end(), kMaxCount, 0u);  // what is asked for ahead of the last output
  rows_.shrink_to_fit();
  classes_.shrink_to_fit();
}

void RowWeights::AddPart(const Matrix& matrix, int64_t first_line, int64_t last_line, const RowTaps& taps) {
  const int64_t area = taps.kernel_height * taps.kernel_width, channels = matrix.columns / area;
  const size_t lines = static_cast<size_t>(last_line - first_line);
  std::vector<Tile> tiles;
  const int64_t across = (channels + channels_ - 1) / channels_;
  const std::vector<int64_t> frames = Frames(taps);
  for (const int64_t shift : frames) {
    for (int64_t row = 0; row < taps.kernel_height; ++row) {
      for (int64_t i = 0; i < across; ++i) {
        tiles.push_back({row, i * channels_, shift, std::vector<std::vector<int64_t>>(lines),
                         std::vector<std::vector<uint16_t>>(lines)});
      }
    }
  }
  for (int64_t line = first_line; line < last_line; ++line) {
    const size_t at = static_cast<size_t>(line - first_line);
    for (int64_t i = matrix.pointers[line]; i < matrix.pointers[line + 1]; ++i) {
      const int64_t column = matrix.Column(i), channel = column / area, tap = column % area;
      const int64_t row = tap / taps.kernel_width;
      const size_t s = static_cast<size_t>(tap % taps.kernel_width);
      const int64_t shift = taps.shifts.empty() ? 0 : taps.shifts[s];
      const int64_t frame = std::find(frames.begin(), frames.end(), shift) - frames.begin();
      Tile& tile =
          tiles[static_cast<size_t>((frame * taps.kernel_height + row) * across + channel / channels_)];
      const int64_t offset = channel % channels_ * taps.spacing + taps.offsets[s];
      tile.entries[at].push_back(i);
      tile.offsets[at].push_back(static_cast<uint16_t>(offset));
    }
  }
  for (size_t i = 0; i < tiles.size(); ++i) AddTile(matrix, tiles[i], i == 0, i + 1 == tiles.size());
}

void RowWeights::AddTile(const Matrix& matrix, const Tile& tile, bool first, bool last) {
  const size_t most = block_rows_ > 1 ? SIZE_MAX : static_cast<size_t>(kMaxCount);
  size_t longest = 0;
  for (const auto& entries : tile.entries) longest = std::max(longest, entries.size());
  if (longest == 0 && !first && !last) return;
  for (size_t begin = 0; begin == 0 || begin < longest; begin += most) {
    const size_t end = longest - begin > most ? begin + most : longest;
    const bool all = (first && begin == 0) || (last && end == longest);
    struct Line {
      uint32_t index, count;
    };
    std::vector<Line> lines;
    for (size_t line = 0; line < tile.entries.size(); ++line) {
      const size_t size = tile.entries[line].size();
      const size_t count = std::min(end, size) - std::min(begin, size);
      if (count > 0 || all) lines.push_back({static_cast<uint32_t>(line), static_cast<uint32_t>(count)});
    }
    std::stable_sort(lines.begin(), lines.end(),
                     [](const Line& a, const Line& b) { return a.count < b.count; });
    Begin segment = {tile.tap_row, tile.first_channel, tile.shift, offsets_.size(),
                     rows_.size(), classes_.size(),    0};
    for (const Line& line : lines) {
      if (segment.class_count == 0 || classes_.back().count != line.count) {
        classes_.push_back({line.count, 0});
        ++segment.class_count;
      }
      ++classes_.back().rows;
      rows_.push_back(line.index * static_cast<uint32_t>(block_rows_));
      for (size_t i = begin; i < begin + line.count; ++i) {
        for (int64_t r = 0; r < block_rows_; ++r) {
          values_.push_back(ValueAt(matrix.values, tile.entries[line.index][i] * block_rows_ + r));
        }
        offsets_.push_back(tile.offsets[line.index][i]);
      }
    }
    begins_.push_back(segment);
    if (end == longest) break;
  }
}

int64_t RowWeights::largest_part() const {
  int64_t largest = 0;
  for (int part = 0; part < parts(); ++part) largest = std::max(largest, last_row(part) - first_row(part));
  return largest;
}

int RowWeights::passes(int part) const {
  return static_cast<int>(first_pass_[static_cast<size_t>(part) + 1] -
                          first_pass_[static_cast<size_t>(part)]);
}

RowWeights::Pass RowWeights::At(int part, int pass) const {
  const Begin& begin = begins_[first_pass_[static_cast<size_t>(part)] + static_cast<size_t>(pass)];
  return {
      begin.tap_row,
      begin.first_channel,
      begin.shift,
      {values_.data() + begin.entry * static_cast<size_t>(block_rows_), offsets_.data() + begin.entry,
       rows_.data() + begin.row, classes_.data() + begin.row_class, begin.class_count, block_rows_, true}};
}

size_t RowWeights::bytes() const {
  return values_.size() * sizeof(float) + offsets_.size() * sizeof(uint16_t) +
         rows_.size() * sizeof(uint32_t);
}

}  // namespace csr
}  // namespace sparsify
