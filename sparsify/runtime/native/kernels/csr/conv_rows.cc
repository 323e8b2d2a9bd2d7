// One to four rows of output, 64 pixels at most at a time, from the rows of input that their taps reach.
//
// Without a horizontal stride the product reads the rows of input themselves: a tap is an offset. With one,
// the rows are first split into their even and odd columns.
#include "conv_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../../base/aligned.h"
#include "conv_geometry.h"
#include "row_weights.h"
#include "rows_isa.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int64_t kSplit = 2;  // the one horizontal stride beside 1
constexpr int64_t kMostGroups = kMaxGroups;
constexpr double kFrameCount = 12.0;  // see PrefersFrames

// How columns of taps find their input.
struct Columns {
  int64_t left = 0;                      // floats before a channel's first that the leftmost tap reads
  int64_t planes = 1;                    // even and odd columns, as far as taps need them
  int64_t first_plane = 0;               // 1 where only odd ones are needed
  int64_t channel_spacing = 0;           // floats from channel to channel of what is read
  int64_t plane_floats = 0;              // of all channels of one plane, with its margin
  std::vector<int64_t> offsets, shifts;  // see RowTaps
};

int64_t FloorDiv(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// False where some tap would read pixels of another channel.
bool FindColumns(const ConvAttributes& a, int64_t width, int64_t out_width, bool framed, Columns* columns) {
  const int64_t stride = a.strides[1], out_spacing = RowSpacing(out_width);
  const bool split = stride != 1;
  if (split && (stride != kSplit || kSplit * out_spacing > RowSpacing(width))) return false;
  columns->channel_spacing = split ? out_spacing : RowSpacing(width);
  const int64_t zeros = columns->channel_spacing - out_width;
  columns->plane_floats = RowFloats(a.in_channels, split ? out_width : width);
  std::vector<int64_t> shifts, phases;
  for (int64_t s = 0; s < a.kernel[1]; ++s) {
    const int64_t at = s * a.dilations[1] - a.pads[1];
    shifts.push_back(FloorDiv(at, stride));
    phases.push_back(at - shifts.back() * stride);
    if (shifts.back() < -std::min(zeros, kRowMargin) || shifts.back() > zeros) return false;
  }
  columns->first_plane = *std::min_element(phases.begin(), phases.end());
  columns->planes = *std::max_element(phases.begin(), phases.end()) - columns->first_plane + 1;
  columns->left = framed ? 0 : std::max<int64_t>(0, -*std::min_element(shifts.begin(), shifts.end()));
  for (size_t s = 0; s < shifts.size(); ++s) {
    const int64_t plane = (phases[s] - columns->first_plane) * columns->plane_floats;
    columns->offsets.push_back(framed ? plane : plane + shifts[s] + columns->left);
  }
  if (framed) columns->shifts = shifts;
  return true;
}

class CsrRows final : public RowConv {
 public:
  CsrRows(const Isa& isa, const ConvAttributes& a, const Matrix& matrix, int64_t width, int64_t out_width,
          const Columns& columns, const RowTaps& taps)
      : isa_(isa),
        attributes_(a),
        columns_(columns),
        spacing_(RowSpacing(width)),
        out_width_(out_width),
        out_spacing_(RowSpacing(out_width)),
        row_groups_((out_width + kGroup - 1) / kGroup),
        weights_(matrix, taps),
        zeros_(static_cast<size_t>(weights_.reach() + row_groups_ * kGroup), 0.0f) {}

  int64_t panel_rows() const override { return std::max<int64_t>(1, kMostGroups / row_groups_); }
  size_t weight_bytes() const override { return weights_.bytes(); }

  size_t ScratchBytes() const override {
    const int64_t sums = SumsFloats();
    const int64_t rows = split() ? panel_rows() * attributes_.kernel[0] : 0;
    return static_cast<size_t>(sums + rows * SplitFloats()) * sizeof(float) + 2 * kCacheLine;
  }

  void Run(const float* const* input, int64_t count, const Epilogue& ending, const RowTarget& target,
           void* scratch) const override {
    float* sums = AlignUp<float>(scratch) + kGroup;
    float* space = sums - kGroup + SumsFloats();
    // For each output row and row of taps.
    std::vector<const float*> rows;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t r = 0; r < attributes_.kernel[0]; ++r) {
        const int64_t at = j * attributes_.strides[0] + r * attributes_.dilations[0];
        rows.push_back(split() ? Split(input, j, r, at, &rows, space) : input[at]);
      }
    }
    const int64_t groups = count * row_groups_, cuts = (groups + kMostGroups - 1) / kMostGroups;
    for (int64_t cut = 0; cut < cuts; ++cut) {
      RunGroups(rows, groups * cut / cuts, groups * (cut + 1) / cuts, ending, target, sums);
    }
    for (int64_t j = 0; j < count; ++j) Finish(ending, target, j);
  }

 private:
  bool split() const { return attributes_.strides[1] != 1; }
  int64_t SumsFloats() const { return weights_.largest_part() * kPanelColumns + 2 * kGroup; }
  int64_t SplitFloats() const { return columns_.planes * columns_.plane_floats; }

  // The row of input for row of taps r of output row j, split; the one that was split for another, if any.
  const float* Split(const float* const* input, int64_t j, int64_t r, int64_t at,
                     const std::vector<const float*>* done, float* space) const {
    if (input[at] == nullptr) return nullptr;
    for (int64_t i = 0; i < static_cast<int64_t>(done->size()); ++i) {
      const int64_t there = i / attributes_.kernel[0] * attributes_.strides[0] +
                            i % attributes_.kernel[0] * attributes_.dilations[0];
      if (there == at) return (*done)[static_cast<size_t>(i)];
    }
    float* first = space + (j * attributes_.kernel[0] + r) * SplitFloats();
    for (int64_t plane = 0; plane < columns_.planes; ++plane) {
      float* margin = first + plane * columns_.plane_floats;
      std::memset(margin, 0, kRowMargin * sizeof(float));
      isa_.take_every(input[at] + columns_.first_plane + plane, attributes_.in_channels, spacing_,
                      out_spacing_, kSplit, margin + kRowMargin);
    }
    return first + kRowMargin;
  }

  // Groups of 16 pixels [first, last) of all rows, in order; not more than kMostGroups.
  void RunGroups(const std::vector<const float*>& rows, int64_t first, int64_t last, const Epilogue& ending,
                 const RowTarget& target, float* sums) const {
    const int count = static_cast<int>(last - first);
    for (int part = 0; part < weights_.parts(); ++part) {
      const RowOutput output = Output(first, count, weights_.first_row(part), ending, target);
      const int passes = weights_.passes(part);
      int64_t shift = 0;
      for (int i = 0; i < passes; ++i) {
        const RowWeights::Pass pass = weights_.At(part, i);
        const bool begins = i == 0, ends = i + 1 == passes;
        RowGroups groups = {{}, count, first / row_groups_ == (last - 1) / row_groups_};
        bool any = false;
        for (int g = 0; g < count; ++g) {
          const int64_t group = first + g, row = group / row_groups_, at = group % row_groups_ * kGroup;
          const float* x = rows[static_cast<size_t>(row * attributes_.kernel[0] + pass.tap_row)];
          any = any || x != nullptr;
          groups.x[g] = x == nullptr ? zeros_.data() + at
                                     : x + pass.first_channel * columns_.channel_spacing - columns_.left + at;
        }
        for (int g = count; g < kMaxGroups; ++g) groups.x[g] = groups.x[0];
        if (!begins && pass.shift != shift) {
          Move(sums, weights_.last_row(part) - weights_.first_row(part), first, count, pass.shift - shift);
        }
        if (any || begins || ends) {
          isa_.rows->multiply(pass.segment, groups, sums, begins, ends ? &output : nullptr);
        }
        shift = pass.shift;
      }
    }
  }

  // Takes up sums that were left for one shift for one that is larger by `by`.
  void Move(float* sums, int64_t outputs, int64_t first, int count, int64_t by) const {
    uint32_t keep[kMaxGroups];
    for (int g = 0; g < count; ++g) {
      const bool begins = (first + g) % row_groups_ == 0;
      keep[g] = begins && by > 0 ? 0xffffu << by & 0xffffu : 0xffffu;
    }
    isa_.rows->move(sums, outputs, count, static_cast<int>(-by), keep);
  }

  RowOutput Output(int64_t first, int count, int64_t first_output, const Epilogue& ending,
                   const RowTarget& target) const {
    RowOutput out = {};
    for (int g = 0; g < count; ++g) {
      const int64_t row = (first + g) / row_groups_, at = (first + g) % row_groups_ * kGroup;
      const int64_t pixels = std::min<int64_t>(kGroup, out_width_ - at);
      out.y[g] = target.rows[row] + first_output * target.channel_stride + at;
      if (target.residual != nullptr)
        out.residual[g] = target.residual[row] + first_output * out_spacing_ + at;
      out.pixels[g] = (uint32_t{1} << pixels) - 1;
    }
    const float infinity = std::numeric_limits<float>::infinity();
    out.y_stride = target.channel_stride;
    out.residual_stride = out_spacing_;
    out.has_residual = target.residual != nullptr;
    out.planes = target.planes;
    out.bias = ending.bias != nullptr ? ending.bias + first_output : nullptr;
    out.low = ending.activation == Activation::kClip   ? ending.low
              : ending.activation == Activation::kRelu ? 0.0f
                                                       : -infinity;
    out.high = ending.activation == Activation::kClip ? ending.high : infinity;
    out.rows = attributes_.out_channels - first_output;
    return out;
  }

  // What the product leaves to be done to output row j: other activations, and zeros around it.
  void Finish(const Epilogue& ending, const RowTarget& target, int64_t j) const {
    float* y = target.rows[j];
    if (!target.planes) {
      std::memset(y - kRowMargin, 0, kRowMargin * sizeof(float));
      const int64_t written = row_groups_ * kGroup;
      for (int64_t c = 0; c < attributes_.out_channels && written < out_spacing_; ++c) {
        std::memset(y + c * out_spacing_ + written, 0,
                    static_cast<size_t>(out_spacing_ - written) * sizeof(float));
      }
    }
    if (ending.activation == Activation::kNone || ending.activation == Activation::kRelu ||
        ending.activation == Activation::kClip) {
      return;
    }
    for (int64_t c = 0; c < attributes_.out_channels; ++c) {
      isa_.rows->activate(ending, y + c * target.channel_stride, out_width_);
    }
  }

  const Isa& isa_;
  ConvAttributes attributes_;
  Columns columns_;
  int64_t spacing_;
  int64_t out_width_, out_spacing_;
  int64_t row_groups_;  // of 16 pixels, in a row of output
  RowWeights weights_;
  std::vector<float> zeros_;  // what taps above and below a map read
};

// Whether passes are made for each shift of pixels: they must bring enough non-zeros to an output. Blocks of
// four outputs and more are bound by their multiplications, however their input lies. Rows wider than a panel
// are cut, and sums cannot move from one cut to the next.
bool PrefersFrames(const ConvAttributes& a, const Matrix& matrix, int64_t out_width) {
  if (a.kernel[1] == 1 || out_width >= kMostGroups * kGroup || matrix.block_rows > 2) return false;
  const double of_tap =
      static_cast<double>(matrix.blocks) / static_cast<double>(matrix.lines() * a.kernel[0] * a.kernel[1]);
  const double of_pass = std::min(of_tap, of_tap * 128.0 / static_cast<double>(a.in_channels));
  return of_pass >= kFrameCount;
}

}  // namespace

std::shared_ptr<const RowConv> MakeRows(const Isa& isa, const ConvAttributes& attributes,
                                        const Matrix& matrix, int64_t width) {
  const ConvAttributes& a = attributes;
  const int64_t out_width =
      OutputExtent(width, a.pads[1] + a.pads[3], a.kernel[1], a.dilations[1], a.strides[1]);
  if (width < 1 || out_width < 1) return nullptr;
  if (out_width != (width + a.strides[1] - 1) / a.strides[1]) return nullptr;
  Columns columns;
  if (!FindColumns(a, width, out_width, PrefersFrames(a, matrix, out_width), &columns)) return nullptr;
  const RowTaps taps = {a.kernel[0],    a.kernel[1],     columns.channel_spacing,
                        columns.planes, columns.offsets, columns.shifts};
  if (!RowWeights::Fits(taps)) return nullptr;
  return std::make_shared<CsrRows>(isa, a, matrix, width, out_width, columns, taps);
}

}  // namespace csr
}  // namespace sparsify
