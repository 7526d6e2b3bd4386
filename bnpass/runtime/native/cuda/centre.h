// X − mean, in the type in which an element is worked on.
#pragma once

#include <cuda_runtime.h>

#include "cuda/value.h"

namespace bnpass::cuda {

template <class W>
class Centre;

template <>
class Centre<double> {
 public:
  Centre() = default;
  __device__ explicit Centre(double mean) : mean_(mean) {}
  __device__ double operator()(double x) const { return x - mean_; }

 private:
  double mean_;
};

/// The mean as the sum of two floats: what is left of x after the first is exact where it matters, near the mean.
template <>
class Centre<float> {
 public:
  Centre() = default;
  __device__ explicit Centre(double mean)
      : high_(static_cast<float>(mean)), low_(static_cast<float>(mean - static_cast<double>(high_))) {}
  __device__ float operator()(float x) const { return (x - high_) - low_; }

 private:
  float high_, low_;
};

/// Whether float holds a factor, and products with it, about as well as double.
__device__ inline bool fits_float(double factor) {
  const double size = fabs(factor);
  return size == 0 || (size > 1e-30 && size < 1e30);
}
/// Whether float holds a term of a sum, and its difference to any element.
__device__ inline bool fits_float_term(double term) { return fabs(term) < 1e30; }

}  // namespace bnpass::cuda
