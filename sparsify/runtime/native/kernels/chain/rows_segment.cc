#include "rows_segment.h"

#include <algorithm>
#include <utility>

#include "rows_tasks.h"

namespace sparsify {
namespace chain {
namespace {

using Kept = RowNode::Kept;
using Work = RowNode::Work;

// Rows that are copied at once, since they lie behind each other in a plane: of a ring, whose room grows with
// them, and of a whole map.
constexpr int64_t kCopiedRows = 4;
constexpr int64_t kCopiedWhole = 16;

class Builder {
 public:
  Builder(const RowChain& chain, const std::vector<Readers>& readers, int64_t begin, int64_t end, bool shared)
      : chain_(chain),
        readers_(readers),
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
    for (const auto& [value, kept] : copies_) {
      RowNode copy = Node(Work::kCopy, kept, value);
      copy.input = node_[static_cast<size_t>(value)];
      const bool whole = nodes_[static_cast<size_t>(copy.input)].kept == Kept::kWhole;
      copy.panel = whole ? kCopiedWhole : kCopiedRows;
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
    if (work == Work::kImport) node.panel = kCopiedRows;
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
    Kept kept = Kept::kRing;
    if (readers.beyond && readers.last < 0) {
      kept = Kept::kPlanes;
    } else if (readers.beyond) {
      copies_.emplace_back(value, Kept::kPlanes);
    }
    if (readers.last >= end_ && shared_ && readers.first < end_) {
      // Bands need rows of each other, which they compute into rings of their own.
      copies_.emplace_back(value, Kept::kWhole);
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
  const int64_t begin_, end_;
  const bool shared_;
  std::vector<int32_t> node_;  // of each value
  std::vector<std::pair<int64_t, Kept>> copies_;
  std::vector<RowNode> nodes_;
};

using BandLives = std::vector<std::vector<RowLives>>;  // of each band and node

// Whether a sum may take the place of its residual: each row is read for the last time by then. Not of a map
// that bands share, where a band would write what another still reads.
bool InPlace(const RowNode& node, size_t number, const std::vector<RowNode>& nodes, const BandLives& bands,
             const std::vector<Readers>& readers, int64_t end) {
  if (node.kept == Kept::kPlanes || node.residual < 0 || node.residual == node.input) return false;
  const RowNode& residual = nodes[static_cast<size_t>(node.residual)];
  if (residual.kept != node.kept) return false;
  if (node.kept == Kept::kWhole) {
    if (bands.size() > 1 || readers[static_cast<size_t>(residual.value)].last >= end) return false;
  }
  for (const std::vector<RowLives>& lives : bands) {
    const RowLives &sum = lives[number], &before = lives[static_cast<size_t>(node.residual)];
    for (size_t row = 0; row < sum.written.size(); ++row) {
      if (sum.written[row] >= 0 && before.last[row] > sum.written[row]) return false;
    }
  }
  return true;
}

// Nodes that share memory, and the rows for which it has room.
void ShareMemory(const std::vector<Readers>& readers, int64_t end, BandLives* bands, RowSegment* segment) {
  std::vector<RowNode>& nodes = segment->nodes;
  std::vector<size_t> root(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    root[i] = i;
    if (!InPlace(nodes[i], i, nodes, *bands, readers, end)) continue;
    nodes[i].place_of = nodes[i].residual;
    root[i] = root[static_cast<size_t>(nodes[i].residual)];
    for (std::vector<RowLives>& lives : *bands) {
      std::vector<int64_t>& last = lives[root[i]].last;
      for (size_t row = 0; row < last.size(); ++row) last[row] = std::max(last[row], lives[i].last[row]);
    }
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    RowNode& node = nodes[i];
    if (root[i] == i) {
      for (const std::vector<RowLives>& lives : *bands) {
        node.capacity = std::max(node.capacity, RowsAtOnce(lives[i]));
      }
      segment->held_floats += node.capacity * node.row_floats();
    }
    node.capacity = node.kept == Kept::kWhole ? node.size.height : nodes[root[i]].capacity;
  }
}

}  // namespace

RowSegment MakeSegment(const RowChain& chain, const std::vector<Readers>& readers, int64_t begin, int64_t end,
                       int64_t bands) {
  RowSegment segment;
  segment.nodes = Builder(chain, readers, begin, end, bands > 1).Build();
  BandLives lives;
  for (int64_t band = 0; band < bands; ++band) {
    segment.bands.push_back(PullRows(segment.nodes, band, bands));
    lives.push_back(FindLives(segment.nodes, segment.bands.back()));
  }
  ShareMemory(readers, end, &lives, &segment);
  for (const RowNode& node : segment.nodes) {
    if (node.conv != nullptr) segment.weight_bytes += static_cast<int64_t>(node.conv->weight_bytes());
    if (node.kept == Kept::kWhole || node.work == Work::kImport) {
      segment.moved_floats += node.size.height * node.row_floats();
    }
  }
  return segment;
}

}  // namespace chain
}  // namespace sparsify
