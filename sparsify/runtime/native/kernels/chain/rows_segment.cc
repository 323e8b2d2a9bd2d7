#include "rows_segment.h"

#include "rows_tasks.h"

namespace sparsify {
namespace chain {
namespace {

using Kept = RowNode::Kept;
using Work = RowNode::Work;

class Builder {
 public:
  Builder(const RowChain& chain, const std::vector<Readers>& readers, int64_t steps, int64_t begin,
          int64_t end, bool shared)
      : chain_(chain),
        readers_(readers),
        steps_(steps),
        begin_(begin),
        end_(end),
        shared_(shared),
        node_(chain.values.size(), -1) {}

  std::vector<RowNode> Build() {
    for (int64_t step = begin_; step < end_; ++step) {
      AddSource(chain_.steps[static_cast<size_t>(step)].input);
      AddSource(chain_.steps[static_cast<size_t>(step)].residual);
    }
    for (int64_t step = begin_; step < end_; ++step) AddConv(step);
    for (const int64_t value : copied_) {
      RowNode copy = Node(Work::kCopy, Kept::kWhole, value);
      copy.input = node_[static_cast<size_t>(value)];
      nodes_.push_back(copy);
    }
    return std::move(nodes_);
  }

 private:
  RowNode Node(Work work, Kept kept, int64_t value) const {
    const RowValue& map = chain_.values[static_cast<size_t>(value)];
    RowNode node;
    node.work = work;
    node.kept = kept;
    node.value = value;
    node.channels = map.channels;
    node.size = map.size;
    return node;
  }

  void Add(RowNode node) {
    node_[static_cast<size_t>(node.value)] = static_cast<int32_t>(nodes_.size());
    nodes_.push_back(std::move(node));
  }

  // A map from outside the segment.
  void AddSource(int64_t value) {
    if (value < 0 || value - chain_.maps() >= begin_ || node_[static_cast<size_t>(value)] >= 0) return;
    const bool outer = value < chain_.maps();
    Add(outer ? Node(Work::kImport, Kept::kRing, value) : Node(Work::kGiven, Kept::kWhole, value));
  }

  void AddConv(int64_t number) {
    const RowStep& step = chain_.steps[static_cast<size_t>(number)];
    const int64_t value = chain_.maps() + number;
    const Readers& readers = readers_[static_cast<size_t>(value)];
    const bool last = number + 1 == static_cast<int64_t>(chain_.steps.size());
    Kept kept = Kept::kRing;
    if (last || readers.last >= steps_) {
      kept = Kept::kPlanes;
    } else if (readers.last >= end_ && shared_ && readers.first < end_) {
      // Bands need rows of each other, which they compute into rings of their own.
      copied_.push_back(value);
    } else if (readers.last >= end_) {
      kept = Kept::kWhole;
    }
    RowNode node = Node(Work::kConv, kept, value);
    node.input = node_[static_cast<size_t>(step.input)];
    if (step.residual >= 0) node.residual = node_[static_cast<size_t>(step.residual)];
    node.stride = step.stride;
    node.reach = step.reach;
    node.pad = step.pad;
    node.panel = step.conv->panel_rows();
    node.conv = step.conv;
    node.ending = step.ending;
    Add(std::move(node));
  }

  const RowChain& chain_;
  const std::vector<Readers>& readers_;
  const int64_t steps_, begin_, end_;
  const bool shared_;
  std::vector<int32_t> node_;  // of each value
  std::vector<int64_t> copied_;
  std::vector<RowNode> nodes_;
};

// A sum may take the place of a whole map that is read for the last time by then, row for row.
bool InPlace(const RowNode& node, const std::vector<RowNode>& nodes, const std::vector<RowLives>& lives,
             const std::vector<Readers>& readers, int64_t end) {
  if (node.kept != Kept::kWhole || node.residual < 0 || node.residual == node.input) return false;
  const size_t residual = static_cast<size_t>(node.residual);
  if (nodes[residual].work != Work::kGiven) return false;
  if (readers[static_cast<size_t>(nodes[residual].value)].last >= end) return false;
  const RowLives& sum = lives[static_cast<size_t>(&node - nodes.data())];
  for (size_t row = 0; row < sum.written.size(); ++row) {
    if (lives[residual].last[row] > sum.written[row]) return false;
  }
  return true;
}

}  // namespace

RowSegment MakeSegment(const RowChain& chain, const std::vector<Readers>& readers, int64_t steps,
                       int64_t begin, int64_t end, int64_t bands) {
  RowSegment segment;
  segment.nodes = Builder(chain, readers, steps, begin, end, bands > 1).Build();
  std::vector<RowLives> lives;
  for (int64_t band = 0; band < bands; ++band) {
    segment.bands.push_back(PullRows(segment.nodes, band, bands));
    lives = FindLives(segment.nodes, segment.bands.back());
    for (size_t i = 0; i < segment.nodes.size(); ++i) {
      segment.nodes[i].capacity = std::max(segment.nodes[i].capacity, RowsAtOnce(lives[i]));
    }
  }
  for (RowNode& node : segment.nodes) {
    segment.held_floats += node.capacity * node.row_floats();
    if (node.conv != nullptr) segment.weight_bytes += static_cast<int64_t>(node.conv->weight_bytes());
    if (node.kept == Kept::kWhole) node.capacity = node.size.height;
    if (node.kept == Kept::kWhole || node.work == Work::kImport) {
      segment.moved_floats += node.size.height * node.row_floats();
    }
    node.in_place = bands == 1 && InPlace(node, segment.nodes, lives, readers, end);
  }
  return segment;
}

}  // namespace chain
}  // namespace sparsify
