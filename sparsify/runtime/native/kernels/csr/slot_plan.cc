#include "slot_plan.h"

#include <algorithm>
#include <cstring>

#include "values.h"

namespace sparsify {
namespace csr {
namespace {

// In units of a slot (an expanding load, a permute, an FMA), measured: the indices of a record, and a
// non-zero of the rest.
constexpr double kRecordCost = 1.6;
constexpr double kRestCost = 0.6;

struct Nonzero {
  uint32_t lane;
  uint32_t input;
  float value;
};

// How many slots to give a block whose lanes have these counts.
uint32_t BestSlots(const uint32_t counts[kLanes]) {
  uint32_t best = 0;
  double best_cost = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) best_cost += kRestCost * counts[lane];
  for (uint32_t slots = 1; slots <= kBlock; ++slots) {
    double cost = slots + kRecordCost * ((slots + kMaxSlots - 1) / kMaxSlots);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (counts[lane] > slots) cost += kRestCost * (counts[lane] - slots);
    }
    if (cost < best_cost) {
      best_cost = cost;
      best = slots;
    }
  }
  return best;
}

struct Record {
  uint32_t block;
  uint32_t slots;
  float values[kMaxSlots][kLanes];
  uint16_t masks[kMaxSlots];
  uint32_t indices[kLanes];
};

// Sixteen rows before they are written out.
struct LaneGroup {
  std::vector<Record> records;
  std::vector<Nonzero> rest[kLanes];
};

// Gives the non-zeros of one block their slots, or a place in the rest.
void AddBlock(uint32_t first_input, const std::vector<Nonzero>& members, uint32_t slots, LaneGroup* group) {
  const size_t first = group->records.size();
  for (uint32_t left = slots; left > 0; left -= group->records.back().slots) {
    Record record = {};
    record.block = first_input;
    record.slots = std::min<uint32_t>(left, kMaxSlots);
    group->records.push_back(record);
  }
  uint32_t used[kLanes] = {};
  for (const Nonzero& nonzero : members) {
    const uint32_t slot = used[nonzero.lane]++;
    if (slot >= slots) {
      group->rest[nonzero.lane].push_back(nonzero);
      continue;
    }
    Record& record = group->records[first + slot / kMaxSlots];
    const uint32_t place = slot % kMaxSlots;
    record.values[place][nonzero.lane] = nonzero.value;
    record.masks[place] = static_cast<uint16_t>(record.masks[place] | 1u << nonzero.lane);
    record.indices[nonzero.lane] |= (nonzero.input - first_input) << (5 * place);
  }
}

LaneGroup GatherLanes(const Matrix& matrix, int64_t first_row) {
  const int64_t lanes = std::min<int64_t>(kLanes, matrix.rows - first_row);
  LaneGroup group;
  int64_t at[kLanes];
  const int64_t block_rows = matrix.block_rows;
  for (int64_t lane = 0; lane < lanes; ++lane) at[lane] = matrix.pointers[(first_row + lane) / block_rows];
  for (int64_t input = 0; input < matrix.columns; input += kBlock) {
    std::vector<Nonzero> members;
    uint32_t counts[kLanes] = {};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t row = first_row + lane;
      const int64_t end = matrix.pointers[row / block_rows + 1];
      for (; at[lane] < end && matrix.Column(at[lane]) < input + kBlock; ++at[lane]) {
        members.push_back({static_cast<uint32_t>(lane), static_cast<uint32_t>(matrix.Column(at[lane])),
                           ValueAt(matrix.values, at[lane] * block_rows + row % block_rows)});
        ++counts[lane];
      }
    }
    const int64_t first_input = std::max<int64_t>(0, std::min(input, matrix.columns - kBlock));
    AddBlock(static_cast<uint32_t>(first_input), members, matrix.columns >= kBlock ? BestSlots(counts) : 0,
             &group);
  }
  std::stable_sort(group.records.begin(), group.records.end(),
                   [](const Record& a, const Record& b) { return a.slots < b.slots; });
  return group;
}

float AsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

SlotPlan::SlotPlan(const Matrix& matrix) {
  std::vector<float> stream;
  totals_.push_back(0);
  for (int64_t row = 0; row < matrix.rows; row += kLanes) {
    AddGroup(matrix, row, &stream);
    totals_.push_back(static_cast<int64_t>(sizeof(float) * (stream.size() + 2 * rest_values_.size())));
  }
  stream.resize(stream.size() + kLanes);  // an expanding load may look past the last value
  stream_ = AlignedBuffer(stream.size() * sizeof(float));
  std::memcpy(stream_.as<float>(), stream.data(), stream.size() * sizeof(float));
  rest_values_.shrink_to_fit();
  rest_inputs_.shrink_to_fit();
  rest_lanes_.shrink_to_fit();
  masks_.shrink_to_fit();
  blocks_.shrink_to_fit();
  classes_.shrink_to_fit();
}

void SlotPlan::AddGroup(const Matrix& matrix, int64_t first_row, std::vector<float>* stream) {
  const LaneGroup group = GatherLanes(matrix, first_row);
  Begin begin = {stream->size(), masks_.size(), blocks_.size(), classes_.size(), 0, rest_values_.size(), 0};
  for (const Record& record : group.records) {
    if (begin.class_count == 0 || classes_.back().slots != record.slots) {
      classes_.push_back({record.slots, 0});
      ++begin.class_count;
    }
    ++classes_.back().blocks;
    blocks_.push_back(record.block);
    masks_.insert(masks_.end(), record.masks, record.masks + record.slots);
    for (const uint32_t index : record.indices) stream->push_back(AsFloat(index));
    for (uint32_t slot = 0; slot < record.slots; ++slot) {
      for (int lane = 0; lane < kLanes; ++lane) {
        if ((record.masks[slot] >> lane & 1) != 0) stream->push_back(record.values[slot][lane]);
      }
    }
  }
  size_t longest = 0;
  for (const auto& lane : group.rest) longest = std::max(longest, lane.size());
  for (size_t i = 0; i < longest; ++i) {
    for (const auto& lane : group.rest) {
      if (i >= lane.size()) continue;
      rest_values_.push_back(lane[i].value);
      rest_inputs_.push_back(lane[i].input);
      rest_lanes_.push_back(static_cast<uint8_t>(lane[i].lane));
    }
  }
  begin.rest_count = rest_values_.size() - begin.rest;
  begins_.push_back(begin);
}

SlotGroup SlotPlan::Group(int64_t group) const {
  const Begin& begin = begins_[static_cast<size_t>(group)];
  return {stream_.as<float>() + begin.stream,
          masks_.data() + begin.mask,
          blocks_.data() + begin.block,
          classes_.data() + begin.slot_class,
          begin.class_count,
          rest_values_.data() + begin.rest,
          rest_inputs_.data() + begin.rest,
          rest_lanes_.data() + begin.rest,
          begin.rest_count};
}

}  // namespace csr
}  // namespace sparsify
