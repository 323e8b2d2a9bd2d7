// The memory of a packed weight, which is read again only when another form is derived from it. One for each
// weight of a node, whatever the number of kernels that run it.
#ifndef SPARSIFY_KERNELS_CSR_PACKED_PAGES_H_
#define SPARSIFY_KERNELS_CSR_PACKED_PAGES_H_

#include <atomic>

#include "packed.h"

namespace sparsify {
namespace csr {

// Safe from several threads.
class PackedPages {
 public:
  explicit PackedPages(const Matrix& matrix) : matrix_(matrix) {}

  // A form was derived. Unless some run reads the packed tensors themselves, their pages may go.
  void Derived() const;

  // A run reads the packed tensors themselves, and others like it will: from now on their pages stay.
  void ReadInPlace() const {
    if (!in_place_.load(std::memory_order_relaxed)) in_place_.store(true, std::memory_order_relaxed);
  }

 private:
  Matrix matrix_;
  mutable std::atomic<bool> in_place_{false};
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PACKED_PAGES_H_
