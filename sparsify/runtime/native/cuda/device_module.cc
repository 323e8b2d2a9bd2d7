#include "device_module.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace sparsify::cuda {
namespace {

constexpr const char* kVariable = "SPARSIFY_CUDA_KERNELS";

// Path of the library that this code is in.
std::string OwnFile() {
#if defined(_WIN32)
  HMODULE module = nullptr;
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                     reinterpret_cast<LPCSTR>(&OwnFile), &module);
  char path[MAX_PATH] = {};
  GetModuleFileNameA(module, path, MAX_PATH);
  return path;
#else
  Dl_info info{};
  return dladdr(reinterpret_cast<void*>(&OwnFile), &info) != 0 && info.dli_fname != nullptr ? info.dli_fname
                                                                                            : "";
#endif
}

std::vector<char> ReadKernels(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> image{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || image.empty()) {
    throw Failure("the CUDA kernels are not installed (looked for " + path +
                  "): build the package where nvcc is, or run on the CPU (CPUExecutionProvider)");
  }
  return image;
}

}  // namespace

std::string KernelsFile() {
  if (const char* forced = std::getenv(kVariable)) return forced;
  const std::string own = OwnFile();
  const size_t slash = own.find_last_of("/\\");
  return (slash == std::string::npos ? "." : own.substr(0, slash)) + "/../_cuda/kernels.fatbin";
}

Entered::Entered(const Driver& driver, Context context) : driver_(driver) {
  driver_.Check(driver_.cuCtxPushCurrent(context), "the CUDA context cannot be entered");
}

Entered::~Entered() {
  Context popped = nullptr;
  driver_.cuCtxPopCurrent(&popped);
}

Device::Device(int ordinal) : driver_(Driver::Get()) {
  int count = 0;
  const Result counted = driver_.cuDeviceGetCount(&count);
  if (counted == kNoDevice || (counted == 0 && ordinal >= count)) {
    throw Failure("there is no CUDA device " + std::to_string(ordinal) + " (found " + std::to_string(count) +
                  "): run on the CPU (CPUExecutionProvider)");
  }
  driver_.Check(counted, "the CUDA devices cannot be counted");
  Ordinal device = 0;
  driver_.Check(driver_.cuDeviceGet(&device, ordinal), "CUDA device " + std::to_string(ordinal));
  char name[256] = {};
  int major = 0, minor = 0;
  driver_.Check(driver_.cuDeviceGetName(name, sizeof(name), device), "name of the CUDA device");
  driver_.Check(driver_.cuDeviceGetAttribute(&major, kCapabilityMajor, device), name);
  driver_.Check(driver_.cuDeviceGetAttribute(&minor, kCapabilityMinor, device), name);
  driver_.Check(driver_.cuDeviceGetAttribute(&multiprocessors_, kMultiprocessors, device), name);
  label_ = std::string(name) + " (sm_" + std::to_string(major) + std::to_string(minor) + ")";
  const std::string file = KernelsFile();
  const std::vector<char> image = ReadKernels(file);
  driver_.Check(driver_.cuDevicePrimaryCtxRetain(&context_, device), "no CUDA context on " + label_);
  const Entered entered(driver_, context_);
  driver_.Check(driver_.cuModuleLoadDataEx(&module_, image.data(), 0, nullptr, nullptr),
                "the CUDA kernels of " + file + " do not load on " + label_ +
                    " (they need sm_80 or newer, and a driver as new as the nvcc that built them)");
}

const Device& Device::At(int ordinal) {
  static auto* mutex = new std::mutex;
  static auto* devices = new std::map<int, const Device*>;
  const std::lock_guard<std::mutex> lock(*mutex);
  const Device*& device = (*devices)[ordinal];
  if (device == nullptr) device = new Device(ordinal);
  return *device;
}

const Device& Device::Current() {
  Ordinal device = 0;
  return At(Driver::Get().cuCtxGetDevice(&device) == 0 ? device : 0);
}

Function Device::Find(const std::string& kernel) const {
  Function function = nullptr;
  driver_.Check(driver_.cuModuleGetFunction(&function, module_, kernel.c_str()),
                KernelsFile() + " is of another version, since it lacks the kernel " + kernel +
                    ": install the package again");
  return function;
}

Buffer::Buffer(const Device& device, const void* data, size_t bytes) : device_(device) {
  const Driver& driver = device_.driver();
  const Entered entered(driver, device_.context());
  driver.Check(driver.cuMemAlloc(&address_, bytes),
               std::to_string(bytes) + " bytes for packed weights on " + device_.label());
  // What is copied from pageable memory may still be on its way when the copy returns.
  Result result = driver.cuMemcpyHtoD(address_, data, bytes);
  if (result == 0) result = driver.cuStreamSynchronize(nullptr);
  if (result != 0) driver.cuMemFree(address_);
  driver.Check(result, "packed weights cannot be copied to " + device_.label());
}

Buffer::~Buffer() {
  const Driver& driver = device_.driver();
  if (driver.cuCtxPushCurrent(device_.context()) != 0)
    return;  // the process ends: the driver has gone before
  driver.cuMemFree(address_);
  Context popped = nullptr;
  driver.cuCtxPopCurrent(&popped);
}

void CopyToHost(const Device& device, const void* from, size_t bytes, void* to) {
  const Driver& driver = device.driver();
  const Entered entered(driver, device.context());
  driver.Check(driver.cuMemcpyDtoH(to, reinterpret_cast<Address>(from), bytes),
               "packed weights cannot be read from " + device.label());
}

}  // namespace sparsify::cuda
