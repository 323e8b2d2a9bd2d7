// The CUDA driver, opened when it is first needed: the library loads where there is none.
//
// SPARSIFY_CUDA_DRIVER names another library to open instead. Only functions that drivers of CUDA 11 have are
// used.
#ifndef SPARSIFY_CUDA_DRIVER_H_
#define SPARSIFY_CUDA_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sparsify::cuda {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Result = int;                // CUresult; 0 is success
using Ordinal = int;               // CUdevice
using Address = uint64_t;          // CUdeviceptr
using Context = struct CUctx_st*;  // and so on: handles of the driver's own
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using Stream = struct CUstream_st*;

enum Attribute : int { kMultiprocessors = 16, kCapabilityMajor = 75, kCapabilityMinor = 76 };
inline constexpr Result kNoDevice = 100;

// Members are named like the driver's functions; Open finds them by these names.
struct Driver {
  Result (*cuInit)(unsigned flags);
  Result (*cuGetErrorName)(Result result, const char** name);
  Result (*cuGetErrorString)(Result result, const char** text);
  Result (*cuDriverGetVersion)(int* version);
  Result (*cuDeviceGetCount)(int* count);
  Result (*cuDeviceGet)(Ordinal* device, int ordinal);
  Result (*cuDeviceGetName)(char* name, int size, Ordinal device);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, Ordinal device);
  Result (*cuDevicePrimaryCtxRetain)(Context* context, Ordinal device);
  Result (*cuCtxGetDevice)(Ordinal* device);
  Result (*cuCtxPushCurrent)(Context context);
  Result (*cuCtxPopCurrent)(Context* context);
  Result (*cuModuleLoadDataEx)(Module* module, const void* image, unsigned options, int* names,
                               void** values);
  Result (*cuModuleGetFunction)(Function* function, Module module, const char* name);
  Result (*cuMemAlloc)(Address* address, size_t bytes);
  Result (*cuMemFree)(Address address);
  Result (*cuMemcpyHtoD)(Address to, const void* from, size_t bytes);
  Result (*cuMemcpyDtoH)(void* to, Address from, size_t bytes);
  Result (*cuStreamSynchronize)(Stream stream);
  Result (*cuLaunchKernel)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                           Stream stream, void** arguments, void** extra);

  // The driver, initialised. Throws Failure with what to do where there is none.
  static const Driver& Get();

  // Throws Failure "<what>: <the driver's words>" unless the result is success.
  void Check(Result result, const std::string& what) const;
};

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_DRIVER_H_
