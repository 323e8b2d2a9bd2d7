// A packed convolution on maps that are kept as rows of pixels.
#ifndef SPARSIFY_KERNELS_CSR_CONV_ROWS_H_
#define SPARSIFY_KERNELS_CSR_CONV_ROWS_H_

#include <cstdint>
#include <memory>

#include "../api.h"
#include "isa.h"
#include "packed.h"

namespace sparsify {
namespace csr {

// Null where maps of this width do not suit the convolution: what it reads left and right of a map must lie
// in the zeros between channels, and a horizontal stride must be 2.
std::shared_ptr<const RowConv> MakeRows(const Isa& isa, const ConvAttributes& attributes,
                                        const Matrix& matrix, int64_t width);

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_CONV_ROWS_H_
