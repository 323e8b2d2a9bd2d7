// The sampled product: products of rows of dY and columns of X, summed over a panel's columns, at the active
// positions of a weight only. One source for each instruction set; see csr/isa.h for what these may include.
#ifndef SPARSIFY_KERNELS_TRAIN_SAMPLE_H_
#define SPARSIFY_KERNELS_TRAIN_SAMPLE_H_

#include "../csr/isa.h"

namespace sparsify {
namespace train {

// gradients[slot] (+)= sum over the panel's columns of panel[row of slot] * tile[input of slot], for the
// slots of a segment in order; added to what is there where `add`. Its values are not read. Columns beyond
// the last must be zero in both.
using Sample = void (*)(const csr::PanelSegment& segment, const float* tile, const float* panel, int groups,
                        bool add, float* gradients);

// Rows of a segment that are asked for ahead: a plan lists so many beyond its last.
constexpr int kRowsAhead = 2;

struct Sampler {
  const char* name;
  Sample sample;
  // sums[row] += the floats of each row of a panel.
  void (*add_rows)(const float* panel, int64_t rows, int groups, float* sums);
};

#if defined(__x86_64__) || defined(_M_X64)
#define SPARSIFY_SAMPLERS(ROW) ROW(scalar) ROW(avx2) ROW(avx512)
#else
#define SPARSIFY_SAMPLERS(ROW) ROW(scalar)
#endif

#define SPARSIFY_DECLARE_SAMPLER(name) extern const Sampler sampler_##name;
SPARSIFY_SAMPLERS(SPARSIFY_DECLARE_SAMPLER)
#undef SPARSIFY_DECLARE_SAMPLER

// The one that belongs to an instruction set of csr's table; plain C++ where none does.
const Sampler& SamplerOf(const csr::Isa& isa);

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_SAMPLE_H_
