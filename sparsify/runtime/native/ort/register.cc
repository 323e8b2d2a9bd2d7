// RegisterCustomOps, which ONNX Runtime calls for every session that loads this library.
//
// The domain is made once per process and thread count and lives until the process ends: ONNX Runtime keeps
// pointers to its operators. No slot of the ABI tells an operator how many threads its session has, so the
// session's configuration may ("ai.sparsify.threads"); else it is taken to be the machine's.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "abi.h"
#include "attention.h"
#include "cuda_operators.h"
#include "custom_op.h"
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

int SessionThreads(const OrtApi& api, const OrtSessionOptions* options) {
  const int machine = static_cast<int>(std::thread::hardware_concurrency());
  int threads = machine > 0 ? machine : 1;
  int has = 0;
  Check(api, api.HasSessionConfigEntry(options, kThreadsKey, &has));
  if (has == 0) return threads;
  char text[16] = {};
  size_t size = sizeof(text);
  Check(api, api.GetSessionConfigEntry(options, kThreadsKey, text, &size));
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < 1 || value > 4096) {
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

OrtCustomOpDomain* MakeDomain(const OrtApi& api, int threads, const char* version) {
  OrtMemoryInfo* memory = nullptr;
  Check(api, api.CreateCpuMemoryInfo(kArenaAllocator, kMemTypeDefault, &memory));
  const Settings settings{threads, memory, InfersShapes(version)};
  OrtCustomOpDomain* domain = nullptr;
  Check(api, api.CreateCustomOpDomain(kDomain, &domain));
  Check(api, api.CustomOpDomain_Add(domain, new CustomOp<SparseLinear>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new CustomOp<SparseConv>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new AttentionOp(api, settings)));
  // Of operators of one name ONNX Runtime takes the schema of the first, so the CPU's come first.
  Check(api, api.CustomOpDomain_Add(domain, new CudaOp<CudaSparseLinear>(api, settings)));
  Check(api, api.CustomOpDomain_Add(domain, new CudaOp<CudaSparseConv>(api, settings)));
  return domain;
}

OrtCustomOpDomain* DomainFor(const OrtApi& api, int threads, const char* version) {
  static auto* mutex = new std::mutex;
  static auto* domains = new std::map<int, OrtCustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(*mutex);
  OrtCustomOpDomain*& domain = (*domains)[threads];
  if (domain == nullptr) domain = MakeDomain(api, threads, version);
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
    const int threads = SessionThreads(*api, options);
    Check(*api, api->AddCustomOpDomain(options, DomainFor(*api, threads, base->GetVersionString())));
  });
}
