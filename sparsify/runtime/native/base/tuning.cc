#include "tuning.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu.h"

namespace sparsify {
namespace {

constexpr const char* kVariable = "SPARSIFY_TUNE_FOR";

// What kernels were measured on. Skylake's are the rules for every CPU without AVX-512 as well.
constexpr Tuning kSkylake = {"skylake", 32 << 10, 1 << 20, false};
constexpr Tuning kSapphireRapids = {"sapphirerapids", 48 << 10, 2 << 20, true};

// Sizes are believed only where they can be: virtual machines invent them.
Tuning OfThisCpu() {
  if (!Cpu().avx512_vbmi2) return kSkylake;
  return {"this CPU", std::clamp(CacheBytes(1), kSkylake.l1_bytes, kSapphireRapids.l1_bytes),
          std::clamp(CacheBytes(2), kSkylake.l2_bytes, kSapphireRapids.l2_bytes), true};
}

const Tuning& ThisCpu() {
  static const Tuning tuning = OfThisCpu();
  return tuning;
}

}  // namespace

const Tuning* FindTuning(std::string* error) {
  const char* name = std::getenv(kVariable);
  if (name == nullptr || *name == '\0') return &ThisCpu();
  for (const Tuning* tuning : {&kSkylake, &kSapphireRapids}) {
    if (std::strcmp(name, tuning->name) == 0) return tuning;
  }
  *error = std::string(kVariable) + " is '" + name + "'; there are " + kSkylake.name + " and " +
           kSapphireRapids.name;
  return nullptr;
}

const Tuning& Tuned() {
  static const Tuning* const tuning = [] {
    std::string error;
    const Tuning* found = FindTuning(&error);
    return found != nullptr ? found : &ThisCpu();
  }();
  return *tuning;
}

}  // namespace sparsify
