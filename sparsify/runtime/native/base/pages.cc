#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace sparsify {

#if defined(__linux__)
void PageOut(const void* data, size_t bytes) {
  // Older headers lack the name; older kernels (before 5.4) refuse the number.
#if defined(MADV_PAGEOUT)
  constexpr int kAdvice = MADV_PAGEOUT;
#else
  constexpr int kAdvice = 21;
#endif
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, kAdvice);
}
#else
void PageOut(const void*, size_t) {}
#endif

}  // namespace sparsify
