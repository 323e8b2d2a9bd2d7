// Memory of maps that are needed for a while, laid over each other.
#ifndef SPARSIFY_KERNELS_CHAIN_SLOTS_H_
#define SPARSIFY_KERNELS_CHAIN_SLOTS_H_

#include <cstdint>
#include <vector>

namespace sparsify {
namespace chain {

// Memory that is taken from one moment of a plan to another, both included.
struct Slot {
  int64_t first, last;
  int64_t floats;
  int64_t offset = 0;

  bool Meets(const Slot& other) const { return first <= other.last && other.first <= last; }
};

constexpr int64_t RoundToLine(int64_t floats) { return (floats + 15) / 16 * 16; }

// Sets the offsets, largest slots first, so that slots that meet do not overlap; returns the floats of all.
// Where all sizes are multiples of a cache line, so are the offsets.
int64_t PlaceSlots(std::vector<Slot>* slots);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_SLOTS_H_
