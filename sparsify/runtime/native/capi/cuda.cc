#include "cuda.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "../cuda/device_module.h"

namespace {

template <size_t N>
void Copy(const std::string& text, char (&to)[N]) {
  const size_t size = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), size);
  to[size] = '\0';
}

}  // namespace

void sparsify_cuda_probe(sparsify_cuda_state* state) {
  using namespace sparsify::cuda;
  *state = {};
  state->stage = SPARSIFY_CUDA_NO_DRIVER;
  try {
    Copy(KernelsFile(), state->kernels);
    const Driver& driver = Driver::Get();
    state->stage = SPARSIFY_CUDA_NO_DEVICE;
    int version = 0, devices = 0;
    driver.cuDriverGetVersion(&version);
    state->driver_version = version;
    if (driver.cuDeviceGetCount(&devices) == 0) state->devices = devices;
    if (state->devices > 0) state->stage = SPARSIFY_CUDA_NO_KERNELS;
    const Device& device = Device::At(0);
    state->stage = SPARSIFY_CUDA_READY;
    state->multiprocessors = device.multiprocessors();
    Copy(device.label(), state->device);
  } catch (const std::exception& problem) {
    Copy(problem.what(), state->message);
  }
}
