// Batch normalization on device memory, in the order of a stream: nothing is allocated, nothing is waited for, and all
// of it can be captured in a CUDA graph. The functions are those of cpu/batch_norm.h, and what follows from their sums
// per channel is written by the same launch: a training step of one replica is two launches forward and two backward
// (one more of each with ghost batches).
//
// Speed: the second pass goes through memory in the opposite order of the first, so that it begins with what the L2
// cache holds; a layer that fits there is read from memory once.
#pragma once

#include <cuda_runtime_api.h>

#include "core/element.h"
#include "core/geometry.h"
#include "cuda/arguments.h"

namespace bnpass::cuda {

/// Where kernels run, and the memory that they work in: needs() says how much. Kernels that run at the same time need
/// memory of their own. The counters must be 0, and are 0 again behind each kernel.
struct Queue {
  cudaStream_t stream = nullptr;
  int processors = 1;  ///< Of the device.
  Partials partials{};
};

/// Takes the statistics of X, over this replica. geometry.count() and the number of channels must not be 0.
/// Running statistics are written if there is one ghost batch.
void moments(const Queue& queue, const Geometry& geometry, Element element, const void* X, const Statistics& to);

/// Y = factor·(X − mean) + B. mean, factor: [groups, channels]; B: [channels]. Y may be X.
void normalize(const Queue& queue, const Geometry& geometry, Element element, const void* X, const double* mean,
               const double* factor, Vector B, void* Y);

/// Takes Σ dY and Σ dY·(X − mean), over this replica, and writes what follows. X must not be empty.
void gradient_sums(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
                   const double* mean, const Gradient& to);

/// dX = factor·(dY − shift − slope·(X − mean)); all vectors [groups, channels]. dX may be dY or X.
/// dX = factor·dY, and X is not looked at, if shift is null, or count is not and *count is 0. slope: null with shift.
void gradient_apply(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
                    const double* mean, const double* factor, const double* shift, const double* slope,
                    const double* count, void* dX);

/// The number of multiprocessors of the current device.
int processors();

}  // namespace bnpass::cuda
