#include "cpu.h"

#include <cstdint>
#include <string>

#if defined(__x86_64__) || defined(_M_X64)
#define SPARSIFY_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace sparsify {
namespace {

#if defined(SPARSIFY_X86)
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers Cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) r = Registers();
#endif
  return r;
}

uint64_t EnabledStates() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

CpuFlags Detect() {
  CpuFlags flags;
  const Registers basic = Cpuid(1, 0);
  if (!Bit(basic.ecx, 27)) return flags;  // the operating system has not enabled XGETBV
  const uint64_t states = EnabledStates();
  const Registers extended = Cpuid(7, 0);
  const bool ymm = (states & 0x6) == 0x6;
  const bool zmm = (states & 0xe6) == 0xe6;
  flags.avx2 = ymm && Bit(basic.ecx, 12) && Bit(basic.ecx, 28) && Bit(extended.ebx, 5);
  flags.avx512 = flags.avx2 && zmm && Bit(extended.ebx, 16) && Bit(extended.ebx, 17) &&
                 Bit(extended.ebx, 30) && Bit(extended.ebx, 31);
  flags.avx512_vnni = flags.avx512 && Bit(extended.ecx, 11);
  flags.avx512_vbmi2 = flags.avx512 && Bit(extended.ecx, 6);
  flags.avx512_bf16 = flags.avx512 && Bit(Cpuid(7, 1).eax, 5);
  return flags;
}

// Cache descriptions by Intel's leaf or AMD's, which have one form.
int64_t DescribedCache(uint32_t leaf, int level) {
  constexpr uint32_t kDescriptions = 16, kInstructions = 2;
  for (uint32_t i = 0; i < kDescriptions; ++i) {
    const Registers r = Cpuid(leaf, i);
    const uint32_t type = r.eax & 31;
    if (type == 0) break;
    if (type == kInstructions || static_cast<int>(r.eax >> 5 & 7) != level) continue;
    const int64_t ways = (r.ebx >> 22) + 1, parts = (r.ebx >> 12 & 1023) + 1, line = (r.ebx & 4095) + 1;
    return ways * parts * line * (int64_t{r.ecx} + 1);
  }
  return 0;
}

int64_t DetectCache(int level) {
  constexpr uint32_t kIntel = 4, kAmd = 0x8000001d;
  const int64_t bytes = DescribedCache(kIntel, level);
  return bytes != 0 ? bytes : DescribedCache(kAmd, level);
}
#else
CpuFlags Detect() { return CpuFlags(); }
int64_t DetectCache(int) { return 0; }
#endif

std::string Names() {
  const CpuFlags& flags = Cpu();
  std::string names;
  const struct {
    bool set;
    const char* name;
  } rows[] = {{flags.avx2, "avx2"},
              {flags.avx512, "avx512"},
              {flags.avx512_vnni, "avx512_vnni"},
              {flags.avx512_vbmi2, "avx512_vbmi2"},
              {flags.avx512_bf16, "avx512_bf16"}};
  for (const auto& row : rows) {
    if (row.set) names += (names.empty() ? "" : " ") + std::string(row.name);
  }
  return names;
}

}  // namespace

const CpuFlags& Cpu() {
  static const CpuFlags flags = Detect();
  return flags;
}

int64_t CacheBytes(int level) { return DetectCache(level); }

const char* CpuFlagNames() {
  static const std::string* names = new std::string(Names());
  return names->c_str();
}

}  // namespace sparsify
