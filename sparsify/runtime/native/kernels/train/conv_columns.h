// Pixels of images as the columns of panels, for convolutions under training.
//
// Every product reads planes: those of X, one for each phase (row mod stride, column mod stride), or those of
// dY. All have rows of the same pitch as the pixels that are written, so sixteen pixels that follow each
// other are read in one go for every tap, and a mask leaves out what lies beyond an edge. An image takes a
// whole number of groups of sixteen columns; a panel may hold groups of several images.
#ifndef SPARSIFY_KERNELS_TRAIN_CONV_COLUMNS_H_
#define SPARSIFY_KERNELS_TRAIN_CONV_COLUMNS_H_

#include <cstdint>
#include <vector>

#include "../api.h"
#include "../csr/isa.h"

namespace sparsify {
namespace train {

// One phase of an image: pixels (top + i * stride, left + j * stride), i < rows, j < columns.
struct Phase {
  int64_t top, left, rows, columns;
};

// Where pixel (0, 0) of a product finds its value: in a plane, so many rows and columns away.
struct Tap {
  int64_t plane, row, column;
};

// A batch of images [image, channel, height, width] as planes, and the taps that read them.
struct Planes {
  int64_t height = 0, width = 0, channels = 0;
  int64_t strides[2] = {1, 1};
  int64_t pitch = 0;
  int64_t plane_floats = 0;
  std::vector<Phase> phases;
  std::vector<Tap> taps;

  // The image itself has this form.
  bool direct() const { return strides[0] == 1 && strides[1] == 1 && pitch == width; }
  int64_t channel_stride() const { return plane_floats * static_cast<int64_t>(phases.size()); }
  int64_t image_stride() const { return channels * channel_stride(); }
};

// Copies the phases of one channel.
void CopyChannel(const csr::Isa& isa, const Planes& planes, const float* x, float* copy);

// Consecutive columns of a group that are neighbours in an image.
struct Run {
  int64_t row, column, lane, length;
};

// A grid of rows x columns pixels, and for each group of sixteen what its taps may read.
class Columns {
 public:
  Columns(const Planes& planes, int64_t rows, int64_t columns);

  int64_t groups() const { return groups_; }  // of an image
  const Planes& planes() const { return planes_; }
  const uint16_t* masks(int64_t group) const { return masks_.data() + group * taps_; }
  const std::vector<Run>& runs(int64_t group) const { return runs_[static_cast<size_t>(group)]; }
  const std::vector<int64_t>& offsets() const { return offsets_; }

 private:
  const Planes& planes_;
  int64_t groups_, taps_;
  std::vector<int64_t> offsets_;  // of the taps
  std::vector<uint16_t> masks_;   // [groups][taps]
  std::vector<std::vector<Run>> runs_;
};

// Groups [first, first + count) of a batch as the columns of a panel that is read.
class Pixels {
 public:
  Pixels(const csr::Isa& isa, const Columns& columns, const float* x, int64_t first, int64_t count);

  // Inputs are channel * taps + tap.
  void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const;

 private:
  // Asks for the inputs that are packed next: channels lie apart, where no prefetcher looks.
  void Ask(int64_t first_input, int64_t depth, int groups) const;

  const csr::Isa& isa_;
  const Columns& columns_;
  const float* x_;
  int64_t furthest_;  // of the offsets: what the nearer taps read was there for the pixels before
  int64_t sources_[csr::kMaxGroups];
  uint32_t group_end_[csr::kMaxGroups];
  std::vector<uint16_t> masks_;
};

// Where the finished rows of a panel go: image [rows][plane], every step-th pixel of it.
struct Target {
  float* y;
  const float* bias;
  int64_t width;  // of an image
  int64_t plane, channels;
  int64_t top, left;
  int64_t strides[2];
};

void StorePixels(const csr::Isa& isa, const Columns& columns, const Target& target, int64_t first_group,
                 int64_t first, int64_t last, const float* panel, int groups);

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_CONV_COLUMNS_H_
