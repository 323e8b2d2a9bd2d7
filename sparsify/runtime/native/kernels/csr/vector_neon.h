// The registers of NEON. Included inside the anonymous namespace of an instruction set's source.
#ifndef SPARSIFY_KERNELS_CSR_VECTOR_NEON_H_
#define SPARSIFY_KERNELS_CSR_VECTOR_NEON_H_

constexpr uint32_t kAllLanes = 15;

struct V {
  using Register = float32x4_t;
  static constexpr bool kDeep = false;  // see base/tuning.h
  static constexpr int kWidth = 4;
  static constexpr int kAccumulators = 8;
  static constexpr int kSums = 16;  // of a block of outputs
  static constexpr int kBlock = 4;  // its outputs, at most

  static Register Zero() { return vdupq_n_f32(0.0f); }
  static Register Set(float v) { return vdupq_n_f32(v); }
  // Four floats in each 128 bits of a register, and the i-th of them in all lanes.
  static Register Quad(const float* p) { return vld1q_f32(p); }
  static Register Lane(Register quad, int i) {
    return i == 0   ? vdupq_laneq_f32(quad, 0)
           : i == 1 ? vdupq_laneq_f32(quad, 1)
           : i == 2 ? vdupq_laneq_f32(quad, 2)
                    : vdupq_laneq_f32(quad, 3);
  }
  static Register Load(const float* p) { return vld1q_f32(p); }
  static void Hold(Register*) {}
  static Register LoadAny(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, Register v) { vst1q_f32(p, v); }
  using Mask = uint32_t;  // a bit for each lane
  static Mask First(int64_t n) { return n >= 4 ? kAllLanes : n <= 0 ? 0u : (1u << n) - 1; }
  static Mask Bits(uint32_t bits) { return bits & kAllLanes; }
  // There are no masked loads: what is not whole goes lane by lane.
  static Register LoadInto(Register v, const float* p, Mask m) {
    if (m == kAllLanes) return vld1q_f32(p);
    if ((m & 1) != 0) v = vld1q_lane_f32(p, v, 0);
    if ((m & 2) != 0) v = vld1q_lane_f32(p + 1, v, 1);
    if ((m & 4) != 0) v = vld1q_lane_f32(p + 2, v, 2);
    if ((m & 8) != 0) v = vld1q_lane_f32(p + 3, v, 3);
    return v;
  }
  static Register LoadMasked(const float* p, Mask m) { return LoadInto(Zero(), p, m); }
  static void StoreMasked(float* p, Mask m, Register v) {
    if (m == kAllLanes) return vst1q_f32(p, v);
    if ((m & 1) != 0) vst1q_lane_f32(p, v, 0);
    if ((m & 2) != 0) vst1q_lane_f32(p + 1, v, 1);
    if ((m & 4) != 0) vst1q_lane_f32(p + 2, v, 2);
    if ((m & 8) != 0) vst1q_lane_f32(p + 3, v, 3);
  }
  static void StoreAny(float* p, Register v) { vst1q_f32(p, v); }
  static Register LoadFirst(const float* p, int64_t n) { return LoadMasked(p, First(n)); }
  static void StoreFirst(float* p, int64_t n, Register v) { StoreMasked(p, First(n), v); }
  // v where the mask has a lane, else zero.
  static Register Keep(Mask m, Register v) {
    const uint32x4_t bit = {1, 2, 4, 8};
    const uint32x4_t lanes = vtstq_u32(vdupq_n_u32(m), bit);
    return vreinterpretq_f32_u32(vandq_u32(lanes, vreinterpretq_u32_f32(v)));
  }
  static Register EveryOther(Register low, Register high) { return vuzp1q_f32(low, high); }
  static Register Add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register Mul(Register a, Register b) { return vmulq_f32(a, b); }
  static Register Div(Register a, Register b) { return vdivq_f32(a, b); }
  static Register MulAdd(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static Register NegMulAdd(Register a, Register b, Register c) { return vfmsq_f32(c, a, b); }
  static Register Min(Register a, Register b) { return vminq_f32(a, b); }
  static Register Max(Register a, Register b) { return vmaxq_f32(a, b); }
  static Register Abs(Register a) { return vabsq_f32(a); }
  static Register Round(Register a) { return vrndnq_f32(a); }
  // a * 2^n for integers n in [-126, 127].
  static Register Scale(Register a, Register n) {
    const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(bits));
  }
};

#endif  // SPARSIFY_KERNELS_CSR_VECTOR_NEON_H_
