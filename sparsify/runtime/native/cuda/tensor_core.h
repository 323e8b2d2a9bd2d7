// The instructions of tensor cores (sm_80 and newer) that the kernels use, and the roundings before them.
//
// A warp multiplies together: d [16, 8] += a [16, K] b [K, 8], of which a lane holds parts. With g = lane / 4
// and q = lane % 4 (PTX ISA, "matrix fragments for mma"):
//
//   d[c]  row g + 8 (c / 2), column 2 q + c % 2
//   TF32, K = 8        a[i]  row g + 8 (i % 2), k = q + 4 (i / 2)         b[i]  k = q + 4 i, column g
//   16 bits, K = 16    a[i]  row g + 8 (i % 2), k = 2 q + 8 (i / 2) and the next, the first in the low half
//                      b[i]  k = 2 q + 8 i and the next, column g
//
// tests/native/cuda_emulation_tensor.h has the same for a CPU.
#ifndef SPARSIFY_CUDA_TENSOR_CORE_H_
#define SPARSIFY_CUDA_TENSOR_CORE_H_

#include <cstdint>

#if defined(__CUDACC__)

namespace sparsify::cuda {

// The nearest number of 11 significant bits, ties away from zero; what the instruction takes as TF32.
__device__ inline uint32_t RoundToTf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Two numbers rounded to nearest even, the first in the low half. float16 overflows to infinity.
__device__ inline uint32_t PackBfloat16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

__device__ inline uint32_t PackFloat16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

#define SPARSIFY_MMA(NAME, SHAPE)                                                                   \
  __device__ inline void NAME(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {      \
    asm volatile("mma.sync.aligned." SHAPE " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));               \
  }

SPARSIFY_MMA(MultiplyTf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
SPARSIFY_MMA(MultiplyBfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
SPARSIFY_MMA(MultiplyFloat16, "m16n8k16.row.col.f32.f16.f16.f32")

#undef SPARSIFY_MMA

}  // namespace sparsify::cuda

#endif  // defined(__CUDACC__)

#endif  // SPARSIFY_CUDA_TENSOR_CORE_H_
