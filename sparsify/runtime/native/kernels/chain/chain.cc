#include "chain.h"

#include <algorithm>
#include <utility>

#include "../../base/aligned.h"
#include "../csr/panel_product.h"

namespace sparsify {
namespace chain {
namespace {

constexpr int64_t kLargestMap = int64_t{1} << 40;  // floats of an image

std::string Label(const std::vector<Step>& steps, size_t step) {
  return "step " + std::to_string(step) + " ('" + steps[step].name + "')";
}

std::string Text(const Size& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

// Whole rounds of images go to the threads, one image each; the rest is too few for that and is run by all
// threads together, step by step.
struct Shares {
  Shares(int64_t batch, int threads)
      : workers(std::min<int64_t>(batch, std::max(1, threads))),
        alone(threads <= 1 ? batch : batch / threads * threads),
        together(batch - alone) {}

  int64_t workers, alone, together;
};

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

std::shared_ptr<const Plan> ConvChain::PlanFor(const std::vector<Size>& maps, std::string* error) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (latest_ != nullptr && latest_->maps == maps) return latest_;
  }
  std::shared_ptr<const Plan> plan = MakePlan(maps, error);
  if (plan != nullptr) {
    const std::lock_guard<std::mutex> lock(mutex_);
    latest_ = plan;
  }
  return plan;
}

const Size& ConvChain::SizeOf(const Plan& plan, const std::vector<Size>& maps, int64_t value) const {
  const int64_t step = value - this->maps();
  return step < 0 ? maps[static_cast<size_t>(value)] : plan.sizes[static_cast<size_t>(step)];
}

std::shared_ptr<const Plan> ConvChain::MakePlan(const std::vector<Size>& maps, std::string* error) const {
  auto plan = std::make_shared<Plan>();
  plan->maps = maps;
  std::vector<Flow> flows;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const Size input = SizeOf(*plan, maps, step.input);
    Size size;
    if (!step.kernel->OutputSize(input.height, input.width, &size.height, &size.width) ||
        size.width > kLargestMap / size.height / step.kernel->attributes().out_channels) {
      *error = Label(steps_, i) + ": its input of height " + std::to_string(input.height) + " and width " +
               std::to_string(input.width) + " is too small for the kernel, or too large";
      return nullptr;
    }
    if (step.residual >= 0 && !(SizeOf(*plan, maps, step.residual) == size)) {
      *error = Label(steps_, i) + ": its residual is of size " + Text(SizeOf(*plan, maps, step.residual)) +
               ", but what it gives is of size " + Text(size);
      return nullptr;
    }
    plan->sizes.push_back(size);
    flows.push_back(
        {step.input, step.residual, step.kernel->attributes().out_channels * size.height * size.width});
  }
  Place(this->maps(), flows, plan.get());
  plan->kernel_bytes = KernelBytes(*plan, 1, 1);
  return plan;
}

size_t ConvChain::KernelBytes(const Plan& plan, int64_t images, int threads) const {
  size_t bytes = 0;
  for (const Step& step : steps_) {
    const Size& input = SizeOf(plan, plan.maps, step.input);
    bytes = std::max(bytes, step.kernel->ScratchBytes(images, input.height, input.width, threads));
  }
  return bytes;
}

size_t ConvChain::ScratchBytes(const Plan& plan, int64_t batch, int threads) const {
  const Shares shares(batch, threads);
  const size_t image = static_cast<size_t>(plan.floats) * sizeof(float);
  size_t bytes = 0;
  if (shares.alone > 0) {
    bytes = static_cast<size_t>(shares.workers) * RoundUp(image + plan.kernel_bytes, kCacheLine);
  }
  if (shares.together > 0) {
    const size_t images = static_cast<size_t>(shares.together);
    bytes = std::max(bytes, images * image + KernelBytes(plan, shares.together, threads));
  }
  return bytes + kCacheLine;
}

void ConvChain::Run(const Plan& plan, const float* const* maps, int64_t batch, float* y,
                    const ParallelFor& parallel, void* scratch) const {
  const Shares shares(batch, parallel.threads);
  unsigned char* memory = AlignUp<unsigned char>(scratch);
  const size_t own =
      RoundUp(static_cast<size_t>(plan.floats) * sizeof(float) + plan.kernel_bytes, kCacheLine);
  csr::RunTasks(parallel, shares.workers, shares.alone, [&](int64_t worker, int64_t image) {
    RunImages(plan, maps, image, 1, y, ParallelFor(), memory + static_cast<size_t>(worker) * own);
  });
  if (shares.together > 0) RunImages(plan, maps, shares.alone, shares.together, y, parallel, memory);
}

void ConvChain::RunImages(const Plan& plan, const float* const* maps, int64_t first, int64_t images, float* y,
                          const ParallelFor& parallel, unsigned char* memory) const {
  float* values = reinterpret_cast<float*>(memory);
  unsigned char* kernel_memory = memory + static_cast<size_t>(images * plan.floats) * sizeof(float);
  const int64_t count = this->maps();
  const auto target = [&](size_t step) {
    const Size& size = plan.sizes[step];
    return plan.offsets[step] < 0 ? y + first * out_channels() * size.height * size.width
                                  : values + images * plan.offsets[step];
  };
  const auto source = [&](int64_t value) -> const float* {
    if (value >= count) return target(static_cast<size_t>(value - count));
    const Size& size = plan.maps[static_cast<size_t>(value)];
    return maps[value] + first * map_channels(value) * size.height * size.width;
  };
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const Size& size = SizeOf(plan, plan.maps, step.input);
    Epilogue ending = step.ending;
    if (step.residual >= 0) ending.residual = source(step.residual);
    step.kernel->Run(source(step.input), images, size.height, size.width, ending, target(i), parallel,
                     kernel_memory);
  }
}

}  // namespace chain
}  // namespace sparsify
