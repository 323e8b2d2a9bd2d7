#include "rows_tasks.h"

#include <algorithm>

namespace sparsify {
namespace chain {
namespace {

// The smallest range that holds both.
RowRange Both(RowRange a, RowRange b) {
  if (a.empty() || b.empty()) return a.empty() ? b : a;
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

bool Leaves(const RowNode& node) {
  return node.work != RowNode::Work::kGiven && node.kept != RowNode::Kept::kRing;
}

class Puller {
 public:
  Puller(const std::vector<RowNode>& nodes, int64_t band, int64_t bands)
      : nodes_(nodes), wanted_(nodes.size()), panels_(nodes.size(), 0) {
    for (size_t i = nodes.size(); i-- > 0;) {
      const RowNode& node = nodes[i];
      if (Leaves(node)) {
        wanted_[i] =
            Both(wanted_[i], {node.size.height * band / bands, node.size.height * (band + 1) / bands});
      }
      if (wanted_[i].empty()) continue;
      if (node.input >= 0) Want(node.input, InputRows(node, wanted_[i], Height(node.input)));
      if (node.residual >= 0) Want(node.residual, wanted_[i]);
    }
  }

  std::vector<RowTask> Pull() {
    for (;;) {
      // Of several maps that leave, that which is furthest behind.
      size_t next = nodes_.size();
      for (size_t i = 0; i < nodes_.size(); ++i) {
        if (!Leaves(nodes_[i]) || Made(i) >= wanted_[i].end) continue;
        if (next == nodes_.size() || Progress(i) < Progress(next)) next = i;
      }
      if (next == nodes_.size()) return std::move(tasks_);
      Ensure(next, Made(next) + 1);
    }
  }

 private:
  int64_t Height(int32_t node) const { return nodes_[static_cast<size_t>(node)].size.height; }

  void Want(int32_t node, RowRange rows) {
    RowRange& wanted = wanted_[static_cast<size_t>(node)];
    wanted = Both(wanted, rows);
  }

  // The end of so many panels, which are as even as can be.
  int64_t PanelsEnd(size_t node, int64_t panels) const {
    const RowRange& rows = wanted_[node];
    const int64_t count = rows.end - rows.begin, panel = nodes_[node].panel;
    return rows.begin + count * panels / std::max<int64_t>(1, (count + panel - 1) / panel);
  }

  // Rows before this one are there.
  int64_t Made(size_t node) const { return PanelsEnd(node, panels_[node]); }

  double Progress(size_t node) const {
    return static_cast<double>(Made(node) - wanted_[node].begin) /
           static_cast<double>(wanted_[node].end - wanted_[node].begin);
  }

  void Ensure(size_t number, int64_t end) {
    const RowNode& node = nodes_[number];
    if (node.work == RowNode::Work::kGiven) return;
    while (Made(number) < end) {
      const RowRange rows = {Made(number), PanelsEnd(number, panels_[number] + 1)};
      if (node.input >= 0) {
        const RowRange input = InputRows(node, rows, Height(node.input));
        if (!input.empty()) Ensure(static_cast<size_t>(node.input), input.end);
      }
      if (node.residual >= 0) Ensure(static_cast<size_t>(node.residual), rows.end);
      tasks_.push_back({static_cast<int32_t>(number), static_cast<int32_t>(rows.begin),
                        static_cast<int32_t>(rows.end - rows.begin)});
      ++panels_[number];
    }
  }

  const std::vector<RowNode>& nodes_;
  std::vector<RowRange> wanted_;
  std::vector<int64_t> panels_;  // that are made
  std::vector<RowTask> tasks_;
};

}  // namespace

RowRange InputRows(const RowNode& node, RowRange rows, int64_t input_height) {
  return {std::max<int64_t>(0, rows.begin * node.stride - node.pad),
          std::min(input_height, (rows.end - 1) * node.stride - node.pad + node.reach)};
}

std::vector<RowTask> PullRows(const std::vector<RowNode>& nodes, int64_t band, int64_t bands) {
  return Puller(nodes, band, bands).Pull();
}

std::vector<RowLives> FindLives(const std::vector<RowNode>& nodes, const std::vector<RowTask>& tasks) {
  std::vector<RowLives> lives(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    lives[i].written.assign(static_cast<size_t>(nodes[i].size.height), -1);
    lives[i].last = lives[i].written;
  }
  for (size_t t = 0; t < tasks.size(); ++t) {
    const int64_t now = static_cast<int64_t>(t);
    const auto see = [&](int32_t node, RowRange rows) {
      RowLives& seen = lives[static_cast<size_t>(node)];
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        int64_t& written = seen.written[static_cast<size_t>(row)];
        if (written < 0) written = now;
        seen.last[static_cast<size_t>(row)] = now;
      }
    };
    const RowNode& node = nodes[static_cast<size_t>(tasks[t].node)];
    const RowRange rows = {tasks[t].first, tasks[t].first + tasks[t].count};
    if (node.input >= 0) {
      see(node.input, InputRows(node, rows, nodes[static_cast<size_t>(node.input)].size.height));
    }
    if (node.residual >= 0) see(node.residual, rows);
    see(tasks[t].node, rows);
  }
  return lives;
}

int64_t RowsAtOnce(const RowLives& lives) {
  int64_t most = 0;
  size_t needed = 0;  // the first row that still is
  for (size_t row = 0; row < lives.written.size(); ++row) {
    if (lives.written[row] < 0) continue;
    while (needed < row && lives.last[needed] < lives.written[row]) ++needed;
    most = std::max(most, static_cast<int64_t>(row - needed) + 1);
  }
  return most;
}

}  // namespace chain
}  // namespace sparsify
