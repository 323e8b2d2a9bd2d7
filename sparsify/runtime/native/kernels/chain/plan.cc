#include "plan.h"

#include <algorithm>
#include <numeric>

namespace sparsify {
namespace chain {
namespace {

constexpr int64_t kLine = 16;  // floats of a cache line

// Output pixels below which a convolution reads its weights for too little, and fills its panels badly.
constexpr int64_t kFewColumns = 384;

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

// Images that each step's value holds: as many as the step that reads it last takes at once.
std::vector<int64_t> HeldImages(const std::vector<int64_t>& last, const std::vector<int64_t>& groups) {
  std::vector<int64_t> held(groups);
  for (size_t step = 0; step < groups.size(); ++step) {
    held[step] = std::max(held[step], groups[static_cast<size_t>(last[step])]);
  }
  return held;
}

}  // namespace

std::vector<int64_t> Groups(const std::vector<Size>& sizes, int64_t images) {
  std::vector<int64_t> groups(sizes.size());
  int64_t most = images;
  for (size_t step = sizes.size(); step-- > 0;) {
    int64_t group = 1;
    while (group < most && group * sizes[step].pixels() < kFewColumns) group *= 2;
    groups[step] = most = group;
  }
  return groups;
}

void Place(int64_t maps, const std::vector<Flow>& flows, Schedule* schedule) {
  const std::vector<int64_t> last = LastReaders(maps, flows);
  schedule->held = HeldImages(last, schedule->groups);
  std::vector<Slot> slots;
  std::vector<size_t> slot_of(flows.size());
  for (size_t step = 0; step + 1 < flows.size(); ++step) {
    const Flow& flow = flows[step];
    const int64_t at = static_cast<int64_t>(step), held = schedule->held[step];
    const bool inner = flow.residual >= maps && flow.residual != flow.input;
    const size_t residual = inner ? static_cast<size_t>(flow.residual - maps) : 0;
    if (inner && last[residual] == at && schedule->held[residual] == held) {
      slot_of[step] = slot_of[residual];
      slots[slot_of[step]].last = last[step];
    } else {
      // What waits for further images lies there while these pass through all steps before.
      const int64_t first = held > schedule->groups[step] ? 0 : at;
      slot_of[step] = slots.size();
      slots.push_back({first, last[step], (held * flow.floats + kLine - 1) / kLine * kLine, 0});
    }
  }
  std::vector<size_t> order(slots.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return slots[a].floats > slots[b].floats; });
  std::vector<const Slot*> placed;
  schedule->floats = 0;
  for (const size_t i : order) {
    slots[i].offset = LowestOffset(slots[i], placed);
    schedule->floats = std::max(schedule->floats, slots[i].offset + slots[i].floats);
    placed.push_back(&slots[i]);
  }
  schedule->offsets.assign(flows.size(), -1);
  for (size_t step = 0; step + 1 < flows.size(); ++step) {
    schedule->offsets[step] = slots[slot_of[step]].offset;
  }
}

}  // namespace chain
}  // namespace sparsify
