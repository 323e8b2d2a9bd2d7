#include "rows_choice.h"

#include <algorithm>

namespace sparsify {
namespace chain {
namespace {

// Of a row's registers pixels must fill so much; bands are so high at least, and maps no higher than this.
constexpr double kFilled = 0.8;
constexpr int64_t kBandRows = 4;
constexpr int64_t kMostRows = 1 << 12;

// Cycles, measured with AVX-512: of a vector that is packed into a panel or leaves it, and of a product,
// whose input is a cache line in a panel, but lies across two in a row.
constexpr double kPackedVector = 7.0;
constexpr double kStoredVector = 16.0;
constexpr double kPanelProduct = 0.94;
constexpr double kRowProduct = 1.15;
constexpr double kLanes = 16.0;
constexpr double kEntryBytes = 6.0;  // of a non-zero, its place included

double Filled(const Size& size) {
  return static_cast<double>(size.width) / static_cast<double>(RowSpacing(size.width));
}

}  // namespace

std::shared_ptr<const RowConv> RowsOf(const ConvKernel& kernel, const Size& input, const Size& size,
                                      int64_t bands) {
  const ConvAttributes& a = kernel.attributes();
  if (size.width != (input.width + a.strides[1] - 1) / a.strides[1] || Filled(size) < kFilled) return nullptr;
  if (size.height < kBandRows * bands && bands > 1) return nullptr;
  if (std::max(input.height, size.height) > kMostRows || a.strides[0] > kMostRows) return nullptr;
  if ((a.kernel[0] - 1) * a.dilations[0] >= kMostRows) return nullptr;
  return kernel.Rows(input.width);
}

double GainOfRows(const ConvAttributes& attributes, const RowConv& conv, const Size& size) {
  const ConvAttributes& a = attributes;
  const double columns = static_cast<double>(size.pixels()) / kLanes;
  const double packed = static_cast<double>(a.in_channels * a.kernel[0] * a.kernel[1]);
  const double stored = static_cast<double>(a.out_channels);
  const double products = static_cast<double>(conv.weight_bytes()) / kEntryBytes;
  return columns * (packed * kPackedVector + stored * kStoredVector -
                    products * (kRowProduct / Filled(size) - kPanelProduct));
}

}  // namespace chain
}  // namespace sparsify
