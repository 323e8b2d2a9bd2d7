#include "sample.h"

#include <cstring>

namespace sparsify {
namespace train {
namespace {

#define SPARSIFY_SAMPLER_ROW(name) &sampler_##name,
const Sampler* const kSamplers[] = {SPARSIFY_SAMPLERS(SPARSIFY_SAMPLER_ROW)};
#undef SPARSIFY_SAMPLER_ROW

}  // namespace

const Sampler& SamplerOf(const csr::Isa& isa) {
  for (const Sampler* sampler : kSamplers) {
    if (std::strcmp(sampler->name, isa.name) == 0) return *sampler;
  }
  return sampler_scalar;
}

}  // namespace train
}  // namespace sparsify
