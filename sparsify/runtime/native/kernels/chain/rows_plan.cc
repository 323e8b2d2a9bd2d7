#include "rows_plan.h"

#include <algorithm>
#include <limits>

#include "../../base/aligned.h"
#include "../../base/tuning.h"
#include "rows_segment.h"
#include "slots.h"

namespace sparsify {
namespace chain {
namespace {

// Of the second-level cache, in 1024ths: weights of a segment and the rows that it needs at once.
constexpr int64_t kSegmentShare = 720;
constexpr int64_t kMostSteps = 48;  // of a segment
// What a segment of its own costs beside the maps that pass from one to the next.
constexpr int64_t kCutFloats = 1 << 14;

std::vector<Readers> FindReaders(const RowChain& chain, int64_t steps) {
  std::vector<Readers> readers(chain.values.size());
  readers.back().beyond = true;
  for (int64_t step = 0; step < static_cast<int64_t>(chain.steps.size()); ++step) {
    const RowStep& reader = chain.steps[static_cast<size_t>(step)];
    for (const int64_t value : {reader.input, reader.residual}) {
      if (value < 0) continue;
      Readers& found = readers[static_cast<size_t>(value)];
      if (step >= steps) {
        found.beyond = true;
        continue;
      }
      if (found.first < 0) found.first = step;
      found.last = step;
    }
  }
  return readers;
}

int64_t StepsOnRows(const RowChain& chain) {
  int64_t best = 0;
  double gain = 0.0, most = 0.0;
  for (size_t step = 0; step < chain.steps.size() && chain.steps[step].conv != nullptr; ++step) {
    gain += chain.steps[step].gain;
    if (gain <= most) continue;
    most = gain;
    best = static_cast<int64_t>(step) + 1;
  }
  return best;
}

// Segments within the budget between which the least is moved.
std::vector<RowSegment> Cut(const RowChain& chain, const std::vector<Readers>& readers, int64_t steps,
                            int64_t bands) {
  const int64_t segment_bytes = Tuned().l2_bytes / 1024 * kSegmentShare;
  std::vector<int64_t> cost(static_cast<size_t>(steps) + 1, std::numeric_limits<int64_t>::max());
  std::vector<int64_t> begin_of(cost.size(), 0);
  cost[0] = 0;
  for (int64_t begin = 0; begin < steps; ++begin) {
    for (int64_t end = begin + 1; end <= std::min(steps, begin + kMostSteps); ++end) {
      const RowSegment segment = MakeSegment(chain, readers, begin, end, 1);
      const int64_t bytes = segment.weight_bytes + segment.held_floats * static_cast<int64_t>(sizeof(float));
      if (end > begin + 1 && bytes > segment_bytes) break;
      const int64_t sum = cost[static_cast<size_t>(begin)] + segment.moved_floats + kCutFloats;
      if (sum < cost[static_cast<size_t>(end)]) {
        cost[static_cast<size_t>(end)] = sum;
        begin_of[static_cast<size_t>(end)] = begin;
      }
    }
  }
  std::vector<RowSegment> segments;
  for (int64_t end = steps; end > 0; end = begin_of[static_cast<size_t>(end)]) {
    segments.push_back(MakeSegment(chain, readers, begin_of[static_cast<size_t>(end)], end, bands));
  }
  std::reverse(segments.begin(), segments.end());
  return segments;
}

// Lays rings and whole maps over each other; a moment is a segment.
class Placer {
 public:
  Placer(RowPlan* plan, size_t values) : plan_(plan), slot_(values, kNone), last_(values, 0) {
    for (size_t s = 0; s < plan->segments.size(); ++s) {
      for (const RowNode& node : plan->segments[s].nodes) last_[At(node)] = static_cast<int64_t>(s);
    }
  }

  void Place() {
    std::vector<std::pair<RowNode*, size_t>> placed;
    for (size_t s = 0; s < plan_->segments.size(); ++s) {
      std::vector<size_t> slots;  // of each node
      for (RowNode& node : plan_->segments[s].nodes) {
        slots.push_back(kNone);
        if (node.kept == RowNode::Kept::kPlanes) continue;
        const size_t shared = node.place_of < 0 ? kNone : slots[static_cast<size_t>(node.place_of)];
        slots.back() = SlotOf(node, shared, static_cast<int64_t>(s));
        placed.emplace_back(&node, slots.back());
      }
    }
    plan_->floats = PlaceSlots(&slots_);
    for (const auto& [node, slot] : placed) {
      node->offset = slots_[slot].offset;
      if (node->kept == RowNode::Kept::kRing) node->band_stride = node->capacity * node->row_floats();
    }
  }

 private:
  static constexpr size_t kNone = std::numeric_limits<size_t>::max();

  static size_t At(const RowNode& node) { return static_cast<size_t>(node.value); }

  size_t SlotOf(const RowNode& node, size_t shared, int64_t now) {
    const int64_t floats = node.capacity * node.row_floats();
    if (node.kept == RowNode::Kept::kRing) {
      if (shared != kNone) return shared;
      slots_.push_back({now, now, plan_->bands * floats});
      return slots_.size() - 1;
    }
    size_t& slot = slot_[At(node)];
    if (shared != kNone) {
      slot = shared;
      slots_[slot].last = std::max(slots_[slot].last, last_[At(node)]);
    } else if (slot == kNone) {
      slot = slots_.size();
      slots_.push_back({now, last_[At(node)], floats});
    }
    return slot;
  }

  RowPlan* plan_;
  std::vector<Slot> slots_;
  std::vector<size_t> slot_;   // of each value that is kept whole
  std::vector<int64_t> last_;  // segment of each value
};

}  // namespace

std::shared_ptr<const RowPlan> MakeRowPlan(const RowChain& chain, int64_t bands) {
  const int64_t steps = StepsOnRows(chain);
  if (steps == 0) return nullptr;
  auto plan = std::make_shared<RowPlan>();
  plan->steps = steps;
  plan->bands = bands;
  plan->segments = Cut(chain, FindReaders(chain, steps), steps, bands);
  Placer(plan.get(), chain.values.size()).Place();
  for (const RowSegment& segment : plan->segments) {
    for (const RowNode& node : segment.nodes) {
      if (node.conv == nullptr) continue;
      plan->scratch_bytes = std::max(plan->scratch_bytes, node.conv->ScratchBytes());
    }
  }
  plan->scratch_bytes = RoundUp(plan->scratch_bytes, kCacheLine);
  return plan;
}

}  // namespace chain
}  // namespace sparsify
