#include "chain.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/chain/chain.h"
#include "convert.h"
#include "error.h"

using sparsify::ParallelFor;
using sparsify::capi::Convert;
using sparsify::capi::Fail;
using sparsify::capi::Guard;
using sparsify::chain::ConvChain;
using sparsify::chain::Plan;
using sparsify::chain::Size;
using sparsify::chain::Step;

struct sparsify_conv_chain {
  std::unique_ptr<ConvChain> chain;
};

namespace {

std::shared_ptr<const Plan> PlanFor(const ConvChain& chain, const int64_t* sizes, int64_t batch, int threads,
                                    std::string* error) {
  std::vector<Size> maps;
  for (int64_t i = 0; i < chain.maps(); ++i) maps.push_back({sizes[2 * i], sizes[2 * i + 1]});
  return chain.PlanFor(maps, batch, threads, error);
}

}  // namespace

extern "C" {

int32_t sparsify_conv_chain_create(const char* kernel, int64_t maps, const sparsify_chain_step* steps,
                                   int32_t count, sparsify_conv_chain** chain) {
  return Guard([&] {
    std::vector<Step> made;
    std::string error;
    if (maps < 1 || maps > (int64_t{1} << 20)) return Fail("a chain needs at least one outer map");
    for (int32_t i = 0; i < count; ++i) {
      const sparsify_chain_step& given = steps[i];
      if (given.activation < 0 || given.activation >= sparsify::kActivations || given.attributes == nullptr) {
        return Fail("step " + std::to_string(i) + " has no attributes, or an unknown activation");
      }
      const auto packed = Convert(given.tensors, given.tensor_count);
      Step step;
      step.name = "step" + std::to_string(i);
      step.input = given.input;
      step.residual = given.residual;
      step.ending.bias = given.bias;
      step.ending.activation = static_cast<sparsify::Activation>(given.activation);
      step.ending.low = given.low;
      step.ending.high = given.high;
      step.kernel = sparsify::CreateConv(given.layout, kernel, Convert(*given.attributes), packed.data(),
                                         packed.size(), &error);
      if (step.kernel == nullptr) return Fail("step " + std::to_string(i) + ": " + error);
      made.push_back(std::move(step));
    }
    auto result = std::make_unique<sparsify_conv_chain>();
    result->chain = ConvChain::Create(maps, std::move(made), &error);
    if (result->chain == nullptr) return Fail(error);
    *chain = result.release();
    return 0;
  });
}

int32_t sparsify_conv_chain_output_size(const sparsify_conv_chain* chain, const int64_t* sizes,
                                        int64_t* out_size, int64_t* bytes) {
  return Guard([&] {
    std::string error;
    const auto plan = PlanFor(*chain->chain, sizes, 1, 1, &error);
    if (plan == nullptr) return Fail(error);
    out_size[0] = plan->sizes.back().height;
    out_size[1] = plan->sizes.back().width;
    *bytes = plan->alone.floats * static_cast<int64_t>(sizeof(float));
    return 0;
  });
}

int32_t sparsify_conv_chain_run(const sparsify_conv_chain* chain, const float* const* maps,
                                const int64_t* sizes, int64_t batch, int32_t threads, float* y) {
  return Guard([&] {
    std::string error;
    if (batch < 0 || threads < 1) return Fail("bad run options");
    const auto plan = PlanFor(*chain->chain, sizes, batch, threads, &error);
    if (plan == nullptr) return Fail(error);
    const std::unique_ptr<unsigned char[]> scratch(new unsigned char[ConvChain::ScratchBytes(*plan)]);
    ParallelFor parallel;
    parallel.run = &sparsify::capi::RunThreads;
    parallel.threads = threads;
    chain->chain->Run(*plan, maps, y, parallel, scratch.get());
    return 0;
  });
}

void sparsify_conv_chain_free(sparsify_conv_chain* chain) { delete chain; }

}  // extern "C"
