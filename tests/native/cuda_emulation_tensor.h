// The instructions of cuda/tensor_core.h on a CPU, with the fragments that the PTX ISA documents.
//
// Products are exact. The sum of an instruction is rounded toward zero, which is the worst that tensor cores
// were seen to do. A TF32 operand of more than 11 bits ends the program, since a GPU would cut it.
#ifndef SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_TENSOR_H_
#define SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_TENSOR_H_

#include "cuda_emulation.h"

namespace cuda_emulation {

inline float FloatFrom(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t BitsFrom(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float Tf32(uint32_t bits) {
  if ((bits & 0x1fffu) != 0 && !std::isnan(FloatFrom(bits))) Stop("an operand is no TF32 number");
  return FloatFrom(bits);
}

inline float Bfloat16(uint32_t half) { return FloatFrom(half << 16); }

inline float Float16(uint32_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const float sign = (half & 0x8000u) != 0 ? -1.0f : 1.0f;
  if (magnitude >= 0x7c00u) return magnitude > 0x7c00u ? NAN : sign * INFINITY;
  return sign * FloatFrom(magnitude << 13) * 0x1p112f;
}

// x to a multiple of `unit`, a power of two, ties to even.
inline double ToMultiple(double x, double unit) { return std::nearbyint(x / unit) * unit; }

// The bits of x as a number of `fraction` + 1 significant bits, of exponents from `least` on, ties to even.
inline uint32_t RoundTo16(float x, int fraction, int least, float largest) {
  const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
  const uint32_t infinity = ((1u << (15 - fraction)) - 1) << fraction;
  if (std::isnan(x)) return infinity | 1u << (fraction - 1);
  const double size = std::fabs(static_cast<double>(x));
  if (std::isinf(x)) return sign | infinity;
  const int exponent = size == 0.0 ? least : std::max(std::ilogb(size), least);
  const double unit = std::ldexp(1.0, exponent - fraction), rounded = ToMultiple(size, unit);
  if (rounded > largest) return sign | infinity;
  // Exponent and fraction lie side by side, so a fraction that overflows raises the exponent by itself.
  return sign |
         (static_cast<uint32_t>(rounded / unit) + (static_cast<uint32_t>(exponent - least) << fraction));
}

inline uint32_t RoundToBfloat16(float x) { return RoundTo16(x, 7, -126, 3.38953139e38f); }
inline uint32_t RoundToFloat16(float x) { return RoundTo16(x, 10, -14, 65504.0f); }

inline float TowardZero(double x) {
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

// d += a b for K = `each` times 8, `each` numbers in a register: number n of a register is `decode(bits, n)`.
template <typename Decode>
void Multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int each, Decode decode) {
  Operands own;
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  Block& block = *Block::Running();
  const int lane = static_cast<int>(block.current()) % kWarp;
  const Operands* lanes = block.Gather(own);
  const int first_row = lane / 4, first_column = 2 * (lane % 4);
  double sums[4] = {d[0], d[1], d[2], d[3]};
  for (int k = 0; k < 8 * each; ++k) {
    const int quad = k / each % 4, half = k / (4 * each), number = k % each;
    double left[2], right[2];
    for (int i = 0; i < 2; ++i) {
      left[i] = decode(lanes[first_row * 4 + quad].a[i + 2 * half], number);
      right[i] = decode(lanes[(first_column + i) * 4 + quad].b[half], number);
    }
    for (int c = 0; c < 4; ++c) sums[c] += left[c / 2] * right[c % 2];
  }
  for (int c = 0; c < 4; ++c) d[c] = TowardZero(sums[c]);
  block.Barrier(Wait::kMultiply);
}

}  // namespace cuda_emulation

namespace sparsify::cuda {

inline uint32_t RoundToTf32(float x) {
  const uint32_t bits = cuda_emulation::BitsFrom(x);
  if (std::isnan(x)) return 0x7fffffffu;
  return std::isinf(x) ? bits : (bits + 0x1000u) & ~0x1fffu;
}

inline uint32_t PackBfloat16(float low, float high) {
  return cuda_emulation::RoundToBfloat16(low) | cuda_emulation::RoundToBfloat16(high) << 16;
}

inline uint32_t PackFloat16(float low, float high) {
  return cuda_emulation::RoundToFloat16(low) | cuda_emulation::RoundToFloat16(high) << 16;
}

inline void MultiplyTf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_emulation::Multiply(d, a, b, 1, [](uint32_t bits, int) { return cuda_emulation::Tf32(bits); });
}

inline void MultiplyBfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_emulation::Multiply(d, a, b, 2, [](uint32_t bits, int number) {
    return cuda_emulation::Bfloat16(bits >> 16 * number & 0xffffu);
  });
}

inline void MultiplyFloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_emulation::Multiply(d, a, b, 2, [](uint32_t bits, int number) {
    return cuda_emulation::Float16(bits >> 16 * number & 0xffffu);
  });
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_TESTS_NATIVE_CUDA_EMULATION_TENSOR_H_
