// Convolutions that feed each other, run image by image.
//
// One after another over a whole batch, every convolution reads maps that its predecessor has long pushed out
// of the caches, and all threads wait for the slowest at each. A chain runs all of its steps on an image
// before the next image begins: each thread has images of its own, and maps between steps live in a few
// megabytes of scratch memory that are used again for every image.
#ifndef SPARSIFY_KERNELS_CHAIN_CHAIN_H_
#define SPARSIFY_KERNELS_CHAIN_CHAIN_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../api.h"
#include "plan.h"

namespace sparsify {
namespace chain {

// y = activation(W x + bias + residual). Values are numbered: the chain's outer maps first, then what the
// steps give.
struct Step {
  std::string name;  // for messages
  std::unique_ptr<ConvKernel> kernel;
  Epilogue ending;        // bias and activation
  int64_t input = 0;      // a value from before this step
  int64_t residual = -1;  // the same, or -1
};

class ConvChain {
 public:
  // Null and a sentence in *error where a step reads what is not there yet, numbers of channels differ, or no
  // step reads some outer map.
  static std::unique_ptr<ConvChain> Create(int64_t maps, std::vector<Step> steps, std::string* error);

  int64_t maps() const { return static_cast<int64_t>(map_channels_.size()); }
  int64_t map_channels(int64_t map) const { return map_channels_[static_cast<size_t>(map)]; }
  int64_t out_channels() const { return steps_.back().kernel->attributes().out_channels; }

  // How a batch of outer maps of these sizes is run; null and a sentence in *error where a kernel does not
  // fit its input or a residual its sum. The latest plan is kept.
  std::shared_ptr<const Plan> PlanFor(const std::vector<Size>& maps, int64_t batch, int threads,
                                      std::string* error) const;

  static size_t ScratchBytes(const Plan& plan);
  // maps[i] [batch, map_channels(i), height, width], y [batch, out_channels, out height, out width]; y must
  // not overlap them. `scratch` holds ScratchBytes(plan) bytes at any alignment; parallel.threads is the
  // plan's.
  void Run(const Plan& plan, const float* const* maps, float* y, const ParallelFor& parallel,
           void* scratch) const;

 private:
  ConvChain(std::vector<int64_t> map_channels, std::vector<Step> steps)
      : map_channels_(std::move(map_channels)), steps_(std::move(steps)) {}

  bool FindSizes(Plan* plan, std::vector<Flow>* flows, std::string* error) const;
  Schedule MakeSchedule(const Plan& plan, const std::vector<Flow>& flows, int64_t images,
                        std::vector<int64_t> groups, int threads) const;
  std::shared_ptr<const RowPlan> RowsFor(const Plan& plan, int threads) const;
  std::shared_ptr<const RowPlan> MakeRows(const Plan& plan, int threads) const;
  const Size& SizeOf(const Plan& plan, int64_t value) const;
  // One block of images from `first` on, all steps.
  void RunBlock(const Plan& plan, const Schedule& schedule, const float* const* maps, int64_t first, float* y,
                const ParallelFor& parallel, unsigned char* memory) const;

  std::vector<int64_t> map_channels_;
  std::vector<Step> steps_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Plan> latest_;
  // Plans of rows cost as much as a fraction of an image, and serve every batch. Oldest first.
  struct KeptRows {
    std::vector<Size> maps;
    int threads;
    std::shared_ptr<const RowPlan> rows;
  };
  mutable std::vector<KeptRows> kept_rows_;
};

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_CHAIN_H_
