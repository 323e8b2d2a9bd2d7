#include "products.h"

#include <algorithm>
#include <string>

namespace sparsify::cuda {
namespace {

constexpr int64_t kLargestGrid = (int64_t{1} << 31) - 1;
constexpr int64_t kLargestExtent = int64_t{1} << 30;  // of an image: sums of two are still indices
// A warp a line fills the device from so many lines for each multiprocessor on; below, a block takes one.
constexpr int64_t kLinesToFill = 16;
// Entries a line has at least for a block to share it: two turns of each warp.
constexpr int64_t kEntriesToShare = 2 * kGatherWarps * kLanes;

constexpr const char* kTensorKinds[] = {"split", "tf32", "half"};  // by precision
constexpr int kSixteens[] = {1, 2, 4};                             // of rows of W, a warp

int64_t Groups(int64_t size, int64_t group) { return (size + group - 1) / group; }

Weight WeightOf(const csr::Matrix& matrix, const WeightAddresses& at) {
  Weight weight{};
  weight.pointers = static_cast<const int32_t*>(at.pointers);
  weight.columns = at.columns;
  weight.values = at.values;
  weight.narrow = matrix.narrow != nullptr ? 1 : 0;
  weight.value_type = static_cast<int32_t>(matrix.values.type);
  weight.lines = static_cast<int32_t>(matrix.lines());
  weight.rows = static_cast<int32_t>(matrix.rows);
  return weight;
}

Ending EndingOf(const Epilogue& epilogue) {
  return {epilogue.bias, epilogue.residual, static_cast<int32_t>(epilogue.activation), epilogue.low,
          epilogue.high};
}

std::string Name(const char* kind, int block_rows, int variant) {
  return std::string(kind) + "_" + std::to_string(block_rows) + "_" + std::to_string(variant);
}

template <typename Arguments>
void Launch(const Device& device, Function function, int64_t grid_x, int64_t grid_y, int warps,
            Arguments arguments, void* stream) {
  if (grid_x > kLargestGrid) throw Failure("an input of this size is too large for one launch");
  const Driver& driver = device.driver();
  const Entered entered(driver, device.context());
  void* parameters[] = {&arguments};
  driver.Check(driver.cuLaunchKernel(function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
                                     1, static_cast<unsigned>(warps * kLanes), 1, 1, 0,
                                     static_cast<Stream>(stream), parameters, nullptr),
               "the kernel cannot be launched on " + device.label());
}

int64_t OutputExtent(int64_t size, int64_t pads, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t room = size + pads - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace

bool ParsePrecision(const std::string& name, Precision* precision) {
  const char* const names[] = {"float32", "tf32", "half"};
  for (int i = 0; i < 3; ++i) {
    if (name != names[i]) continue;
    *precision = static_cast<Precision>(i);
    return true;
  }
  return false;
}

Linear::Linear(const Device& device, const LinearAttributes& attributes, const csr::Matrix& matrix,
               const WeightAddresses& at)
    : device_(device),
      attributes_(attributes),
      weight_(WeightOf(matrix, at)),
      block_rows_(matrix.block_rows),
      entries_(matrix.blocks / std::max<int64_t>(1, matrix.lines())) {
  gather_[0] = device.Find(Name("gather", block_rows_, 1));
  gather_[1] = device.Find(Name("gather", block_rows_, 4));
  tile_[0] = device.Find(Name("tile", block_rows_, 1));
  tile_[1] = device.Find(Name("tile", block_rows_, 2));
  if (block_rows_ < 8) return;
  for (int precision = 0; precision < 3; ++precision) {
    for (int i = 0; i < 3; ++i) {
      tensor_[precision][i] = device.Find(Name(kTensorKinds[precision], block_rows_, kSixteens[i]));
    }
  }
}

void Linear::Run(const float* x, int64_t batch, const Epilogue& epilogue, Precision precision, float* y,
                 void* stream) const {
  if (batch < 1) return;
  LinearArguments arguments{};
  arguments.weight = weight_;
  arguments.ending = EndingOf(epilogue);
  arguments.x = x;
  arguments.y = y;
  arguments.batch = batch;
  arguments.columns = attributes_.in_features;
  arguments.warps_per_line = 1;
  if (batch <= kFewRows) return RunGather(arguments, stream);
  if (block_rows_ < 8 || batch < kTensorRows) return RunTile(arguments, stream);
  RunTensor(arguments, precision, stream);
}

void Linear::RunGather(const LinearArguments& given, void* stream) const {
  LinearArguments arguments = given;
  const bool few = weight_.lines < kLinesToFill * device_.multiprocessors();
  const int64_t lanes = std::max(1, block_rows_ / 4);  // for each entry
  if (few && entries_ * lanes >= kEntriesToShare) arguments.warps_per_line = kGatherWarps;
  const int64_t lines = arguments.warps_per_line > 1 ? 1 : kGatherWarps;
  const int rows = arguments.batch == 1 ? 1 : 4;
  Launch(device_, gather_[rows == 1 ? 0 : 1], Groups(weight_.lines, lines), Groups(arguments.batch, rows),
         kGatherWarps, arguments, stream);
}

void Linear::RunTile(const LinearArguments& arguments, void* stream) const {
  const int warps = TileWarps(block_rows_);
  const int64_t groups = Groups(weight_.lines, warps * TileLines(block_rows_));
  // Twice as wide tiles read each entry half as often, where enough blocks remain to fill the device.
  const int wide = Groups(arguments.batch, 2 * kLanes) * groups >= device_.multiprocessors() ? 2 : 1;
  Launch(device_, tile_[wide - 1], Groups(arguments.batch, wide * kLanes),
         std::min<int64_t>(groups, kMostGridRows), warps, arguments, stream);
}

void Linear::RunTensor(const LinearArguments& arguments, Precision precision, void* stream) const {
  const bool narrow = weight_.value_type != static_cast<int32_t>(csr::ValueType::kFloat32);
  if (precision == Precision::kHalf && !narrow) precision = Precision::kTf32;
  const int64_t columns = Groups(arguments.batch, kTensorColumns);
  const auto groups = [&](int i) {
    return Groups(weight_.lines, kTensorWarps * TensorLines(block_rows_, kSixteens[i]));
  };
  // More lines a block read X less often, where enough blocks remain to fill most of the device.
  int most = 2;
  while (most > 0 && 3 * columns * groups(most) < 2 * device_.multiprocessors()) --most;
  Launch(device_, tensor_[static_cast<int>(precision)][most], columns,
         std::min<int64_t>(groups(most), kMostGridRows), kTensorWarps, arguments, stream);
}

Conv::Conv(const Device& device, const ConvAttributes& attributes, const csr::Matrix& matrix,
           const WeightAddresses& at)
    : device_(device), attributes_(attributes), weight_(WeightOf(matrix, at)) {
  conv_[0] = device.Find(Name("conv", matrix.block_rows, 1));
  conv_[1] = device.Find(Name("conv", matrix.block_rows, 2));
}

bool Conv::OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const {
  const ConvAttributes& a = attributes_;
  if (height < 1 || width < 1 || height > kLargestExtent || width > kLargestExtent) return false;
  *out_height = OutputExtent(height, a.pads[0] + a.pads[2], a.kernel[0], a.dilations[0], a.strides[0]);
  *out_width = OutputExtent(width, a.pads[1] + a.pads[3], a.kernel[1], a.dilations[1], a.strides[1]);
  return *out_height > 0 && *out_width > 0;
}

void Conv::Run(const float* x, int64_t batch, int64_t height, int64_t width, const Epilogue& epilogue,
               float* y, void* stream) const {
  if (batch < 1) return;
  ConvArguments arguments{};
  arguments.weight = weight_;
  arguments.ending = EndingOf(epilogue);
  arguments.x = x;
  arguments.y = y;
  arguments.batch = batch;
  arguments.channels = attributes_.in_channels;
  arguments.height = static_cast<int32_t>(height);
  arguments.width = static_cast<int32_t>(width);
  int64_t out_height = 0, out_width = 0;
  OutputSize(height, width, &out_height, &out_width);
  arguments.out_height = static_cast<int32_t>(out_height);
  arguments.out_width = static_cast<int32_t>(out_width);
  for (int i = 0; i < 2; ++i) {
    arguments.kernel[i] = static_cast<int32_t>(attributes_.kernel[i]);
    arguments.strides[i] = static_cast<int32_t>(attributes_.strides[i]);
    arguments.pads[i] = static_cast<int32_t>(attributes_.pads[i]);
    arguments.dilations[i] = static_cast<int32_t>(attributes_.dilations[i]);
  }
  const int64_t pixels = batch * out_height * out_width, groups = Groups(weight_.lines, kConvWarps);
  const int wide = Groups(pixels, 2 * kLanes) * groups >= device_.multiprocessors() ? 2 : 1;
  Launch(device_, conv_[wide - 1], Groups(pixels, wide * kLanes), std::min<int64_t>(groups, kMostGridRows),
         kConvWarps, arguments, stream);
}

}  // namespace sparsify::cuda
