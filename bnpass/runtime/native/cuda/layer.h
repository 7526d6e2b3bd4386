// A training step of one replica alone, forward and backward, on device memory.
#pragma once

#include "cuda/batch_norm.h"

namespace bnpass::cuda {

/// Takes the statistics of X, writes what follows from them, and Y = scale·(X − mean)·inv_std + B. X must not be empty.
/// to.mean and to.factor must be there, and with several ghost batches to.var and to.count if running statistics are.
void forward(const Queue& queue, const Geometry& geometry, Element element, const void* X, const Statistics& to,
             Vector B, void* Y);

/// Takes the sums of the gradient, writes what follows from them, and dX. X must not be empty.
/// to.factor, shift, slope and count must be there; with several ghost batches also to.sum_dY and to.sum_dYX.
void backward(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
              const double* mean, const Gradient& to, void* dX);

}  // namespace bnpass::cuda
