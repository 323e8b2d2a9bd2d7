// A CUDA driver without a GPU: its memory is the host's, and what is launched is recorded and run by the
// emulation.
//
// Environment: SPARSIFY_STUB_DEVICES (1), SPARSIFY_STUB_ARCH (90), and SPARSIFY_STUB_FAIL, "function=result",
// as stub_fail takes it.
#include <map>
#include <set>
#include <string>

// The kernels are written in what the emulation defines, so it comes first.
// clang-format off
#include "cuda_emulation.h"
#include "cuda_emulation_tensor.h"
#include "cuda/kernels.cu"
// clang-format on

#include "cuda_stub.h"

namespace cuda_stub {
namespace {

using sparsify::cuda::ConvArguments;
using sparsify::cuda::LinearArguments;

constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xff;  // as floats NaN
constexpr int kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidContext = 201, kNoBinary = 209,
              kNotFound = 500;

struct Kernel {
  const char* name;
  unsigned threads;
  void (*linear)(LinearArguments);
  void (*conv)(ConvArguments);
};

#define SPARSIFY_STUB_KERNELS(R)                                                                   \
  {"gather_" #R "_1", 128, sparsify::cuda::gather_##R##_1, nullptr},                               \
      {"gather_" #R "_4", 128, sparsify::cuda::gather_##R##_4, nullptr},                           \
      {"tile_" #R "_1", sparsify::cuda::TileWarps(R) * 32, sparsify::cuda::tile_##R##_1, nullptr}, \
      {"tile_" #R "_2", sparsify::cuda::TileWarps(R) * 32, sparsify::cuda::tile_##R##_2, nullptr}, \
      {"conv_" #R "_1", 256, nullptr, sparsify::cuda::conv_##R##_1},                               \
      {"conv_" #R "_2", 256, nullptr, sparsify::cuda::conv_##R##_2},

#define SPARSIFY_STUB_TENSOR_KERNELS(R, V)                               \
  {"split_" #R "_" #V, 256, sparsify::cuda::split_##R##_##V, nullptr},   \
      {"tf32_" #R "_" #V, 256, sparsify::cuda::tf32_##R##_##V, nullptr}, \
      {"half_" #R "_" #V, 256, sparsify::cuda::half_##R##_##V, nullptr},

const Kernel kKernels[] = {
    SPARSIFY_STUB_KERNELS(1) SPARSIFY_STUB_KERNELS(2) SPARSIFY_STUB_KERNELS(4) SPARSIFY_STUB_KERNELS(8)
        SPARSIFY_STUB_KERNELS(16) SPARSIFY_STUB_TENSOR_KERNELS(8, 1) SPARSIFY_STUB_TENSOR_KERNELS(8, 2)
            SPARSIFY_STUB_TENSOR_KERNELS(8, 4) SPARSIFY_STUB_TENSOR_KERNELS(16, 1)
                SPARSIFY_STUB_TENSOR_KERNELS(16, 2) SPARSIFY_STUB_TENSOR_KERNELS(16, 4)};

struct State {
  std::vector<Launch> launches;
  std::map<uint64_t, size_t> memory;  // address to bytes
  std::map<std::string, int> failures;
  std::set<std::string> texts;
  Counts counts{};
};

int FromEnvironment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoi(text) : otherwise;
}

State& TheState() {
  static State* state = [] {
    auto* made = new State;
    if (const char* failure = std::getenv("SPARSIFY_STUB_FAIL")) {
      const char* sign = std::strchr(failure, '=');
      if (sign != nullptr) made->failures[std::string(failure, sign)] = std::atoi(sign + 1);
    }
    return made;
  }();
  return *state;
}

int Fails(const char* function) {
  const auto found = TheState().failures.find(function);
  return found == TheState().failures.end() ? 0 : found->second;
}

// Whether all of these bytes are inside one allocation.
bool Holds(const void* data, int64_t bytes) {
  const auto address = reinterpret_cast<uint64_t>(data);
  auto next = TheState().memory.upper_bound(address);
  if (next == TheState().memory.begin()) return false;
  --next;
  return address + static_cast<uint64_t>(bytes) <= next->first + next->second;
}

bool WeightIsThere(const sparsify::cuda::Weight& weight) {
  if (!Holds(weight.pointers, 4 * (int64_t{weight.lines} + 1))) return false;
  const int64_t blocks = weight.pointers[weight.lines], stored = blocks > 0 ? blocks : 1;
  const int64_t rows = (weight.rows + weight.lines - 1) / weight.lines;
  return Holds(weight.columns, stored * (weight.narrow != 0 ? 2 : 4)) &&
         Holds(weight.values, stored * rows * (weight.value_type == 0 ? 4 : 2));
}

bool EndingIsThere(const sparsify::cuda::Ending& ending, int64_t rows, int64_t outputs) {
  return (ending.bias == nullptr || Holds(ending.bias, 4 * rows)) &&
         (ending.residual == nullptr || Holds(ending.residual, 4 * outputs));
}

bool IsThere(const LinearArguments& a) {
  const int64_t outputs = a.batch * a.weight.rows;
  return WeightIsThere(a.weight) && EndingIsThere(a.ending, a.weight.rows, outputs) &&
         Holds(a.x, 4 * a.batch * a.columns) && Holds(a.y, 4 * outputs);
}

bool IsThere(const ConvArguments& a) {
  const int64_t outputs = a.batch * a.weight.rows * a.out_height * a.out_width;
  return WeightIsThere(a.weight) && EndingIsThere(a.ending, a.weight.rows, outputs) &&
         Holds(a.x, 4 * a.batch * a.channels * a.height * a.width) && Holds(a.y, 4 * outputs);
}

}  // namespace
}  // namespace cuda_stub

using namespace cuda_stub;

#define SPARSIFY_STUB(name) \
  if (const int failure = Fails(name)) return failure

extern "C" {

size_t stub_launches() { return TheState().launches.size(); }
const Launch* stub_launch(size_t index) { return &TheState().launches[index]; }
void stub_forget() { TheState().launches.clear(); }
Counts stub_counts() { return TheState().counts; }
void stub_fail(const char* function, int result) { TheState().failures[function] = result; }

bool stub_guards_intact() {
  for (const auto& [address, bytes] : TheState().memory) {
    const auto* memory = reinterpret_cast<const unsigned char*>(address);
    for (size_t i = 0; i < kGuard; ++i) {
      if (memory[i - kGuard] != kGuardByte || memory[bytes + i] != kGuardByte) return false;
    }
  }
  return true;
}

int cuInit(unsigned) { return Fails("cuInit"); }

int cuGetErrorName(int result, const char** name) {
  *name = TheState().texts.insert("CUDA_ERROR_" + std::to_string(result)).first->c_str();
  return 0;
}

int cuGetErrorString(int, const char** text) {
  *text = "as the stub was told";
  return 0;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return Fails("cuDriverGetVersion");
}

int cuDeviceGetCount(int* count) {
  SPARSIFY_STUB("cuDeviceGetCount");
  *count = FromEnvironment("SPARSIFY_STUB_DEVICES", 1);
  return *count == 0 ? kNoDevice : 0;
}

int cuDeviceGet(int* device, int ordinal) {
  SPARSIFY_STUB("cuDeviceGet");
  *device = ordinal;
  return 0;
}

int cuDeviceGetName(char* name, int size, int) {
  SPARSIFY_STUB("cuDeviceGetName");
  std::snprintf(name, static_cast<size_t>(size), "Stub GPU");
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  SPARSIFY_STUB("cuDeviceGetAttribute");
  const int arch = FromEnvironment("SPARSIFY_STUB_ARCH", 90);
  *value = attribute == 16 ? 4 : attribute == 75 ? arch / 10 : arch % 10;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  SPARSIFY_STUB("cuDevicePrimaryCtxRetain");
  *context = reinterpret_cast<void*>(static_cast<uintptr_t>(0xc0 + device));
  return 0;
}

int cuCtxGetDevice(int* device) {
  SPARSIFY_STUB("cuCtxGetDevice");
  if (TheState().counts.contexts == 0) return kInvalidContext;
  *device = 0;
  return 0;
}

int cuCtxPushCurrent_v2(void*) {
  SPARSIFY_STUB("cuCtxPushCurrent_v2");
  ++TheState().counts.contexts;
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  *context = nullptr;
  --TheState().counts.contexts;
  return 0;
}

int cuModuleLoadDataEx(void** module, const void*, unsigned, int*, void**) {
  SPARSIFY_STUB("cuModuleLoadDataEx");
  *module = reinterpret_cast<void*>(uintptr_t{0x50});
  return FromEnvironment("SPARSIFY_STUB_ARCH", 90) < 80 ? kNoBinary : 0;
}

int cuModuleGetFunction(const void** function, void*, const char* name) {
  SPARSIFY_STUB("cuModuleGetFunction");
  for (const Kernel& kernel : kKernels) {
    if (std::strcmp(kernel.name, name) != 0) continue;
    *function = &kernel;
    return 0;
  }
  return kNotFound;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  SPARSIFY_STUB("cuMemAlloc_v2");
  if (bytes == 0 || TheState().counts.contexts == 0) return kInvalidValue;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(kGuard, (bytes / kGuard + 3) * kGuard));
  if (memory == nullptr) return kOutOfMemory;
  std::memset(memory, kGuardByte, (bytes / kGuard + 3) * kGuard);
  *address = reinterpret_cast<uint64_t>(memory + kGuard);
  TheState().memory[*address] = bytes;
  ++TheState().counts.allocations;
  return 0;
}

int cuMemFree_v2(uint64_t address) {
  SPARSIFY_STUB("cuMemFree_v2");
  if (TheState().memory.erase(address) == 0) return kInvalidValue;
  std::free(reinterpret_cast<unsigned char*>(address) - kGuard);
  ++TheState().counts.frees;
  return 0;
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  SPARSIFY_STUB("cuMemcpyHtoD_v2");
  if (!Holds(reinterpret_cast<void*>(to), static_cast<int64_t>(bytes))) return kInvalidValue;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  ++TheState().counts.to_device;
  return 0;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  SPARSIFY_STUB("cuMemcpyDtoH_v2");
  if (!Holds(reinterpret_cast<void*>(from), static_cast<int64_t>(bytes))) return kInvalidValue;
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  ++TheState().counts.to_host;
  return 0;
}

int cuStreamSynchronize(void*) { return Fails("cuStreamSynchronize"); }

int cuLaunchKernel(const void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** arguments,
                   void** extra) {
  SPARSIFY_STUB("cuLaunchKernel");
  const Kernel& kernel = *static_cast<const Kernel*>(function);
  const bool fits = grid_x > 0 && grid_y > 0 && grid_y <= 65535 && grid_z == 1 && block_x == kernel.threads &&
                    block_y == 1 && block_z == 1 && extra == nullptr;
  if (!fits || TheState().counts.contexts == 0) return kInvalidValue;
  Launch launch{};
  launch.kernel = kernel.name;
  const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
  std::memcpy(launch.grid, grid, sizeof(grid));
  std::memcpy(launch.block, block, sizeof(block));
  launch.shared_bytes = shared_bytes;
  launch.stream = stream;
  launch.convolution = kernel.conv != nullptr;
  if (launch.convolution) {
    launch.conv = *static_cast<const ConvArguments*>(arguments[0]);
    if (!IsThere(launch.conv)) return kInvalidValue;
  } else {
    launch.linear = *static_cast<const LinearArguments*>(arguments[0]);
    if (!IsThere(launch.linear)) return kInvalidValue;
  }
  TheState().launches.push_back(launch);
  cuda_emulation::RunGrid({grid_x, grid_y, 1}, block_x, [&] {
    launch.convolution ? kernel.conv(launch.conv) : kernel.linear(launch.linear);
  });
  return 0;
}

}  // extern "C"
