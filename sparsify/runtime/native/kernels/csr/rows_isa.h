// What an instruction set provides for convolutions on maps kept as rows (see ../rows.h and conv_rows.h).
//
// Up to 64 output pixels, as groups of 16, pass over the weight at once. A group reads its input at an
// address of its own, so groups may lie in one row or in several. The weight is cut into passes over a few
// channels of one row of taps; between passes the sums of a part of the outputs wait in a panel of
// [outputs][64] floats. The first pass begins with zeros, and the last one writes finished outputs straight
// from registers.
#ifndef SPARSIFY_KERNELS_CSR_ROWS_ISA_H_
#define SPARSIFY_KERNELS_CSR_ROWS_ISA_H_

#include "isa.h"

namespace sparsify {
namespace csr {

struct RowGroups {
  const float* x[kMaxGroups];  // offset 0 of the pass, for each group's first pixel
  int count;                   // groups
  bool near;                   // each group stands 16 floats behind the one before
};

struct RowOutput {
  float* y[kMaxGroups];  // output 0 of the part, each group's first pixel
  const float* residual[kMaxGroups];
  uint32_t pixels[kMaxGroups];  // lanes that are pixels
  int64_t y_stride;             // floats from output to output
  int64_t residual_stride;
  bool has_residual;
  bool planes;        // write pixels only; else zeros in the other lanes
  const float* bias;  // of output 0 of the part, or null
  float low, high;    // of the result
  int64_t rows;       // outputs of the part that there are; a block may have more
};

struct RowsIsa {
  // The entries of a segment, whose offsets count floats. Sums begin with zeros if `first`, which takes a
  // segment that lists every output once, and are finished into *last if that is given, for which the same
  // holds; with both, `sums` is not touched.
  void (*multiply)(const PanelSegment& segment, const RowGroups& groups, float* sums, bool first,
                   const RowOutput* last);
  // Waiting sums of `outputs` outputs move by `shift` pixels: pixel x gets the sum of pixel x + shift of the
  // same row, or zero where `keep` lacks its lane. 16 floats before and behind `sums` are there.
  void (*move)(float* sums, int64_t outputs, int groups, int shift, const uint32_t* keep);
  // y[i] = activation(y[i]) for i < count.
  void (*activate)(const Epilogue& ending, float* y, int64_t count);
};

#define SPARSIFY_DECLARE_ROWS(name, condition) extern const RowsIsa rows_##name;
SPARSIFY_CSR_ISAS(SPARSIFY_DECLARE_ROWS)
#undef SPARSIFY_DECLARE_ROWS

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_ROWS_ISA_H_
