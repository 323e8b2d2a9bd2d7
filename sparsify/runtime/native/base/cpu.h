// Instruction sets of the CPU that this process runs on.
#ifndef SPARSIFY_BASE_CPU_H_
#define SPARSIFY_BASE_CPU_H_

#include <cstdint>

namespace sparsify {

struct CpuFlags {
  bool avx2 = false;    // with FMA, and the operating system saves the registers
  bool avx512 = false;  // F, BW, DQ and VL, and the operating system saves the registers
  bool avx512_vnni = false;
  bool avx512_vbmi2 = false;  // came with Ice Lake and Zen 4
  bool avx512_bf16 = false;
};

// Asked of the CPU once.
const CpuFlags& Cpu();

// Bytes of a core's data cache of level 1 or 2 as the CPU states them, or 0.
int64_t CacheBytes(int level);

// Space-separated names of the set flags, for people.
const char* CpuFlagNames();

}  // namespace sparsify

#endif  // SPARSIFY_BASE_CPU_H_
