// Instruction sets of the CPU that this process runs on.
#ifndef SPARSIFY_BASE_CPU_H_
#define SPARSIFY_BASE_CPU_H_

namespace sparsify {

struct CpuFlags {
  bool avx2 = false;    // with FMA, and the operating system saves the registers
  bool avx512 = false;  // F, BW, DQ and VL, and the operating system saves the registers
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
};

// Asked of the CPU once.
const CpuFlags& Cpu();

// Space-separated names of the set flags, for people.
const char* CpuFlagNames();

}  // namespace sparsify

#endif  // SPARSIFY_BASE_CPU_H_
