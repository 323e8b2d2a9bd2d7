// A convolution and its gradients as products over panels of pixels: inputs of the weight are (channel, tap).
//
// The input gradient of a stride is one convolution of dY without stride for each phase of the input's pixels
// (row mod stride, column mod stride), with the taps that meet this phase.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "../csr/conv_geometry.h"
#include "../csr/family.h"
#include "conv_columns.h"
#include "layer.h"
#include "products.h"
#include "weight.h"

namespace sparsify {
namespace train {
namespace {

constexpr int64_t kLargestExtent = int64_t{1} << 20;

int64_t FloorMod(int64_t a, int64_t b) { return (a % b + b) % b; }
int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pixels first, first + step, ... of `size`.
int64_t CountEvery(int64_t size, int64_t first, int64_t step) {
  return first < size ? CeilDivide(size - first, step) : 0;
}

// Sizes of one call.
struct Shape {
  int64_t images, height, width, out_height, out_width;
  int64_t pitch, plane_rows;

  int64_t pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
};

// Pixels of the input that one product of the input gradient finds.
struct InputPhase {
  int64_t top, left;
  std::vector<Tap> taps;
  std::vector<int64_t> kernel_taps;  // which of the kernel's taps these are
  std::unique_ptr<TransposedWeight> weight;
};

// The planes of X that a kernel's taps read, or those of dY for one input phase.
Planes InputPlanes(const ConvAttributes& a, const Shape& shape) {
  Planes planes;
  planes.height = shape.height;
  planes.width = shape.width;
  planes.channels = a.in_channels;
  planes.strides[0] = a.strides[0];
  planes.strides[1] = a.strides[1];
  planes.pitch = shape.pitch;
  planes.plane_floats = shape.pitch * CeilDivide(shape.height, a.strides[0]);
  for (int64_t r = 0; r < a.kernel[0]; ++r) {
    for (int64_t s = 0; s < a.kernel[1]; ++s) {
      const int64_t y = r * a.dilations[0] - a.pads[0], x = s * a.dilations[1] - a.pads[1];
      const int64_t top = FloorMod(y, a.strides[0]), left = FloorMod(x, a.strides[1]);
      size_t phase = 0;
      while (phase < planes.phases.size() &&
             (planes.phases[phase].top != top || planes.phases[phase].left != left)) {
        ++phase;
      }
      if (phase == planes.phases.size()) {
        planes.phases.push_back({top, left, CountEvery(shape.height, top, a.strides[0]),
                                 CountEvery(shape.width, left, a.strides[1])});
      }
      planes.taps.push_back(
          {static_cast<int64_t>(phase), (y - top) / a.strides[0], (x - left) / a.strides[1]});
    }
  }
  return planes;
}

Planes OutputPlanes(const ConvAttributes& a, const Shape& shape, std::vector<Tap> taps) {
  Planes planes;
  planes.height = shape.out_height;
  planes.width = shape.out_width;
  planes.channels = a.out_channels;
  planes.pitch = shape.pitch;
  planes.plane_floats = planes.pitch == planes.width ? shape.out_pixels() : shape.pitch * shape.out_height;
  planes.phases.push_back({0, 0, shape.out_height, shape.out_width});
  planes.taps = std::move(taps);
  return planes;
}

// The weight of one phase: rows are input channels, inputs (output channel, tap of the phase).
Topology PhaseTopology(const Topology& weight, const ConvAttributes& a, const InputPhase& phase,
                       std::vector<uint32_t>* source) {
  const int64_t taps = a.kernel[0] * a.kernel[1], count = static_cast<int64_t>(phase.kernel_taps.size());
  std::vector<int64_t> place(static_cast<size_t>(taps), -1);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t tap = phase.kernel_taps[static_cast<size_t>(t)];
    if (tap >= 0) place[static_cast<size_t>(tap)] = t;
  }
  std::vector<std::vector<std::pair<uint32_t, uint32_t>>> rows(static_cast<size_t>(a.in_channels));
  for (int64_t out = 0; out < a.out_channels; ++out) {
    for (uint32_t i = weight.pointers[out]; i < weight.pointers[out + 1]; ++i) {
      const int64_t t = place[weight.inputs[i] % static_cast<uint64_t>(taps)];
      if (t >= 0) rows[weight.inputs[i] / taps].push_back({static_cast<uint32_t>(out * count + t), i});
    }
  }
  Topology result;
  result.rows = a.in_channels;
  result.columns = a.out_channels * count;
  result.pointers.push_back(0);
  for (const auto& row : rows) {
    for (const auto& entry : row) {
      result.inputs.push_back(entry.first);
      source->push_back(entry.second);
    }
    result.pointers.push_back(static_cast<uint32_t>(result.inputs.size()));
  }
  return result;
}

class SparseConv final : public ConvLayer {
 public:
  SparseConv(const csr::Isa& isa, const ConvAttributes& attributes, Topology topology, int threads)
      : isa_(isa),
        sampler_(SamplerOf(isa)),
        attributes_(attributes),
        weight_(std::move(topology), threads),
        threads_(threads) {}

  int64_t count() const override { return weight_.topology().count(); }

  void Gather(const float* weight, float* values, const ParallelFor& parallel) const override {
    weight_.Gather(weight, values, parallel);
  }

  bool OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const override {
    const ConvAttributes& a = attributes_;
    if (height < 1 || width < 1 || height > kLargestExtent || width > kLargestExtent) return false;
    *out_height = csr::OutputExtent(height, a.pads[0] + a.pads[2], a.kernel[0], a.dilations[0], a.strides[0]);
    *out_width = csr::OutputExtent(width, a.pads[1] + a.pads[3], a.kernel[1], a.dilations[1], a.strides[1]);
    return *out_height > 0 && *out_width > 0;
  }

  void Forward(const float* x, const ImageBatch& images, const float* values, const float* bias, float* y,
               const ParallelFor& parallel) const override {
    const Shape shape = ShapeOf(images);
    const Planes planes = InputPlanes(attributes_, shape);
    const Columns columns(planes, shape.out_height, shape.out_width);
    const float* source = Source<Memory::kInputs>(planes, x, shape.images, parallel);
    const Target target = {y, bias, shape.out_width, shape.out_pixels(), attributes_.out_channels,
                           0, 0,    {1, 1}};
    Product(weight_.plan(), columns, source, shape.images, values, target, parallel);
  }

  void Backward(const float* x, const ImageBatch& images, const float* dy, const float* values,
                const Gradients& gradients, const ParallelFor& parallel) const override {
    const Shape shape = ShapeOf(images);
    const Planes outputs = OutputPlanes(attributes_, shape, {{0, 0, 0}});
    const float* slopes = Source<Memory::kOutputs>(outputs, dy, shape.images, parallel);
    if (gradients.input != nullptr) InputGradient(shape, slopes, values, gradients.input, parallel);
    if (gradients.weight != nullptr) WeightGradient(shape, outputs, x, slopes, gradients, parallel);
  }

 private:
  // A panel of groups of pixels: read through taps, and written to a target.
  struct Ends {
    const csr::Isa& isa;
    const Columns& columns;
    const Target& target;
    int64_t first_group;
    Pixels pixels;

    void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
      pixels.Pack(first_input, depth, tile, groups);
    }
    void Store(int64_t first, int64_t last, const float* panel, int groups) const {
      StorePixels(isa, columns, target, first_group, first, last, panel, groups);
    }
  };

  Shape ShapeOf(const ImageBatch& images) const {
    Shape shape = {images.count, images.height, images.width, 0, 0, 0, 0};
    OutputSize(images.height, images.width, &shape.out_height, &shape.out_width);
    shape.pitch = std::max(shape.out_width, CeilDivide(shape.width, attributes_.strides[1]));
    return shape;
  }

  // The images themselves, or a copy in the form of the planes.
  template <Memory M>
  const float* Source(const Planes& planes, const float* x, int64_t images,
                      const ParallelFor& parallel) const {
    if (planes.direct()) return x;
    float* copy = ThreadScratch<M>().Get(images * planes.image_stride());
    const int64_t pixels = planes.height * planes.width;
    csr::RunTasks(parallel, parallel.threads, images, [&](int64_t, int64_t image) {
      for (int64_t channel = image * planes.channels; channel < (image + 1) * planes.channels; ++channel) {
        CopyChannel(isa_, planes, x + channel * pixels, copy + channel * planes.channel_stride());
      }
    });
    return copy;
  }

  void Product(const Plan& plan, const Columns& columns, const float* x, int64_t images, const float* values,
               const Target& target, const ParallelFor& parallel) const {
    RunProduct(isa_, plan, values, images * columns.groups() * csr::kGroup, parallel,
               [&](int64_t first, int64_t count) {
                 return Ends{isa_, columns, target, first / csr::kGroup,
                             Pixels(isa_, columns, x, first / csr::kGroup, count / csr::kGroup)};
               });
  }

  void InputGradient(const Shape& shape, const float* slopes, const float* values, float* dx,
                     const ParallelFor& parallel) const {
    const ConvAttributes& a = attributes_;
    for (const InputPhase& phase : Phases()) {
      const int64_t rows = CountEvery(shape.height, phase.top, a.strides[0]);
      const int64_t width = CountEvery(shape.width, phase.left, a.strides[1]);
      const Planes planes = OutputPlanes(a, shape, phase.taps);
      const Columns columns(planes, rows, width);
      const Target target = {dx,
                             nullptr,
                             shape.width,
                             shape.pixels(),
                             a.in_channels,
                             phase.top,
                             phase.left,
                             {a.strides[0], a.strides[1]}};
      float* gathered = ThreadScratch<Memory::kCall>().Get(count());
      phase.weight->Gather(values, gathered, parallel);
      Product(phase.weight->plan(), columns, slopes, shape.images, gathered, target, parallel);
    }
  }

  void WeightGradient(const Shape& shape, const Planes& outputs, const float* x, const float* slopes,
                      const Gradients& gradients, const ParallelFor& parallel) const {
    const Plan& plan = weight_.sampled();
    const Planes planes = InputPlanes(attributes_, shape);
    const Columns inputs(planes, shape.out_height, shape.out_width);
    const Columns pixels(outputs, shape.out_height, shape.out_width);
    const float* source = Source<Memory::kInputs>(planes, x, shape.images, parallel);
    const auto read = [&](const Columns& columns, const float* from) {
      return [&columns, from, this](int64_t first, int64_t count) {
        return Pixels(isa_, columns, from, first / csr::kGroup, count / csr::kGroup);
      };
    };
    RunSampledByColumns(
        sampler_, plan, shape.images * inputs.groups() * csr::kGroup, parallel, read(inputs, source),
        read(pixels, slopes), [&](int part, const float* found, const float* sums) {
          weight_.Scatter(part, found, gradients.zeroed, gradients.weight);
          if (gradients.bias == nullptr) return;
          const int64_t rows = plan.last_row(part) - plan.first_row(part);
          std::memcpy(gradients.bias + plan.first_row(part), sums, static_cast<size_t>(rows) * sizeof(float));
        });
  }

  // Input pixel (i, j) of a phase meets output (i - row, j - column) through a tap.
  const std::vector<InputPhase>& Phases() const {
    std::call_once(phases_made_, [this] {
      const ConvAttributes& a = attributes_;
      for (int64_t top = 0; top < a.strides[0]; ++top) {
        for (int64_t left = 0; left < a.strides[1]; ++left) AddPhase(top, left);
      }
    });
    return phases_;
  }

  void AddPhase(int64_t top, int64_t left) const {
    const ConvAttributes& a = attributes_;
    InputPhase phase = {top, left, {}, {}, nullptr};
    for (int64_t r = 0; r < a.kernel[0]; ++r) {
      for (int64_t s = 0; s < a.kernel[1]; ++s) {
        const int64_t y = r * a.dilations[0] - a.pads[0] - top, x = s * a.dilations[1] - a.pads[1] - left;
        if (FloorMod(y, a.strides[0]) != 0 || FloorMod(x, a.strides[1]) != 0) continue;
        phase.taps.push_back({0, -y / a.strides[0], -x / a.strides[1]});
        phase.kernel_taps.push_back(r * a.kernel[1] + s);
      }
    }
    std::vector<uint32_t> source;
    if (phase.taps.empty()) {  // no weight reaches these pixels, but their gradient is written: zero
      phase.taps.push_back({0, 0, 0});
      phase.kernel_taps.push_back(-1);
    }
    const Topology topology = PhaseTopology(weight_.topology(), a, phase, &source);
    phase.weight = std::make_unique<TransposedWeight>(topology, source, weight_.plan(), threads_);
    phases_.push_back(std::move(phase));
  }

  const csr::Isa& isa_;
  const Sampler& sampler_;
  ConvAttributes attributes_;
  Weight weight_;
  int threads_;
  mutable std::once_flag phases_made_;
  mutable std::vector<InputPhase> phases_;
};

}  // namespace

std::unique_ptr<ConvLayer> MakeConvLayer(const char* kernel, const ConvAttributes& attributes,
                                         const int64_t* positions, int64_t count, int threads,
                                         std::string* error) {
  const csr::Isa* isa = csr::FindIsa(kernel, error);
  if (isa == nullptr || !CheckConv(attributes, error)) return nullptr;
  Topology topology;
  const int64_t inputs = attributes.in_channels * attributes.kernel[0] * attributes.kernel[1];
  if (!MakeTopology(attributes.out_channels, inputs, positions, count, &topology, error)) return nullptr;
  return std::make_unique<SparseConv>(*isa, attributes, std::move(topology), threads);
}

}  // namespace train
}  // namespace sparsify
