// Stored weights as float32, and back.
#ifndef SPARSIFY_KERNELS_CSR_VALUES_H_
#define SPARSIFY_KERNELS_CSR_VALUES_H_

#include <cstdint>
#include <cstring>

#include "value_type.h"

namespace sparsify {
namespace csr {

inline uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float FromBfloat16(uint16_t bits) { return FromBits(uint32_t{bits} << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t ToBfloat16(float value) {
  const uint32_t bits = Bits(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float FromFloat16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31, mantissa = half & 1023u;
  if (exponent == 31) return FromBits(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = static_cast<float>(mantissa) * 5.9604645e-8f;  // 2^-24
  return FromBits(sign | Bits(tiny));
}

// Rounds to nearest, ties to even; too large becomes infinity, NaN stays NaN.
inline uint16_t ToFloat16(float value) {
  const uint32_t sign = Bits(value) >> 16 & 0x8000u, bits = Bits(value) & 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (bits < 0x38800000u) {                                               // below 2^-14
    // Adding 0.5 brings a multiple of 2^-24 into the last bits, rounded by the hardware.
    return static_cast<uint16_t>(sign | (Bits(FromBits(bits) + 0.5f) - Bits(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfff + (bits >> 13 & 1)) >> 13));
}

// One stored weight.
inline float ValueAt(const Values& values, int64_t i) {
  if (values.type == ValueType::kFloat32) return static_cast<const float*>(values.data)[i];
  const uint16_t half = static_cast<const uint16_t*>(values.data)[i];
  return values.type == ValueType::kBfloat16 ? FromBfloat16(half) : FromFloat16(half);
}

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_VALUES_H_
