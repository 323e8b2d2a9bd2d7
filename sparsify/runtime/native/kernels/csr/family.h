// The csr family: its instruction sets and its factories.
#ifndef SPARSIFY_KERNELS_CSR_FAMILY_H_
#define SPARSIFY_KERNELS_CSR_FAMILY_H_

#include <memory>
#include <string>

#include "../api.h"
#include "isa.h"
#include "packed.h"
#include "packed_pages.h"

namespace sparsify {
namespace csr {

size_t IsaCount();
const Isa& IsaAt(size_t index);
bool IsaSupported(size_t index);
// By name, or the best supported one for null; null and *error when there is no such one here.
const Isa* FindIsa(const char* name, std::string* error);

// `pages` are the matrix's, where other kernels of one node derive forms of it as well.
std::unique_ptr<LinearKernel> MakeLinear(const Isa& isa, const LinearAttributes& attributes,
                                         const Matrix& matrix,
                                         std::shared_ptr<const PackedPages> pages = nullptr);
// a's outputs are b's inputs.
std::unique_ptr<FeedForwardKernel> MakeFeedForward(const Isa& isa, const Matrix& a, const Matrix& b);
std::unique_ptr<ConvKernel> MakeConv(const Isa& isa, const ConvAttributes& attributes, const Matrix& matrix);

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_FAMILY_H_
