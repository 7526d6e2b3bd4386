// The four kernels that run over whole tensors: their arguments, and how they are launched.
#pragma once

#include <cuda_runtime_api.h>

#include "core/element.h"
#include "cuda/arguments.h"
#include "cuda/plan.h"

namespace bnpass::cuda {

/// Sums of (mean, Σ(x − mean)²) over a channel and ghost batch, and what follows from them.
struct MomentsArguments {
  Layout layout;
  const void* X;
  Partials partials;
  double count;  ///< Elements per channel and ghost batch.
  Statistics to;
};

/// Y = factor·(X − mean) + B; mean, factor: [groups, channels]; B: [channels].
struct NormalizeArguments {
  Layout layout;
  const void* X;
  const double* mean;
  const double* factor;
  Vector B;
  void* Y;
};

/// Sums of (dY, dY·(X − mean)), and what follows from them.
struct GradientSumsArguments {
  Layout layout;
  const void* dY;
  const void* X;
  const double* mean;
  Partials partials;
  Gradient to;
};

/// dX = factor·(dY − shift − slope·(X − mean)); vectors [groups, channels].
/// dX = factor·dY, and X is not looked at, if shift is null or *count is 0.
struct GradientApplyArguments {
  Layout layout;
  const void* dY;
  const void* X;
  const double* mean;
  const double* factor;
  const double* shift;
  const double* slope;
  const double* count;  ///< Null: not 0.
  void* dX;
};

void launch_moments(const Plan& plan, Element element, MomentsArguments arguments, cudaStream_t stream);
void launch_normalize(const Plan& plan, Element element, NormalizeArguments arguments, cudaStream_t stream);
void launch_gradient_sums(const Plan& plan, Element element, GradientSumsArguments arguments, cudaStream_t stream);
void launch_gradient_apply(const Plan& plan, Element element, GradientApplyArguments arguments, cudaStream_t stream);

}  // namespace bnpass::cuda
