#include "driver.h"

#include <cstdlib>
#include <mutex>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace sparsify::cuda {
namespace {

constexpr const char* kVariable = "SPARSIFY_CUDA_DRIVER";

#if defined(_WIN32)
constexpr const char* kDefault = "nvcuda.dll";
void* OpenLibrary(const char* name) { return reinterpret_cast<void*>(LoadLibraryA(name)); }
void* FindSymbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
std::string OpenError() { return "error " + std::to_string(GetLastError()); }
#else
constexpr const char* kDefault = "libcuda.so.1";
void* OpenLibrary(const char* name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void* FindSymbol(void* library, const char* name) { return dlsym(library, name); }
std::string OpenError() {
  const char* text = dlerror();
  return text != nullptr ? text : "unknown error";
}
#endif

template <typename Pointer>
void Find(void* library, const std::string& file, const char* name, Pointer* function) {
  *function = reinterpret_cast<Pointer>(FindSymbol(library, name));
  if (*function == nullptr) {
    throw Failure("the CUDA driver " + file + " lacks " + name + ": install a newer one");
  }
}

void FindAll(void* library, const std::string& file, Driver* driver) {
  const auto find = [&](const char* name, auto* function) { Find(library, file, name, function); };
  find("cuInit", &driver->cuInit);
  find("cuGetErrorName", &driver->cuGetErrorName);
  find("cuGetErrorString", &driver->cuGetErrorString);
  find("cuDriverGetVersion", &driver->cuDriverGetVersion);
  find("cuDeviceGetCount", &driver->cuDeviceGetCount);
  find("cuDeviceGet", &driver->cuDeviceGet);
  find("cuDeviceGetName", &driver->cuDeviceGetName);
  find("cuDeviceGetAttribute", &driver->cuDeviceGetAttribute);
  find("cuDevicePrimaryCtxRetain", &driver->cuDevicePrimaryCtxRetain);
  find("cuCtxGetDevice", &driver->cuCtxGetDevice);
  find("cuCtxPushCurrent_v2", &driver->cuCtxPushCurrent);
  find("cuCtxPopCurrent_v2", &driver->cuCtxPopCurrent);
  find("cuModuleLoadDataEx", &driver->cuModuleLoadDataEx);
  find("cuModuleGetFunction", &driver->cuModuleGetFunction);
  find("cuMemAlloc_v2", &driver->cuMemAlloc);
  find("cuMemFree_v2", &driver->cuMemFree);
  find("cuMemcpyHtoD_v2", &driver->cuMemcpyHtoD);
  find("cuMemcpyDtoH_v2", &driver->cuMemcpyDtoH);
  find("cuStreamSynchronize", &driver->cuStreamSynchronize);
  find("cuLaunchKernel", &driver->cuLaunchKernel);
}

Driver Open() {
  const char* forced = std::getenv(kVariable);
  const std::string file = forced != nullptr ? forced : kDefault;
  void* library = OpenLibrary(file.c_str());
  if (library == nullptr) {
    throw Failure("there is no CUDA driver (" + OpenError() +
                  "): install NVIDIA's driver, or run on the CPU (CPUExecutionProvider)");
  }
  Driver driver{};
  FindAll(library, file, &driver);
  driver.Check(driver.cuInit(0), "the CUDA driver does not start");
  return driver;
}

}  // namespace

const Driver& Driver::Get() {
  static auto* mutex = new std::mutex;  // neither is destroyed: kernels may outlive what is
  static const Driver* driver = nullptr;
  const std::lock_guard<std::mutex> lock(*mutex);
  if (driver == nullptr) driver = new Driver(Open());
  return *driver;
}

void Driver::Check(Result result, const std::string& what) const {
  if (result == 0) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  throw Failure(what + ": " + (name != nullptr ? name : "unknown CUDA error " + std::to_string(result)) +
                (text != nullptr ? std::string(", ") + text : ""));
}

}  // namespace sparsify::cuda
