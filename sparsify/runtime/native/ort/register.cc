// RegisterCustomOps, which ONNX Runtime calls for every session that loads this library.
//
// A domain is made once per process for each choice of options and lives until the process ends: ONNX Runtime
// keeps pointers to its operators. No slot of the ABI tells an operator how many threads its session has, so
// the session's configuration may ("ai.sparsify.threads"); else it is taken to have one for each core. What
// tensor cores may round to is in "ai.sparsify.cuda_precision", else in SPARSIFY_CUDA_PRECISION.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "../base/cores.h"
#include "abi.h"
#include "attention.h"
#include "conv_chain.h"
#include "cuda_operators.h"
#include "custom_op.h"
#include "feed_forward.h"
#include "operators.h"

#if defined(_WIN32)
#define SPARSIFY_EXPORT __declspec(dllexport)
#else
#define SPARSIFY_EXPORT __attribute__((visibility("default")))
#endif

namespace sparsify::ort {
namespace {

constexpr const char* kDomain = "ai.sparsify";
constexpr const char* kThreadsKey = "ai.sparsify.threads";
constexpr const char* kPrecisionKey = "ai.sparsify.cuda_precision";
constexpr const char* kPrecisionVariable = "SPARSIFY_CUDA_PRECISION";

// The session's entry for a key; false where it has none.
bool SessionEntry(const OrtApi& api, const OrtSessionOptions* options, const char* key, std::string* text) {
  int has = 0;
  Check(api, api.HasSessionConfigEntry(options, key, &has));
  if (has == 0) return false;
  char buffer[64] = {};
  size_t size = sizeof(buffer);
  Check(api, api.GetSessionConfigEntry(options, key, buffer, &size));
  *text = buffer;
  return true;
}

// A wrong entry of the session is an error at once. The environment is meant for other sessions too, those
// without nodes on a GPU among them: float32 then, and in *problem what such a node says.
cuda::Precision SessionPrecision(const OrtApi& api, const OrtSessionOptions* options, std::string* problem) {
  cuda::Precision precision = cuda::Precision::kFloat32;
  std::string name;
  const auto wrong = [&name](const std::string& from) {
    return from + " must be float32, tf32 or half, not '" + name + "'";
  };
  if (SessionEntry(api, options, kPrecisionKey, &name)) {
    if (!cuda::ParsePrecision(name, &precision)) {
      throw Error(wrong(std::string("session option ") + kPrecisionKey));
    }
  } else if (const char* wish = std::getenv(kPrecisionVariable)) {
    name = wish;
    if (!cuda::ParsePrecision(name, &precision)) {
      *problem = wrong(std::string("environment variable ") + kPrecisionVariable);
    }
  }
  return precision;
}

int SessionThreads(const OrtApi& api, const OrtSessionOptions* options) {
  std::string text;
  if (!SessionEntry(api, options, kThreadsKey, &text)) return AvailableCores();
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (end == text.c_str() || *end != '\0' || value < 1 || value > 4096) {
    throw Error(std::string("session option ") + kThreadsKey + " must be a number of threads, not '" + text +
                "'");
  }
  return static_cast<int>(value);
}

// Before 1.24, ONNX Runtime follows a null pointer when it prepares shape inference for a custom operator
// with an absent optional input. Without the function, shapes come from the graph's value_info.
bool InfersShapes(const char* version) {
  int major = 0, minor = 0;
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2) return false;
  return major > 1 || (major == 1 && minor >= 24);
}

OrtCustomOpDomain* MakeDomain(const OrtApi& api, Settings settings) {
  OrtMemoryInfo* memory = nullptr;
  Check(api, api.CreateCpuMemoryInfo(kArenaAllocator, kMemTypeDefault, &memory));
  settings.memory = memory;
  OrtCustomOpDomain* domain = nullptr;
  Check(api, api.CreateCustomOpDomain(kDomain, &domain));
  Check(api, api.CustomOpDomain_Add(domain, new CustomOp<SparseLinear>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new CustomOp<SparseConv>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new SparseConvChainOp(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new AttentionOp(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new SparseFeedForwardOp(api, settings)));
  // Of operators of one name ONNX Runtime takes the schema of the first, so the CPU's come first.
  Check(api, api.CustomOpDomain_Add(domain, new CudaOp<CudaSparseLinear>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new CudaOp<CudaSparseConv>(api, settings)));
  return domain;
}

OrtCustomOpDomain* DomainFor(const OrtApi& api, const Settings& settings) {
  using Key = std::tuple<int, cuda::Precision, std::string>;
  static auto* mutex = new std::mutex;
  static auto* domains = new std::map<Key, OrtCustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(*mutex);
  OrtCustomOpDomain*& domain = (*domains)[{settings.threads, settings.precision, settings.precision_problem}];
  if (domain == nullptr) domain = MakeDomain(api, settings);
  return domain;
}

}  // namespace
}  // namespace sparsify::ort

extern "C" SPARSIFY_EXPORT sparsify::ort::OrtStatus* SPARSIFY_ORT_CALL
RegisterCustomOps(sparsify::ort::OrtSessionOptions* options, const sparsify::ort::OrtApiBase* base) {
  using namespace sparsify::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    // CreateStatus is slot 0: every version of the table has it.
    const std::string message =
        std::string("the sparse operators need ONNX Runtime 1.17 or newer; this is ") +
        base->GetVersionString();
    return base->GetApi(1)->CreateStatus(kFail, message.c_str());
  }
  return Guard(*api, [&] {
    Settings settings;
    settings.threads = SessionThreads(*api, options);
    settings.infers_shapes = InfersShapes(base->GetVersionString());
    settings.precision = SessionPrecision(*api, options, &settings.precision_problem);
    Check(*api, api->AddCustomOpDomain(options, DomainFor(*api, settings)));
  });
}
