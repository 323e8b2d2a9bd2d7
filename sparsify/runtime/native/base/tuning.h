// What kernels suit themselves to beyond instruction sets: a core's data caches, and how far it looks ahead.
#ifndef SPARSIFY_BASE_TUNING_H_
#define SPARSIFY_BASE_TUNING_H_

#include <cstdint>
#include <string>

namespace sparsify {

struct Tuning {
  const char* name;
  int64_t l1_bytes;
  int64_t l2_bytes;
  // Whether some hundred instructions are in flight, so that loads of what is used next begin by themselves:
  // asking for it only takes load ports, and so does a weight's load less than spreading it by a shuffle.
  bool deep;
};

// SPARSIFY_TUNE_FOR, or what this CPU is. Null and *error for a name that is not known.
const Tuning* FindTuning(std::string* error);

// The same when first called, which holds from then on; that of this CPU where the name is not known, as
// whoever makes a kernel has told so.
const Tuning& Tuned();

}  // namespace sparsify

#endif  // SPARSIFY_BASE_TUNING_H_
