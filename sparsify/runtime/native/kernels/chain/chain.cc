#include "chain.h"

#include <algorithm>
#include <utility>

#include "../../base/aligned.h"
#include "../csr/panel_product.h"
#include "rows_choice.h"
#include "rows_plan.h"
#include "rows_run.h"

namespace sparsify {
namespace chain {
namespace {

constexpr int64_t kLargestMap = int64_t{1} << 40;  // floats of an image

std::string Label(const std::vector<Step>& steps, size_t step) {
  return "step " + std::to_string(step) + " ('" + steps[step].name + "')";
}

std::string Text(const Size& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

constexpr int64_t kMostImages = 8;  // of a block
constexpr int64_t kBlocks = 2;      // for each thread at least, so that they end at about the same time

// Images of a block, where each thread has so many: a power of two that leaves no part of a block.
int64_t BlockImages(int64_t images) {
  int64_t block = 1;
  while (block < kMostImages && images % (2 * block) == 0 && images / (2 * block) >= kBlocks) block *= 2;
  return block;
}

constexpr size_t kKeptRows = 4;

size_t BlockBytes(const Schedule& schedule) {
  return RoundUp(static_cast<size_t>(schedule.floats) * sizeof(float) + schedule.kernel_bytes, kCacheLine);
}

}  // namespace

std::unique_ptr<ConvChain> ConvChain::Create(int64_t maps, std::vector<Step> steps, std::string* error) {
  if (maps < 1 || steps.empty()) {
    *error = "a chain needs at least one outer map and one step";
    return nullptr;
  }
  std::vector<int64_t> channels(static_cast<size_t>(maps), -1);
  for (size_t i = 0; i < steps.size(); ++i) {
    const ConvAttributes& a = steps[i].kernel->attributes();
    const int64_t before = maps + static_cast<int64_t>(i);
    const std::pair<int64_t, int64_t> reads[] = {{steps[i].input, a.in_channels},
                                                 {steps[i].residual, a.out_channels}};
    for (const auto& [value, wanted] : reads) {
      if (&value == &reads[1].first && value == -1) continue;
      if (value < 0 || value >= before) {
        *error = Label(steps, i) + " reads value " + std::to_string(value) + ", but there are " +
                 std::to_string(before) + " before it";
        return nullptr;
      }
      int64_t& there = channels[static_cast<size_t>(value)];
      if (there == -1) there = wanted;
      if (there != wanted) {
        *error = Label(steps, i) + " takes value " + std::to_string(value) + " for " +
                 std::to_string(wanted) + " channels, but it has " + std::to_string(there);
        return nullptr;
      }
    }
    channels.push_back(a.out_channels);
  }
  channels.resize(static_cast<size_t>(maps));
  const auto unread = std::find(channels.begin(), channels.end(), -1);
  if (unread != channels.end()) {
    *error = "no step reads outer map " + std::to_string(unread - channels.begin());
    return nullptr;
  }
  return std::unique_ptr<ConvChain>(new ConvChain(std::move(channels), std::move(steps)));
}

std::shared_ptr<const Plan> ConvChain::PlanFor(const std::vector<Size>& maps, int64_t batch, int threads,
                                               std::string* error) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (latest_ != nullptr && latest_->maps == maps && latest_->batch == batch &&
        latest_->threads == threads) {
      return latest_;
    }
  }
  auto plan = std::make_shared<Plan>();
  plan->maps = maps;
  plan->batch = batch;
  plan->threads = threads;
  std::vector<Flow> flows;
  if (!FindSizes(plan.get(), &flows, error)) return nullptr;
  const int64_t rounds = batch / std::max(1, threads), rest = batch % std::max(1, threads);
  if (rounds > 0) {
    const int64_t images = BlockImages(rounds);
    plan->alone = MakeSchedule(*plan, flows, images, Groups(plan->sizes, images), 1);
    plan->workers = threads;
    plan->blocks = rounds * threads / images;
  }
  if (rest > 0) {
    plan->together = MakeSchedule(*plan, flows, rest, std::vector<int64_t>(steps_.size(), rest), threads);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  latest_ = plan;
  return plan;
}

const Size& ConvChain::SizeOf(const Plan& plan, int64_t value) const {
  const int64_t step = value - this->maps();
  return step < 0 ? plan.maps[static_cast<size_t>(value)] : plan.sizes[static_cast<size_t>(step)];
}

bool ConvChain::FindSizes(Plan* plan, std::vector<Flow>* flows, std::string* error) const {
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const int64_t channels = step.kernel->attributes().out_channels;
    const Size input = SizeOf(*plan, step.input);
    Size size;
    if (!step.kernel->OutputSize(input.height, input.width, &size.height, &size.width) ||
        size.width > kLargestMap / size.height / channels) {
      *error = Label(steps_, i) + ": its input of height " + std::to_string(input.height) + " and width " +
               std::to_string(input.width) + " is too small for the kernel, or too large";
      return false;
    }
    if (step.residual >= 0 && !(SizeOf(*plan, step.residual) == size)) {
      *error = Label(steps_, i) + ": its residual is of size " + Text(SizeOf(*plan, step.residual)) +
               ", but what it gives is of size " + Text(size);
      return false;
    }
    plan->sizes.push_back(size);
    flows->push_back({step.input, step.residual, channels * size.pixels()});
  }
  return true;
}

Schedule ConvChain::MakeSchedule(const Plan& plan, const std::vector<Flow>& flows, int64_t images,
                                 std::vector<int64_t> groups, int threads) const {
  Schedule schedule;
  schedule.images = images;
  schedule.groups = std::move(groups);
  schedule.rows = RowsFor(plan, threads);
  const int64_t on_rows = schedule.row_steps();
  std::fill_n(schedule.groups.begin(), on_rows, int64_t{1});
  Place(this->maps(), flows, &schedule);
  if (on_rows > 0) {
    schedule.kernel_bytes = static_cast<size_t>(schedule.rows->bands) * schedule.rows->scratch_bytes;
  }
  for (size_t i = static_cast<size_t>(on_rows); i < steps_.size(); ++i) {
    const Size& input = SizeOf(plan, steps_[i].input);
    const size_t bytes =
        steps_[i].kernel->ScratchBytes(schedule.groups[i], input.height, input.width, threads);
    schedule.kernel_bytes = std::max(schedule.kernel_bytes, bytes);
  }
  return schedule;
}

std::shared_ptr<const RowPlan> ConvChain::RowsFor(const Plan& plan, int threads) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const KeptRows& kept : kept_rows_) {
    if (kept.threads == threads && kept.maps == plan.maps) return kept.rows;
  }
  if (kept_rows_.size() >= kKeptRows) kept_rows_.erase(kept_rows_.begin());
  kept_rows_.push_back({plan.maps, threads, MakeRows(plan, threads)});
  return kept_rows_.back().rows;
}

std::shared_ptr<const RowPlan> ConvChain::MakeRows(const Plan& plan, int threads) const {
  RowChain chain;
  for (size_t i = 0; i < map_channels_.size(); ++i) chain.values.push_back({map_channels_[i], plan.maps[i]});
  for (size_t i = 0; i < steps_.size(); ++i) {
    const ConvAttributes& a = steps_[i].kernel->attributes();
    const Size& input = SizeOf(plan, steps_[i].input);
    std::shared_ptr<const RowConv> conv = RowsOf(*steps_[i].kernel, input, plan.sizes[i], threads);
    const double gain = conv == nullptr ? 0.0 : GainOfRows(a, *conv, plan.sizes[i]);
    RowStep step = {std::move(conv), gain,
                    steps_[i].input, steps_[i].residual,
                    a.strides[0],    (a.kernel[0] - 1) * a.dilations[0] + 1,
                    a.pads[0],       steps_[i].ending};
    chain.steps.push_back(std::move(step));
    chain.values.push_back({a.out_channels, plan.sizes[i]});
  }
  return MakeRowPlan(chain, threads);
}

size_t ConvChain::ScratchBytes(const Plan& plan) {
  const size_t alone = static_cast<size_t>(plan.workers) * BlockBytes(plan.alone);
  return std::max(alone, BlockBytes(plan.together)) + kCacheLine;
}

void ConvChain::Run(const Plan& plan, const float* const* maps, float* y, const ParallelFor& parallel,
                    void* scratch) const {
  unsigned char* memory = AlignUp<unsigned char>(scratch);
  const size_t own = BlockBytes(plan.alone);
  csr::RunTasks(parallel, plan.workers, plan.blocks, [&](int64_t worker, int64_t block) {
    RunBlock(plan, plan.alone, maps, block * plan.alone.images, y, ParallelFor(),
             memory + static_cast<size_t>(worker) * own);
  });
  if (plan.together.images > 0) {
    RunBlock(plan, plan.together, maps, plan.batch - plan.together.images, y, parallel, memory);
  }
}

void ConvChain::RunBlock(const Plan& plan, const Schedule& schedule, const float* const* maps, int64_t first,
                         float* y, const ParallelFor& parallel, unsigned char* memory) const {
  float* values = reinterpret_cast<float*>(memory);
  unsigned char* kernel_memory = memory + static_cast<size_t>(schedule.floats) * sizeof(float);
  const int64_t count = this->maps();
  // What a step gives for the images of the block from `image` on.
  const auto target = [&](size_t step, int64_t image) {
    const int64_t floats = steps_[step].kernel->attributes().out_channels * plan.sizes[step].pixels();
    return schedule.offsets[step] < 0
               ? y + (first + image) * floats
               : values + schedule.offsets[step] + image % schedule.held[step] * floats;
  };
  const auto source = [&](int64_t value, int64_t image) -> const float* {
    if (value >= count) return target(static_cast<size_t>(value - count), image);
    const Size& size = plan.maps[static_cast<size_t>(value)];
    return maps[value] + (first + image) * map_channels(value) * size.pixels();
  };
  const size_t on_rows = static_cast<size_t>(schedule.row_steps());
  RowPlanes planes;
  for (int64_t end = 1; end <= schedule.images; ++end) {
    if (on_rows > 0) {
      planes.maps.clear();
      planes.targets.assign(static_cast<size_t>(count), nullptr);
      for (int64_t map = 0; map < count; ++map) planes.maps.push_back(source(map, end - 1));
      for (size_t i = 0; i < on_rows; ++i) {
        const bool leaves = schedule.offsets[i] >= 0 || i + 1 == steps_.size();
        planes.targets.push_back(leaves ? target(i, end - 1) : nullptr);
      }
      RunRows(*schedule.rows, planes, parallel, values + schedule.rows_offset, kernel_memory);
    }
    for (size_t i = on_rows; i < steps_.size(); ++i) {
      const int64_t images = schedule.groups[i], image = end - images;
      if (end % images != 0) break;  // later steps wait for as many images, or more
      const Step& step = steps_[i];
      const Size& size = SizeOf(plan, step.input);
      Epilogue ending = step.ending;
      if (step.residual >= 0) ending.residual = source(step.residual, image);
      step.kernel->Run(source(step.input, image), images, size.height, size.width, ending, target(i, image),
                       parallel, kernel_memory);
    }
  }
}

}  // namespace chain
}  // namespace sparsify
