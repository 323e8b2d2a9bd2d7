// A topology with the plans of its products, and the ways between the dense weight and their slots.
#ifndef SPARSIFY_KERNELS_TRAIN_WEIGHT_H_
#define SPARSIFY_KERNELS_TRAIN_WEIGHT_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../api.h"
#include "plan.h"

namespace sparsify {
namespace train {

class Weight {
 public:
  Weight(Topology topology, int threads);

  const Topology& topology() const { return topology_; }
  const Plan& plan() const { return plan_; }
  // The plan of the weight gradient, which has parts and slots of its own.
  const Plan& sampled() const { return sampled_ != nullptr ? *sampled_ : plan_; }

  // The plan's values from the dense weight.
  void Gather(const float* weight, float* values, const ParallelFor& parallel) const;
  // The rows of one part of a dense weight: zero but for the gradients of its sampled slots. Where they are
  // `zeroed` outside the active positions already, only these are written.
  void Scatter(int part, const float* gradients, bool zeroed, float* weight) const;

 private:
  Topology topology_;
  Plan plan_;
  std::unique_ptr<Plan>
      sampled_;  // where it differs: partial sums are added up for each strip, so it is wide
};

// The transposed weight for the input gradient: its plan, and where its slots find their values.
class TransposedWeight {
 public:
  // `transposed` and `source` as Transposed gives them for the weight's topology, or for a rearranged one.
  TransposedWeight(const Topology& transposed, const std::vector<uint32_t>& source, const Plan& plan,
                   int threads);

  const Plan& plan() const { return plan_; }
  // This plan's values from those of the weight's own plan.
  void Gather(const float* values, float* transposed, const ParallelFor& parallel) const;

 private:
  Plan plan_;
  std::vector<uint32_t> slots_;  // of the weight's plan, for each slot here
};

// Parts of a plan: a multiple of the threads, and short enough for a second-level cache.
int PartCount(int64_t rows, int threads);

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_WEIGHT_H_
