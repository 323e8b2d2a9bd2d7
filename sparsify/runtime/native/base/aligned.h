// Memory at cache-line boundaries.
#ifndef SPARSIFY_BASE_ALIGNED_H_
#define SPARSIFY_BASE_ALIGNED_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace sparsify {

constexpr size_t kCacheLine = 64;

constexpr size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// First address at or after `pointer` on a cache line.
template <class T>
T* AlignUp(void* pointer) {
  return reinterpret_cast<T*>(RoundUp(reinterpret_cast<uintptr_t>(pointer), kCacheLine));
}

// A fixed number of zero bytes that start on a cache line.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes)
      : memory_(new unsigned char[bytes + kCacheLine]()), data_(AlignUp<unsigned char>(memory_.get())) {}

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_ = nullptr;
};

}  // namespace sparsify

#endif  // SPARSIFY_BASE_ALIGNED_H_
