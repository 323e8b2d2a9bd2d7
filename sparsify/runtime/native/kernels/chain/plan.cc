#include "plan.h"

#include <algorithm>
#include <numeric>

#include "rows_plan.h"
#include "slots.h"

namespace sparsify {
namespace chain {
namespace {

// Output pixels below which a convolution reads its weights for too little, and fills its panels badly.
constexpr int64_t kFewColumns = 384;

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

int64_t Schedule::row_steps() const { return rows == nullptr ? 0 : rows->steps; }

void Place(int64_t maps, const std::vector<Flow>& flows, Schedule* schedule) {
  const std::vector<int64_t> last = LastReaders(maps, flows);
  const int64_t on_rows = schedule->row_steps(), steps = static_cast<int64_t>(flows.size());
  schedule->held = HeldImages(last, schedule->groups);
  constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<Slot> slots;
  std::vector<size_t> slot_of(flows.size(), kNone);
  for (int64_t at = 0; at + 1 < steps; ++at) {
    const size_t step = static_cast<size_t>(at);
    const Flow& flow = flows[step];
    const int64_t held = schedule->held[step];
    const bool inner = flow.residual >= maps && flow.residual != flow.input;
    const size_t residual = inner ? static_cast<size_t>(flow.residual - maps) : 0;
    if (at < on_rows && last[step] < on_rows) continue;
    if (at >= on_rows && inner && last[residual] == at && schedule->held[residual] == held) {
      slot_of[step] = slot_of[residual];
      slots[slot_of[step]].last = last[step];
    } else {
      // What waits for further images lies there while these pass through all steps before. Steps on rows
      // take turns.
      const int64_t first = at < on_rows || held > schedule->groups[step] ? 0 : at;
      slot_of[step] = slots.size();
      slots.push_back({first, last[step], RoundToLine(held * flow.floats)});
    }
  }
  if (on_rows > 0) slots.push_back({0, on_rows - 1, schedule->rows->floats});
  schedule->floats = PlaceSlots(&slots);
  if (on_rows > 0) schedule->rows_offset = slots.back().offset;
  schedule->offsets.assign(flows.size(), -1);
  for (size_t step = 0; step + 1 < flows.size(); ++step) {
    if (slot_of[step] != kNone) schedule->offsets[step] = slots[slot_of[step]].offset;
  }
}

}  // namespace chain
}  // namespace sparsify
