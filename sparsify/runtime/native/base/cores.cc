#include "cores.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace sparsify {
namespace {

std::vector<int> AllowedProcessors() {
  std::vector<int> processors;
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &allowed)) processors.push_back(i);
    }
  }
#endif
  return processors;
}

}  // namespace

int CountCores(const std::string& folder, const std::vector<int>& processors) {
  std::set<std::string> cores;
  for (const int processor : processors) {
    std::string siblings;
    for (const char* name : {"core_cpus_list", "thread_siblings_list"}) {  // the second before Linux 5.3
      std::ifstream file(folder + "/cpu" + std::to_string(processor) + "/topology/" + name);
      if (std::getline(file, siblings) && !siblings.empty()) break;
    }
    if (siblings.empty()) return 0;
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

int AvailableCores() {
  static const int count = [] {
    const int cores = CountCores("/sys/devices/system/cpu", AllowedProcessors());
    return std::max(1, cores > 0 ? cores : static_cast<int>(std::thread::hardware_concurrency()));
  }();
  return count;
}

}  // namespace sparsify
