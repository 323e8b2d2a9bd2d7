// Where the maps of a chain lie in scratch memory.
#ifndef SPARSIFY_KERNELS_CHAIN_PLAN_H_
#define SPARSIFY_KERNELS_CHAIN_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsify {
namespace chain {

struct Size {
  int64_t height = 0, width = 0;

  bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

// What a step reads and writes, seen from the memory.
struct Flow {
  int64_t input, residual;  // values; -1 for no residual
  int64_t floats;           // of what it gives, for one image
};

struct Plan {
  std::vector<Size> maps;        // outer ones
  std::vector<Size> sizes;       // of what each step gives
  std::vector<int64_t> offsets;  // of what each step gives, in floats of one image; -1 for the last
  int64_t floats = 0;            // of one image
  size_t kernel_bytes = 0;       // what the neediest kernel wants for one image on one thread
};

// Fills offsets and floats. Maps that are never needed at once share memory, and a sum takes the place of its
// residual where nothing else reads that any more.
void Place(int64_t maps, const std::vector<Flow>& flows, Plan* plan);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_PLAN_H_
