#include "plan.h"

#include <algorithm>
#include <numeric>

namespace sparsify {
namespace chain {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line

// Memory of one or several maps, from the step that first writes to the one that last reads.
struct Slot {
  int64_t first, last;
  int64_t floats;
  int64_t offset;

  bool Meets(const Slot& other) const { return first <= other.last && other.first <= last; }
};

// The step that reads each step's value last; its own where none does.
std::vector<int64_t> LastReaders(int64_t maps, const std::vector<Flow>& flows) {
  std::vector<int64_t> last(flows.size());
  std::iota(last.begin(), last.end(), int64_t{0});
  for (size_t step = 0; step < flows.size(); ++step) {
    for (const int64_t value : {flows[step].input, flows[step].residual}) {
      if (value >= maps) last[static_cast<size_t>(value - maps)] = static_cast<int64_t>(step);
    }
  }
  return last;
}

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

void Place(int64_t maps, const std::vector<Flow>& flows, Plan* plan) {
  const std::vector<int64_t> last = LastReaders(maps, flows);
  std::vector<Slot> slots;
  std::vector<size_t> slot_of(flows.size());
  for (size_t step = 0; step + 1 < flows.size(); ++step) {
    const Flow& flow = flows[step];
    const int64_t at = static_cast<int64_t>(step);
    const bool inner = flow.residual >= maps && flow.residual != flow.input;
    const size_t residual = inner ? static_cast<size_t>(flow.residual - maps) : 0;
    if (inner && last[residual] == at) {
      slot_of[step] = slot_of[residual];
      slots[slot_of[step]].last = last[step];
    } else {
      slot_of[step] = slots.size();
      slots.push_back({at, last[step], (flow.floats + kLine - 1) / kLine * kLine, 0});
    }
  }
  std::vector<size_t> order(slots.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return slots[a].floats > slots[b].floats; });
  std::vector<const Slot*> placed;
  plan->floats = 0;
  for (const size_t i : order) {
    slots[i].offset = LowestOffset(slots[i], placed);
    plan->floats = std::max(plan->floats, slots[i].offset + slots[i].floats);
    placed.push_back(&slots[i]);
  }
  plan->offsets.assign(flows.size(), -1);
  for (size_t step = 0; step + 1 < flows.size(); ++step) {
    plan->offsets[step] = slots[slot_of[step]].offset;
  }
}

}  // namespace chain
}  // namespace sparsify
