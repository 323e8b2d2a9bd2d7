// What numbers may be rounded to on tensor cores.
#ifndef SPARSIFY_CUDA_PRECISION_H_
#define SPARSIFY_CUDA_PRECISION_H_

#include <string>

namespace sparsify::cuda {

// Nothing shorter than float32; TF32's 11 bits; or 16 bits where the weights have 16, else TF32.
enum class Precision { kFloat32, kTf32, kHalf };

// The precision of a name: float32, tf32 or half. False where there is none.
bool ParsePrecision(const std::string& name, Precision* precision);

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_PRECISION_H_
