// A device with its context, its kernels and memory on it.
#ifndef SPARSIFY_CUDA_DEVICE_MODULE_H_
#define SPARSIFY_CUDA_DEVICE_MODULE_H_

#include <cstddef>
#include <memory>
#include <string>

#include "driver.h"

namespace sparsify::cuda {

// The file of kernels: SPARSIFY_CUDA_KERNELS, else `_cuda/kernels.fatbin` beside the folder of this library.
std::string KernelsFile();

// Lives until the process ends. Its context is the primary one, which ONNX Runtime uses too.
class Device {
 public:
  // Throws Failure where there is no such device, or no kernels that run on it.
  static const Device& At(int ordinal);
  // The one of this thread's context, or else the first.
  static const Device& Current();

  const Driver& driver() const { return driver_; }
  Context context() const { return context_; }
  int multiprocessors() const { return multiprocessors_; }
  const std::string& label() const { return label_; }  // "NAME (sm_90)", for messages
  Function Find(const std::string& kernel) const;

 private:
  explicit Device(int ordinal);

  const Driver& driver_;
  Context context_ = nullptr;
  Module module_ = nullptr;
  int multiprocessors_ = 1;
  std::string label_;
};

// Makes a device's context this thread's while it lives.
class Entered {
 public:
  explicit Entered(const Driver& driver, Context context);
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;
  ~Entered();

 private:
  const Driver& driver_;
};

// Memory on a device, filled from the host's.
class Buffer {
 public:
  Buffer(const Device& device, const void* data, size_t bytes);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  const void* data() const { return reinterpret_cast<const void*>(address_); }

 private:
  const Device& device_;
  Address address_ = 0;
};

// Copies a device's memory to the host's.
void CopyToHost(const Device& device, const void* from, size_t bytes, void* to);

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_DEVICE_MODULE_H_
