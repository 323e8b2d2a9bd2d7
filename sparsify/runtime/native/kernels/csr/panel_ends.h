// What happens to a panel before and after its product, written once for all vector widths: packing,
// activations, storing. Included inside the anonymous namespace of an instruction set's source; V wraps its
// registers.
#ifndef SPARSIFY_KERNELS_CSR_PANEL_ENDS_H_
#define SPARSIFY_KERNELS_CSR_PANEL_ENDS_H_

// exp(x) for x in [-87, 88]: 2^n * e^r with |r| <= ln(2) / 2, e^r by its series to r^7 (relative error 5e-9).
template <class V>
typename V::Register Exp(typename V::Register x) {
  using T = typename V::Register;
  const T n = V::Round(V::Mul(x, V::Set(1.44269504f)));
  T r = V::MulAdd(n, V::Set(-0.693359375f), x);
  r = V::MulAdd(n, V::Set(2.12194440e-4f), r);
  T p = V::MulAdd(r, V::Set(1.0f / 5040), V::Set(1.0f / 720));
  p = V::MulAdd(r, p, V::Set(1.0f / 120));
  p = V::MulAdd(r, p, V::Set(1.0f / 24));
  p = V::MulAdd(r, p, V::Set(1.0f / 6));
  p = V::MulAdd(r, p, V::Set(0.5f));
  p = V::MulAdd(r, p, V::Set(1.0f));
  p = V::MulAdd(r, p, V::Set(1.0f));
  return V::Scale(p, n);
}

// x * Phi(x) = max(x, 0) - |x| h, where h = Phi(-|x|) = exp(q(|x|)) / 2. The polynomial q is a weighted
// minimax fit of log(2 Phi(-a)): the error of the result is below 1.2e-7 * max(1, |x|) everywhere. Constants
// come first in Min and Max, which hand on their second operand when it is NaN.
template <class V>
typename V::Register Gelu(typename V::Register x) {
  using T = typename V::Register;
  const T a = V::Min(V::Set(100.0f), V::Abs(x));
  T q = V::MulAdd(a, V::Set(-6.734150588272314e-07f), V::Set(1.1227690265513957e-05f));
  q = V::MulAdd(a, q, V::Set(-5.008038351661526e-05f));
  q = V::MulAdd(a, q, V::Set(-0.00029139863909222186f));
  q = V::MulAdd(a, q, V::Set(0.005158905405551195f));
  q = V::MulAdd(a, q, V::Set(-0.03657222166657448f));
  q = V::MulAdd(a, q, V::Set(-0.31823834776878357f));
  q = V::MulAdd(a, q, V::Set(-0.7978919148445129f));
  q = V::Max(V::Set(-87.0f), V::Mul(a, q));
  const T h = V::Mul(V::Set(0.5f), Exp<V>(q));
  return V::NegMulAdd(a, h, V::Max(V::Set(0.0f), x));
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class V>
typename V::Register GeluTanh(typename V::Register x) {
  using T = typename V::Register;
  const T cubic = V::MulAdd(V::Mul(x, x), V::Set(0.044715f), V::Set(1.0f));
  const T u = V::Mul(V::Mul(x, V::Set(-1.5957691216057308f)), cubic);
  const T e = Exp<V>(V::Max(V::Set(-87.0f), V::Min(V::Set(87.0f), u)));
  return V::Div(V::Max(V::Set(-100.0f), x), V::Add(V::Set(1.0f), e));
}

// x / (1 + exp(-x)).
template <class V>
typename V::Register Silu(typename V::Register x) {
  using T = typename V::Register;
  const T e = Exp<V>(V::Max(V::Set(-87.0f), V::Min(V::Set(87.0f), V::Mul(x, V::Set(-1.0f)))));
  return V::Div(V::Max(V::Set(-100.0f), x), V::Add(V::Set(1.0f), e));
}

template <class V, Activation A>
typename V::Register Activate(typename V::Register x, const Epilogue& epilogue) {
  if (A == Activation::kRelu) return V::Max(V::Zero(), x);
  if (A == Activation::kGelu) return Gelu<V>(x);
  if (A == Activation::kGeluTanh) return GeluTanh<V>(x);
  if (A == Activation::kSilu) return Silu<V>(x);
  if (A == Activation::kClip) return V::Min(V::Set(epilogue.high), V::Max(V::Set(epilogue.low), x));
  return x;
}

// Calls function<activation>(arguments...).
#define SPARSIFY_BY_ACTIVATION(activation, function, ...)  \
  switch (activation) {                                    \
    case Activation::kRelu:                                \
      return function<Activation::kRelu>(__VA_ARGS__);     \
    case Activation::kGelu:                                \
      return function<Activation::kGelu>(__VA_ARGS__);     \
    case Activation::kGeluTanh:                            \
      return function<Activation::kGeluTanh>(__VA_ARGS__); \
    case Activation::kSilu:                                \
      return function<Activation::kSilu>(__VA_ARGS__);     \
    case Activation::kClip:                                \
      return function<Activation::kClip>(__VA_ARGS__);     \
    default:                                               \
      return function<Activation::kNone>(__VA_ARGS__);     \
  }

// Rows of y lie a plane apart, where no prefetcher looks: ask for those that come soon.
constexpr int64_t kStoreAhead = 8;

// One row of a panel becomes a run of neighbouring pixels. Masked registers serve the end: V::LoadFirst(p, n)
// and V::StoreFirst(p, n, v) touch n floats only.
template <class V, Activation A, bool Residual>
inline void StoreRun(const float* source, typename V::Register bias, const float* residual, int64_t length,
                     const Epilogue& epilogue, float* y) {
  int64_t i = 0;
  for (; i + V::kWidth <= length; i += V::kWidth) {
    typename V::Register v = V::Add(V::LoadAny(source + i), bias);
    if (Residual) v = V::Add(v, V::LoadAny(residual + i));
    V::StoreAny(y + i, Activate<V, A>(v, epilogue));
  }
  const int64_t left = length - i;
  if (left <= 0) return;
  typename V::Register v = V::Add(V::LoadFirst(source + i, left), bias);
  if (Residual) v = V::Add(v, V::LoadFirst(residual + i, left));
  V::StoreFirst(y + i, left, Activate<V, A>(v, epilogue));
}

template <class V, Activation A, bool Residual>
void StoreRuns(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
               const Epilogue& shared, float* y, int64_t plane, int64_t stride) {
  const Epilogue epilogue = shared;  // which nothing that is written can change
  for (int64_t row = first; row < last; ++row, panel += stride) {
    const typename V::Register bias = epilogue.bias != nullptr ? V::Set(epilogue.bias[row]) : V::Zero();
    for (size_t k = 0; k < run_count; ++k) {
      const OutputRun run = runs[k];
      const int64_t target = run.target + row * plane;
      const int64_t ahead = target + kStoreAhead * plane;  // perhaps beyond the end, which does no harm
      for (int64_t i = 0; i < run.length; i += kGroup) {
        SPARSIFY_PREFETCH_TO_WRITE(y + ahead + i);
        if (Residual) SPARSIFY_PREFETCH(epilogue.residual + ahead + i);
      }
      StoreRun<V, A, Residual>(panel + run.column, bias, Residual ? epilogue.residual + target : nullptr,
                               run.length, epilogue, y + target);
    }
  }
}

template <class V>
struct PixelStore {
  template <Activation A>
  static void Run(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
                  const Epilogue& epilogue, float* y, int64_t plane, int groups) {
    const int64_t stride = kSpacing[groups];
    if (epilogue.residual != nullptr) {
      return StoreRuns<V, A, true>(panel, first, last, runs, run_count, epilogue, y, plane, stride);
    }
    StoreRuns<V, A, false>(panel, first, last, runs, run_count, epilogue, y, plane, stride);
  }
};

template <class V>
void StorePixels(const float* panel, int64_t first, int64_t last, const OutputRun* runs, size_t run_count,
                 const Epilogue& epilogue, float* y, int64_t plane, int groups) {
  SPARSIFY_BY_ACTIVATION(epilogue.activation, PixelStore<V>::template Run, panel, first, last, runs,
                         run_count, epilogue, y, plane, groups)
}

// The rows of one tap, `count` channels, where each of G groups is one piece.
template <class V, int G>
void PackTap(const float* x, const PixelPanel& panel, int64_t tap, int64_t count, float* tile) {
  constexpr int R = Shape<V, G>::kRegisters;
  const float* sources[R];
  typename V::Mask masks[R];
  SPARSIFY_UNROLL
  for (int r = 0; r < R; ++r) {
    const int lane = r * V::kWidth % kGroup, piece = r * V::kWidth / kGroup;
    sources[r] = x + panel.sources[piece] + lane;
    masks[r] = V::Bits(static_cast<uint32_t>(panel.masks[piece * panel.taps + tap] >> lane));
  }
  const int64_t stride = panel.taps * kSpacing[G];
  int64_t at = 0;
  for (int64_t channel = 0; channel < count; ++channel) {
    SPARSIFY_UNROLL
    for (int r = 0; r < R; ++r) V::Store(tile + r * V::kWidth, V::LoadMasked(sources[r] + at, masks[r]));
    tile += stride;
    at += panel.channel_stride;
  }
}

// The same for one register of columns that several pieces share.
template <class V>
void PackShared(const float* x, const PixelPanel& panel, uint32_t first, uint32_t last, int lane, int64_t tap,
                int64_t count, int64_t stride, float* tile) {
  for (int64_t channel = 0; channel < count; ++channel) {
    typename V::Register v = V::Zero();
    for (uint32_t piece = first; piece < last; ++piece) {
      const uint32_t bits = static_cast<uint32_t>(panel.masks[piece * panel.taps + tap] >> lane);
      v = V::LoadInto(v, x + panel.sources[piece] + lane, V::Bits(bits));
    }
    V::Store(tile, v);
    x += panel.channel_stride;
    tile += stride;
  }
}

template <class V>
void PackPixels(const float* x, const PixelPanel& panel, int64_t first, int64_t depth, float* tile,
                int groups) {
  const int64_t taps = panel.taps, spacing = kSpacing[groups];
  const bool whole = panel.group_end[groups - 1] == static_cast<uint32_t>(groups);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t channel = (first - tap + taps - 1) / taps;
    const int64_t count = (first + depth - tap + taps - 1) / taps - channel;
    const float* source = x + channel * panel.channel_stride + panel.offsets[tap];
    float* target = tile + (channel * taps + tap - first) * spacing;
    if (whole && groups == kWideGroups) {
      PackTap<V, kWideGroups>(source, panel, tap, count, target);
    } else if (whole && groups == 4) {
      PackTap<V, 4>(source, panel, tap, count, target);
    } else if (whole && groups == 3) {
      PackTap<V, 3>(source, panel, tap, count, target);
    } else if (whole && groups == 1) {
      PackTap<V, 1>(source, panel, tap, count, target);
    } else {
      for (int i = 0; i < groups * kGroup; i += V::kWidth) {
        const int group = i / kGroup;
        PackShared<V>(source, panel, group == 0 ? 0 : panel.group_end[group - 1], panel.group_end[group],
                      i % kGroup, tap, count, taps * spacing, target + i);
      }
    }
  }
}

// Channels lie far apart, where no prefetcher looks.
constexpr int64_t kFlatAhead = 2;

template <class V>
void PackFlat(const float* x, const FlatPanel& panel, int64_t channels, float* tile) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    uint32_t first = 0;
    for (int64_t i = 0; i < panel.registers; ++i) {
      const uint32_t last = panel.register_end[i];
      for (int lane = 0; lane < kGroup; lane += V::kWidth) {
        typename V::Register v = V::Zero();
        for (uint32_t piece = first; piece < last; ++piece) {
          const uint32_t bits = static_cast<uint32_t>(panel.masks[piece] >> lane);
          SPARSIFY_PREFETCH(x + panel.sources[piece] + lane + kFlatAhead * panel.channel_stride);
          v = V::LoadInto(v, x + panel.sources[piece] + lane, V::Bits(bits));
        }
        V::Store(tile + lane, v);
      }
      first = last;
      tile += kGroup;
    }
    x += panel.channel_stride;
  }
}

// Up to a register of each second float of every row.
template <class V>
void TakeSecond(const float* x, int64_t rows, int64_t stride, int64_t count, int64_t y_stride, float* y) {
  const int64_t last = 2 * count - 1;  // floats from the first to the last wanted
  const typename V::Mask low = V::First(last), store = V::First(count);
  const typename V::Mask high = V::First(last > V::kWidth ? last - V::kWidth : 0);
  for (int64_t i = 0; i < rows; ++i) {
    const typename V::Register a = V::LoadMasked(x + i * stride, low);
    const typename V::Register b =
        last > V::kWidth ? V::LoadMasked(x + i * stride + V::kWidth, high) : V::Zero();
    V::StoreMasked(y + i * y_stride, store, V::EveryOther(a, b));
  }
}

// Strides of two are what networks use; the others are rare.
template <class V>
void TakeEvery(const float* x, int64_t rows, int64_t stride, int64_t count, int64_t step, float* y) {
  if (step == 2 && count > V::kWidth / 2) {
    for (int64_t j = 0; j < count; j += V::kWidth) {
      const int64_t left = count - j < V::kWidth ? count - j : V::kWidth;
      TakeSecond<V>(x + 2 * j, rows, stride, left, count, y + j);
    }
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < count; ++j) y[i * count + j] = x[i * stride + j * step];
  }
}

#endif  // SPARSIFY_KERNELS_CSR_PANEL_ENDS_H_
