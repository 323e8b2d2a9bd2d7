#include "family.h"

#include <cstdlib>
#include <cstring>

#include "../../base/cpu.h"
#include "../../base/tuning.h"

namespace sparsify {
namespace csr {
namespace {

struct Row {
  const Isa* isa;
  bool (*supported)();
};

#define SPARSIFY_ISA_ROW(name, condition) {&isa_##name, [] { return bool(condition); }},
const Row kTable[] = {SPARSIFY_CSR_ISAS(SPARSIFY_ISA_ROW)};
#undef SPARSIFY_ISA_ROW

}  // namespace

size_t IsaCount() { return sizeof(kTable) / sizeof(kTable[0]); }
const Isa& IsaAt(size_t index) { return *kTable[index].isa; }
bool IsaSupported(size_t index) { return kTable[index].supported(); }

const Isa* FindIsa(const char* name, std::string* error) {
  if (FindTuning(error) == nullptr) return nullptr;
  const bool given = name != nullptr && *name != '\0';
  std::string names;
  for (size_t i = IsaCount(); i-- > 0;) {
    const Row& row = kTable[i];
    if (!given && row.supported()) return row.isa;
    if (given && std::strcmp(name, row.isa->name) == 0) {
      if (row.supported()) return row.isa;
      *error = "csr: this CPU does not run the kernel '" + std::string(name) + "'";
      return nullptr;
    }
    names += " " + std::string(row.isa->name);
  }
  *error = "csr: no kernel '" + std::string(name != nullptr ? name : "") + "'; there are" + names;
  return nullptr;
}

}  // namespace csr
}  // namespace sparsify
