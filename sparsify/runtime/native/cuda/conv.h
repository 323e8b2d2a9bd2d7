// Convolution: a lane takes V output pixels, 32 apart, so that neighbouring lanes read neighbouring inputs; a
// warp takes a line (R output channels). The warps of a block share their pixels, whose inputs stay in the
// first-level cache.
//
//   grid   [ceil(batch · pixels / 32 V), ceil(lines / 8), at most 65535]     block  [256]
#ifndef SPARSIFY_CUDA_CONV_H_
#define SPARSIFY_CUDA_CONV_H_

#include "device.h"

namespace sparsify::cuda {

// Up to 32 entries of a line: where their input lies beside that of the first tap.
template <int R>
struct StagedTaps {
  alignas(16) float values[kLanes][R];
  int64_t offsets[kLanes];
  int down[kLanes], right[kLanes];
};

// One output pixel of a lane.
struct Pixel {
  int64_t x;      // place of the input of the first channel's first tap, which may lie in the padding
  int64_t y;      // place of the first channel's output
  int top, left;  // of the first tap
  bool inside;    // whether there is such a pixel
};

__device__ inline Pixel PixelAt(const ConvArguments& a, int64_t index) {
  const int64_t pixels = static_cast<int64_t>(a.out_height) * a.out_width;
  Pixel pixel;
  pixel.inside = index < a.batch * pixels;
  if (!pixel.inside) index = 0;
  const int64_t image = index / pixels, rest = index % pixels;
  pixel.top = static_cast<int>(rest / a.out_width) * a.strides[0] - a.pads[0];
  pixel.left = static_cast<int>(rest % a.out_width) * a.strides[1] - a.pads[1];
  const int64_t plane = static_cast<int64_t>(a.height) * a.width;
  pixel.x = image * a.channels * plane + static_cast<int64_t>(pixel.top) * a.width + pixel.left;
  pixel.y = image * a.weight.rows * pixels + rest;
  return pixel;
}

template <int R>
__device__ inline void StageTaps(const ConvArguments& a, int64_t from, int64_t end, StagedTaps<R>* staged) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t i = from + lane;
  if (i < end) {
    constexpr int P = R < 4 ? R : 4;
    const int column = Column(a.weight, i), taps = a.kernel[0] * a.kernel[1];
    const int channel = column / taps, tap = column % taps;
    const int down = tap / a.kernel[1] * a.dilations[0], right = tap % a.kernel[1] * a.dilations[1];
    staged->down[lane] = down;
    staged->right[lane] = right;
    staged->offsets[lane] = (static_cast<int64_t>(channel) * a.height + down) * a.width + right;
#pragma unroll
    for (int r = 0; r < R; r += P) LoadValues<P>(a.weight, i * R + r, staged->values[lane] + r);
  }
  __syncwarp();
}

template <int R, int V>
__device__ inline void Conv(const ConvArguments& a) {
  __shared__ StagedTaps<R> staged[kConvWarps];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t out_plane = static_cast<int64_t>(a.out_height) * a.out_width;
  Pixel pixels[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    pixels[v] = PixelAt(a, (static_cast<int64_t>(blockIdx.x) * V + v) * kLanes + lane);
  }
  for (int64_t line = static_cast<int64_t>(blockIdx.y) * kConvWarps + warp; line < a.weight.lines;
       line += static_cast<int64_t>(gridDim.y) * kConvWarps) {
    float sums[R][V] = {};
    const int64_t end = a.weight.pointers[line + 1];
    for (int64_t i = a.weight.pointers[line]; i < end; i += kLanes) {
      StageTaps<R>(a, i, end, &staged[warp]);
      const int count = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
      for (int e = 0; e < count; ++e) {
        const int down = staged[warp].down[e], right = staged[warp].right[e];
        const int64_t offset = staged[warp].offsets[e];
        float values[R];
        ReadStaged<R>(staged[warp].values[e], values);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const bool inside = static_cast<unsigned>(pixels[v].top + down) < static_cast<unsigned>(a.height) &&
                              static_cast<unsigned>(pixels[v].left + right) < static_cast<unsigned>(a.width);
          if (!inside) continue;  // padding adds nothing, not even NaN
          const float x = a.x[pixels[v].x + offset];
#pragma unroll
          for (int r = 0; r < R; ++r) sums[r][v] += values[r] * x;
        }
      }
      __syncwarp();
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int64_t row = line * R + r;
        if (!pixels[v].inside || row >= a.weight.rows) continue;
        Finish(a.ending, sums[r][v], static_cast<int>(row), pixels[v].y + row * out_plane, a.y);
      }
    }
  }
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_CONV_H_
