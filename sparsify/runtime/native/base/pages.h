// Memory that nobody will read for a while.
#ifndef SPARSIFY_BASE_PAGES_H_
#define SPARSIFY_BASE_PAGES_H_

#include <cstddef>

namespace sparsify {

// Lets the system take the whole pages inside this memory out of the process. Their content stays what it is
// and comes back when it is next read: of a file that is mapped, from that file. A hint: where the system
// knows none, or refuses, nothing happens.
void PageOut(const void* data, size_t bytes);

}  // namespace sparsify

#endif  // SPARSIFY_BASE_PAGES_H_
