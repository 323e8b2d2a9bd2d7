#include "slots.h"

#include <algorithm>
#include <numeric>

namespace sparsify {
namespace chain {
namespace {

// The lowest place where a slot meets none of those that are placed.
int64_t LowestOffset(const Slot& slot, const std::vector<const Slot*>& placed) {
  std::vector<const Slot*> near;
  for (const Slot* other : placed) {
    if (slot.Meets(*other)) near.push_back(other);
  }
  std::sort(near.begin(), near.end(), [](const Slot* a, const Slot* b) { return a->offset < b->offset; });
  int64_t offset = 0;
  for (const Slot* other : near) {
    if (offset + slot.floats <= other->offset) break;
    offset = std::max(offset, other->offset + other->floats);
  }
  return offset;
}

}  // namespace

int64_t PlaceSlots(std::vector<Slot>* slots) {
  std::vector<size_t> order(slots->size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return (*slots)[a].floats > (*slots)[b].floats; });
  std::vector<const Slot*> placed;
  int64_t floats = 0;
  for (const size_t i : order) {
    Slot& slot = (*slots)[i];
    slot.offset = LowestOffset(slot, placed);
    floats = std::max(floats, slot.offset + slot.floats);
    placed.push_back(&slot);
  }
  return floats;
}

}  // namespace chain
}  // namespace sparsify
