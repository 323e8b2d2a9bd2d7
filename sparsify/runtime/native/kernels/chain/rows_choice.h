// Which convolutions run on rows.
#ifndef SPARSIFY_KERNELS_CHAIN_ROWS_CHOICE_H_
#define SPARSIFY_KERNELS_CHAIN_ROWS_CHOICE_H_

#include <cstdint>
#include <memory>

#include "../api.h"
#include "plan.h"

namespace sparsify {
namespace chain {

// A convolution on rows from a map of size `input` to one of size `size`, cut into so many bands; null where
// the kernel cannot do it or rows are too short or too few.
std::shared_ptr<const RowConv> RowsOf(const ConvKernel& kernel, const Size& input, const Size& size,
                                      int64_t bands);

// About how many cycles fewer it takes for one image than on planes; negative where it takes more. Rows save
// packing, and waste products at their ends.
double GainOfRows(const ConvAttributes& attributes, const RowConv& conv, const Size& size);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_ROWS_CHOICE_H_
