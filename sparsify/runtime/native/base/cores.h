// How many threads ONNX Runtime takes where nobody says: one a core, not one a hardware thread.
#ifndef SPARSIFY_BASE_CORES_H_
#define SPARSIFY_BASE_CORES_H_

#include <string>
#include <vector>

namespace sparsify {

// Cores among these logical processors, told apart by what `folder` says of each
// ("cpu3/topology/core_cpus_list", as in /sys/devices/system/cpu); 0 where it does not say.
int CountCores(const std::string& folder, const std::vector<int>& processors);

// Cores that this process may run on, at least one. Where the system does not tell, its logical processors.
int AvailableCores();

}  // namespace sparsify

#endif  // SPARSIFY_BASE_CORES_H_
