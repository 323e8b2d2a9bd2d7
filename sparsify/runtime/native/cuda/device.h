// Reading packed weights and finishing outputs, on the device.
//
// The kernels use nothing of CUDA but the qualifiers, the built-in indices, __syncthreads, __syncwarp,
// __ballot_sync, __shfl_xor_sync, __popc, the mathematics and the instructions of tensor_core.h, so that a
// small emulation can run the same source on a CPU (tests/native/cuda_emulation.h).
#ifndef SPARSIFY_CUDA_DEVICE_H_
#define SPARSIFY_CUDA_DEVICE_H_

#include "../kernels/csr/value_type.h"
#include "../kernels/epilogue.h"
#include "arguments.h"

namespace sparsify::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// N numbers that one instruction loads.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

__device__ inline int Column(const Weight& weight, int64_t i) {
  return weight.narrow != 0 ? static_cast<const uint16_t*>(weight.columns)[i]
                            : static_cast<const int32_t*>(weight.columns)[i];
}

__device__ inline float FloatOf(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } both;
  both.bits = bits;
  return both.value;
}

__device__ inline uint32_t BitsOf(float value) {
  union {
    float value;
    uint32_t bits;
  } both;
  both.value = value;
  return both.bits;
}

__device__ inline float FromHalf(uint32_t half, bool bfloat16) {
  if (bfloat16) return FloatOf(half << 16);
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatOf(sign | 0x7f800000u | (magnitude & 1023u) << 13);
  // Moving the exponent by a product is exact for subnormal numbers too.
  const float value = FloatOf(magnitude << 13) * 5.192296858534828e+33f;  // 2^112
  return sign != 0 ? -value : value;
}

// N values from index i on, a multiple of N.
template <int N>
__device__ inline void LoadValues(const Weight& weight, int64_t i, float* to) {
  if (weight.value_type == static_cast<int32_t>(csr::ValueType::kFloat32)) {
    const Pack<float, N> pack =
        *reinterpret_cast<const Pack<float, N>*>(static_cast<const float*>(weight.values) + i);
#pragma unroll
    for (int n = 0; n < N; ++n) to[n] = pack.at[n];
    return;
  }
  const bool bfloat16 = weight.value_type == static_cast<int32_t>(csr::ValueType::kBfloat16);
  const Pack<uint16_t, N> pack =
      *reinterpret_cast<const Pack<uint16_t, N>*>(static_cast<const uint16_t*>(weight.values) + i);
#pragma unroll
  for (int n = 0; n < N; ++n) to[n] = FromHalf(pack.at[n], bfloat16);
}

// The R values of an entry that was staged in shared memory, at most four by one instruction.
template <int R>
__device__ inline void ReadStaged(const float* staged, float* to) {
  constexpr int P = R < 4 ? R : 4;
#pragma unroll
  for (int r = 0; r < R; r += P) {
    const Pack<float, P> pack = *reinterpret_cast<const Pack<float, P>*>(staged + r);
#pragma unroll
    for (int p = 0; p < P; ++p) to[r + p] = pack.at[p];
  }
}

// NaN passes through relu and clip, as it does on the CPU. A call and not inlined: a kernel has up to 32
// places for it.
__device__ __noinline__ inline float Activate(int32_t activation, float low, float high, float x) {
  switch (static_cast<Activation>(activation)) {
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
    case Activation::kClip:
      return x < low ? low : x > high ? high : x;
    default:
      return x;
  }
}

// One output: row of W, and its place in y and the residual.
__device__ inline void Finish(const Ending& ending, float sum, int row, int64_t place, float* y) {
  if (ending.bias != nullptr) sum += ending.bias[row];
  if (ending.residual != nullptr) sum += ending.residual[place];
  if (ending.activation != static_cast<int32_t>(Activation::kNone)) {
    sum = Activate(ending.activation, ending.low, ending.high, sum);
  }
  y[place] = sum;
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_DEVICE_H_
